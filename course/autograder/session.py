"""Ask a submission's process for tensors; whatever it does, the answer is tensors or a sentence."""

import contextlib
import os
import secrets
import selectors
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from course.autograder import sandbox
from course.autograder.inside import wire
from engine.errors import excerpt

MAX_OUTPUT = 1 << 16  # bytes kept of what the submission prints
START_SECONDS = 90
MEGABYTE = 1 << 20


class Failed(Exception):
    """The submission gave no tensors; the message says why, for its author."""


class StopReading(Exception):
    """The process has ended, or its time."""


@dataclass(frozen=True)
class Limits:
    """seconds: of one answer, by the clock; total: of all; memory: megabytes beyond torch's own."""

    seconds: float = 30
    total: float = 270
    memory: int = 192


class Session:
    """A submission's process, started when something is asked and again after each death."""

    def __init__(self, code: dict[str, Path], limits: Limits):
        """code: name in the submission -> file."""
        self.limits, self.left = limits, limits.total
        self.output, self._lost, self._box = bytearray(), {}, None
        self._folder = Path(tempfile.mkdtemp(prefix=f"autograder-{os.getpid()}-"))
        sandbox.prepare(self._folder)
        for name, path in code.items():
            target = self._folder / "submission" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        for path in self._folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def ask(self, op: str, tensors: dict[str, torch.Tensor], **settings) -> dict[str, torch.Tensor]:
        """The tensors that the submission answers with; Failed says why there are none."""
        part = op.partition(".")[0]
        if part in self._lost:  # it killed its process before: once is enough
            raise Failed(self._lost[part])
        if self.left <= 0:
            raise Failed(
                f"not run: the {self.limits.total:.0f} seconds for all checks are used up by those "
                f"before"
            )
        self.start()
        header = {"op": op, "request": secrets.token_hex(8), "seed": secrets.randbits(31)}
        began = time.monotonic()
        try:
            reply, found = self._exchange(wire.pack(header | settings, tensors))
            if reply.get("request") != header["request"]:
                raise wire.Garbled("an answer to nothing that was asked")
        except (StopReading, wire.Garbled) as error:
            self._lost[part] = self._ended(error)
            raise Failed(self._lost[part]) from error
        finally:
            self.left -= time.monotonic() - began
        if "error" in reply:
            raise Failed(described(reply["error"], self.limits.memory))
        return {name: tensor.real.float() for name, tensor in found.items()}

    def start(self) -> None:
        """Start the process if there is none."""
        if self._box is not None:
            return
        memory, seconds = self.limits.memory * MEGABYTE, int(self.limits.total) + START_SECONDS
        self._box = sandbox.open_box(self._folder, memory=memory, seconds=seconds)
        try:
            self._exchange(b"", START_SECONDS)
        except (StopReading, wire.Garbled) as error:
            self._close()
            words = excerpt(self.output.decode(errors="replace"))
            raise RuntimeError(f"the autograder's own process did not start: {words}") from error

    def _exchange(self, request: bytes, seconds: float = 0) -> tuple[dict, dict]:
        """Send a frame and receive one, while what is printed is kept up to its limit."""
        deadline = time.monotonic() + (seconds or min(self.limits.seconds, max(self.left, 1)))
        box, left, reply = self._box, memoryview(request), bytearray()
        printed = box.process.stdout.fileno()
        with selectors.DefaultSelector() as waiting:
            waiting.register(box.replies, selectors.EVENT_READ)
            waiting.register(printed, selectors.EVENT_READ)
            if left:
                waiting.register(box.requests, selectors.EVENT_WRITE)
            while True:
                ready = waiting.select(max(deadline - time.monotonic(), 0))
                if not ready or time.monotonic() > deadline:
                    raise StopReading("time")
                for key, _ in ready:
                    if key.fd == box.requests:
                        left = self._send(left, waiting)
                    elif key.fd == printed:
                        self._keep_output(waiting)
                    else:
                        reply += self._receive()
                        size = wire.length(reply)
                        if size is not None and len(reply) >= size:
                            return wire.unpack(reply[:size])

    def _send(self, left: memoryview, waiting) -> memoryview:
        try:
            left = left[os.write(self._box.requests, left[: 1 << 16]) :]
        except BrokenPipeError as error:
            raise StopReading("ended") from error
        if not left:
            waiting.unregister(self._box.requests)
        return left

    def _receive(self) -> bytes:
        content = os.read(self._box.replies, 1 << 20)
        if not content:
            raise StopReading("ended")
        return content

    def _keep_output(self, waiting) -> None:
        content = os.read(self._box.process.stdout.fileno(), 1 << 16)
        if not content:
            waiting.unregister(self._box.process.stdout)
        self.output += content[: MAX_OUTPUT - len(self.output)]

    def _ended(self, error: Exception) -> str:
        """Close the box; say how the process that gave no answer ended."""
        out_of_time = str(error) == "time"
        if not out_of_time and isinstance(error, StopReading):
            with contextlib.suppress(Exception):
                self._box.process.wait(timeout=5)
        code = self._close()
        if out_of_time:
            return f"no answer in {self.limits.seconds:.0f} seconds: an endless loop, or too slow"
        if isinstance(error, wire.Garbled):
            return f"the answer of your code's process cannot be read: {error}"
        if code < 0 or code > 128:
            name = signal.Signals(-code if code < 0 else code - 128).name
            return f"your code's process was killed ({name}): out of memory, or a crash in it"
        return f"your code ended its process (exit status {code}) instead of returning"

    def _close(self) -> int:
        code = self._box.close() if self._box is not None else 0
        self._box = None
        return code


def described(error, memory: int) -> str:
    """An error that the submission's process reports, in a sentence; its own words are foreign."""
    error = error if isinstance(error, dict) else {}
    kind, text = excerpt(error.get("kind", "")), excerpt(error.get("text", ""))
    place = error.get("place") if isinstance(error.get("place"), dict) else {}
    where = excerpt(f"{place.get('file')}, line {place.get('line')}") if place else ""
    if kind == "NotImplementedError" and place:
        return f"{excerpt(place.get('function'))} is not implemented yet ({where})"
    if kind == "SystemExit":
        return f"sys.exit was called ({where or 'no line of yours'}): return a value instead"
    if kind == "MemoryError" or "DefaultCPUAllocator" in text:
        return f"{where}: more than {memory} MB of memory are asked for"
    if kind == "Unlike":
        return text
    return ": ".join(filter(None, [where, kind, text]))
