"""Work recorded once as a CUDA graph and replayed: one launch in place of one for each kernel."""

from collections.abc import Callable

import torch

WARM = 2  # calls before the recording, in which libraries get their workspaces ready


@torch.no_grad()
def recorded(work: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> Callable:
    """A function that does what `work` does, for inputs of these shapes on a CUDA GPU.

    Its result is overwritten by its next call. `work` is called a few times here: it must do the
    same each time, and must not look at a number on the GPU. CUDA graphs: "CUDA semantics" in
    PyTorch's documentation, section "CUDA Graphs".
    """
    inputs = [x.clone() for x in inputs]
    current, other = torch.cuda.current_stream(), torch.cuda.Stream()
    other.wait_stream(current)
    with torch.cuda.stream(other):
        for _ in range(WARM):
            work(*inputs)
    current.wait_stream(other)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work(*inputs)

    def replay(*given: torch.Tensor) -> torch.Tensor:
        for place, value in zip(inputs, given, strict=True):
            place.copy_(value)
        graph.replay()
        return result

    return replay
