"""Frames between the grader and a submission's process: JSON and tensors, nothing that can run.

4 bytes: length of the JSON | JSON | 8 bytes: length of the tensors | tensors (safetensors)
"""

import json
import struct

import torch
from safetensors.torch import load, save

MAX_JSON, MAX_TENSORS = 1 << 16, 1 << 24  # bytes


class Garbled(Exception):
    """Bytes that are no frame."""


def pack(header: dict, tensors: dict[str, torch.Tensor]) -> bytes:
    """A frame; a tensor's name says what it is."""
    text = json.dumps(header).encode()
    blob = save({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()})
    return struct.pack("<I", len(text)) + text + struct.pack("<Q", len(blob)) + blob


def length(start: bytes) -> int | None:
    """The length of the frame that begins so, or None if that cannot be told yet."""
    if len(start) < 4:
        return None
    (json_bytes,) = struct.unpack("<I", start[:4])
    if json_bytes > MAX_JSON:
        raise Garbled(f"a message of {json_bytes:,} bytes, expected at most {MAX_JSON:,}")
    if len(start) < 12 + json_bytes:
        return None
    (blob_bytes,) = struct.unpack("<Q", start[4 + json_bytes : 12 + json_bytes])
    if blob_bytes > MAX_TENSORS:
        raise Garbled(f"tensors of {blob_bytes:,} bytes, expected at most {MAX_TENSORS:,}")
    return 12 + json_bytes + blob_bytes


def unpack(frame: bytes) -> tuple[dict, dict[str, torch.Tensor]]:
    """The header and the tensors of a whole frame; Garbled if it is none."""
    try:
        (json_bytes,) = struct.unpack("<I", frame[:4])
        header = json.loads(frame[4 : 4 + json_bytes])
        tensors = load(bytes(frame[12 + json_bytes :]))
    except Exception as error:  # safetensors, in Rust, raises no narrower one
        raise Garbled(f"no message: {type(error).__name__}") from error
    if not isinstance(header, dict):
        raise Garbled("no message: its JSON is no object")
    return header, tensors
