"""The tensors of a batch in one block of bytes: one copy brings all of them to a GPU.

Texts are padded to a multiple of positions on the way, so that batches have few shapes.
"""

from dataclasses import dataclass

import torch

from engine.batches import IGNORED_LABEL, is_right_padded

FINE, COARSE = 8, 32  # positions: what lengths are rounded up to, at first and from FINE_TO on
FINE_TO = 64
ALIGNED = 16  # bytes: where a tensor may begin
PADDING = {"token_ids": 0, "attention_mask": 0}  # elsewhere a label that is ignored


def rounded(t: int, most: float) -> int:
    """The positions that a batch of t gets, at most `most` of them."""
    multiple = FINE if t <= FINE_TO else COARSE
    return max(t, min(-(-t // multiple) * multiple, most))


@dataclass(frozen=True)
class Layout:
    """Where the tensors of a batch lie in a block: name, type, shape and first byte of each."""

    places: tuple[tuple[str, torch.dtype, torch.Size, int], ...]
    size: int  # bytes

    def views(self, block: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors of a block, which share its memory."""
        return {
            name: block[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)
            for name, dtype, shape, start in self.places
        }


def layout_of(batch: dict[str, torch.Tensor], most: float) -> Layout:
    """The layout of a batch whose texts, if it has any, are padded to few lengths."""
    places, start = [], 0
    padded = batch["token_ids"].shape if "attention_mask" in batch else None
    for name, tensor in batch.items():
        shape = tensor.shape
        if shape == padded:
            shape = torch.Size([*shape[:-1], rounded(shape[-1], most)])
        places.append((name, tensor.dtype, shape, start))
        start += -(-shape.numel() * tensor.dtype.itemsize // ALIGNED) * ALIGNED
    return Layout(tuple(places), start)


def pack(batch: dict[str, torch.Tensor], layout: Layout, *, pinned: bool) -> torch.Tensor:
    """A block (bytes,) with the tensors of a batch on the CPU, padded on the right."""
    mask = batch.get("attention_mask")
    if mask is not None and not is_right_padded(mask):
        raise ValueError("a batch must be padded on the right")
    block = torch.empty(layout.size, dtype=torch.uint8, pin_memory=pinned)
    for name, place in layout.views(block).items():
        tensor = batch[name]
        if place.shape != tensor.shape:
            t = tensor.shape[-1]
            place[..., t:] = PADDING.get(name, IGNORED_LABEL)
            place = place[..., :t]
        place.copy_(tensor)
    return block
