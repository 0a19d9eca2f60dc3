"""Downloads that go on where they ended, and end when a server is too slow or sends too much."""

import http.client
import time
import urllib.error
import urllib.request
from pathlib import Path

from engine.errors import InputError

TIMEOUT = 20  # seconds without any byte
SLOWEST = 20_000  # bytes a second, on average: a slower connection ends, and the next call goes on
PATIENCE = 60  # seconds beyond that
LARGEST_ANSWER = 1 << 20  # bytes of a listing; the course's has 12 thousand
CHUNK = 1 << 16
BAR = {"unit": "B", "unit_scale": True, "leave": False, "disable": None}  # None: terminals only


class Lacking(InputError):
    """The source has no such file."""


class Unreachable(InputError):
    """There is no way to the server."""


def append(url: str, part: Path, *, start: int, size: int) -> None:
    """Get the bytes from `start` on, or all of them where the server knows no ranges."""
    from tqdm import tqdm

    deadline = time.monotonic() + PATIENCE + size / SLOWEST
    with _open(url, {"Range": f"bytes={start}-"} if start else {}) as response:
        start = start if response.status == http.client.PARTIAL_CONTENT else 0
        bar = tqdm(total=size, initial=start, desc=part.stem, **BAR)
        with bar, open(part, "ab" if start else "wb") as file:
            while (chunk := _read(response)) and file.tell() <= size:
                file.write(chunk)
                bar.update(len(chunk))
                if time.monotonic() > deadline:
                    break
    if (here := part.stat().st_size) < size:
        raise InputError(
            f"{url}: the connection ended, or was too slow, after {here:,} of {size:,} bytes: "
            f"run it again, it goes on from {part.name}"
        )


def read_small(url: str) -> bytes:
    """What a server answers, if it is no more than a listing of files."""
    content, deadline = b"", time.monotonic() + PATIENCE
    with _open(url) as response:
        while chunk := _read(response):
            content += chunk
            if len(content) > LARGEST_ANSWER or time.monotonic() > deadline:
                raise InputError(
                    f"{url}: {len(content):,} bytes and no end, expected {LARGEST_ANSWER:,} at "
                    f"most, in {PATIENCE} seconds: repeat later, or copy the files by --from DIR"
                )
    return content


def _open(url: str, headers: dict | None = None):
    try:
        request = urllib.request.Request(url, headers=headers or {})
        return urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.NOT_FOUND:
            raise Lacking(f"{url}: the server has no such file") from error
        raise InputError(
            f"{url}: the server answered {error.code} {error.reason}, expected 200: repeat later"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(
            f"{url} cannot be reached ({getattr(error, 'reason', error)}): (1) connect to the "
            f"internet and repeat, (2) copy the files by --from DIR, or (3) give the scripts the "
            f"small sample, by --data_dir data/sample"
        ) from error


def _read(response) -> bytes:
    """The next bytes; none at the end, nor at an early end, which the file's size tells."""
    try:
        return response.read1(CHUNK)  # what there is, so that a slow server is noticed
    except (OSError, http.client.HTTPException):
        return b""
