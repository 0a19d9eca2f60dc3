"""What a kernel of AdamW must know of each tensor: adamw.c's `struct tensor`, a row of 48 bytes."""

import struct

ROW = struct.Struct("qqqqqd")  # the addresses of param, grad and both moments, size, step size


def packed(tensors, step_sizes) -> bytes:
    """A row for each of optimizer.update_each's tensors."""
    return b"".join(
        ROW.pack(*(tensor.data_ptr() for tensor in of_one), of_one[0].numel(), step_size)
        for of_one, step_size in zip(tensors, step_sizes, strict=True)
    )
