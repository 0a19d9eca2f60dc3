"""Seeded damage to files: bytes changed, cut, doubled; in JSON also values of other kinds."""

import json
import random
from collections.abc import Iterator

ODD = [
    *(None, True, False, 0, -1, 5, 10**9, 10**400, 0.5, -0.5, 1e9, 1e308, float("nan")),
    *("", "x", "\x1b[31m", "\u200b", "9" * 500, [], [[]], {}, {"": None}, [None, 5, "x"]),
]
PIECES = [
    b"",
    b"\0",
    b"\xff",
    b"\n",
    b"\t",
    b'"',
    b",",
    b"\r",
    b"=1+1",
    b"\xe2\x80\x8b",
    b"9" * 400,
]


def damaged(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` damaged forms of a file's content."""
    draw = random.Random(seed)
    for _ in range(count):
        changed = bytearray(content)
        for _ in range(draw.choice((1, 1, 2, 5))):
            start = draw.randrange(len(changed) + 1)
            end = min(len(changed), start + draw.choice((0, 1, 1, 3, 50, len(content))))
            kind = draw.randrange(4)
            if kind == 0:
                changed[start:end] = draw.choice(PIECES)
            elif kind == 1:
                changed[start:end] = bytes(draw.randrange(256) for _ in range(end - start))
            elif kind == 2:
                changed[start:end] = changed[start:end] * 2
            else:
                changed[start:end] = b""
        yield bytes(changed)


def damaged_json(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` forms of a JSON file in which one value, key or list is another one."""
    draw = random.Random(seed)
    yield b"null"
    yield b"[" * 100_000
    yield b'{"a":' * 100_000
    for _ in range(count):
        document = json.loads(content)
        places = list(_places(document))
        holder, key = draw.choice(places)
        if isinstance(holder, dict) and draw.random() < 0.3:
            value = holder.pop(key)
            if draw.random() < 0.5:
                holder[draw.choice(["", "x", f"{key} "])] = value
        else:
            holder[key] = draw.choice(ODD)
        yield json.dumps(document).encode()


def _places(value) -> Iterator[tuple]:
    """(holder, key or index) of every value inside a document."""
    keys = value if isinstance(value, dict) else range(len(value))
    for key in list(keys):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])
