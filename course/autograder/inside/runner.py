"""The submission's process: answers the grader's requests with tensors, and never ends by itself.

python -I -S -c "…; from course.autograder.inside.runner import serve; serve(FOLDER, …)"
"""

import json
import os
import struct
import sys
import traceback
import warnings

import einops  # noqa: F401  what submissions import, loaded before any file of theirs is
import numpy  # noqa: F401
import torch

from course.autograder.inside import parts, restrict, stand_ins, task_parts, wire  # noqa: F401

MOST_WORDS = 500  # characters of an error's text that the grader gets


def serve(folder: str, requests: int, replies: int, memory: int) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    stand_ins.install()
    sys.path.insert(0, folder)
    given_up = {"memory": restrict.limit_memory(memory), "calls": restrict.filter_system_calls()}
    _send(replies, {"ready": True, **given_up}, {})
    while header := _receive_header(requests):
        tensors = _receive_tensors(requests)
        reply = {"request": header["request"]}
        try:
            found = answer(header, tensors)
            frame = wire.pack(reply, found)
        except BaseException as error:  # a submission may raise anything, sys.exit's too
            frame = wire.pack(reply | {"error": description(error, folder)}, {})
        _write(replies, frame)


def answer(header: dict, tensors: dict) -> dict[str, torch.Tensor]:
    """The tensors that a request asks for."""
    torch.manual_seed(header["seed"])
    with torch.no_grad():
        found = parts.OPS[header["op"]](header, tensors)
    for name, value in found.items():
        if not isinstance(value, torch.Tensor):
            kind = type(value).__name__
            raise parts.Unlike(f"found {kind} for {name}, expected a tensor")
    return {name: value.detach() for name, value in found.items()}


def description(error: BaseException, folder: str) -> dict:
    """Kind, text, and the last place in the submission's own files."""
    place = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if file.startswith(f"{folder}/"):
            place = {"file": file.removeprefix(f"{folder}/"), "line": line}
            place["function"] = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)
    if isinstance(error, SyntaxError) and str(error.filename).startswith(folder):
        file = error.filename.removeprefix(f"{folder}/")
        place = {"file": file, "line": error.lineno or 0, "function": "<module>"}
    kind, text = type(error).__name__, str(error)[:MOST_WORDS]
    return {"kind": kind[:100], "text": text, "place": place}


def _receive_header(descriptor: int) -> dict | None:
    start = _read(descriptor, 4)
    if not start:
        return None
    return json.loads(_read(descriptor, struct.unpack("<I", start)[0]))


def _receive_tensors(descriptor: int) -> dict[str, torch.Tensor]:
    (size,) = struct.unpack("<Q", _read(descriptor, 8))
    return wire.load(_read(descriptor, size))


def _send(descriptor: int, header: dict, tensors: dict) -> None:
    _write(descriptor, wire.pack(header, tensors))


def _read(descriptor: int, size: int) -> bytes:
    """So many bytes, or none where the grader has gone."""
    content = bytearray()
    while len(content) < size:
        chunk = os.read(descriptor, min(size - len(content), 1 << 20))
        if not chunk:
            return b""
        content += chunk
    return bytes(content)


def _write(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]
