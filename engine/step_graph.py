"""Forward and backward pass of a training step recorded once for each shape of a batch, replayed.

A GPT-2 of 12 layers starts some 1,500 kernels a step, each of which takes the host longer to start
than a GPU to run when the batch is small. A CUDA graph starts all of them at once.

What a replay reads and writes lies at the same place each time: the batch in one block of bytes,
gradients and figures in tensors that are set to 0 before a step and added to. A shape's first batch
runs eagerly, which also gets libraries ready; when it comes again it is recorded. Recording runs no
kernel and draws nothing, and a replay draws what the eager pass would: so a run's numbers do not
depend on what was recorded when, and a resumed one continues exactly.
"""

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine.packing import Layout, layout_of, pack
from engine.recorder import Recorder

MOST_SHAPES = 48
GRADIENT = operator.attrgetter("grad")
SCALE = "scale"  # in a block: the targets of the whole step, and the batch's share of them


@dataclass(frozen=True)
class Recording:
    block: torch.Tensor  # bytes on the device, which a batch is copied into
    replay: Callable[[], None]


class StepGraphs:
    """Adds up the gradients of batches, by replaying where a shape comes again."""

    def __init__(
        self,
        backward: Callable,
        parameters: list[torch.Tensor],
        recorder: Recorder,
        *,
        device: torch.device,
        most_positions: float,
        log: Callable[[str], None],
        most_shapes: int = MOST_SHAPES,
    ):
        """backward(batch, targets, share) adds gradients and returns figures (2,) of float64.

        It must do the same whenever it is called, look at no number on the device, and gets the
        batch's tensors alone.
        """
        self.backward, self.parameters, self.recorder = backward, parameters, recorder
        self.device, self.most_positions, self.log = device, most_positions, log
        self.most_shapes = most_shapes
        self.figures = torch.zeros(2, dtype=torch.float64, device=device)
        self.recordings: dict[Layout, Recording] = {}
        self.recorded_gradients: list[tuple[torch.Tensor, torch.Tensor]] = []  # of parameters
        self.first_step: dict[Layout, int] = {}  # in which a shape was seen
        self.gradients: list[torch.Tensor | None] = [None] * len(parameters)  # as last looked at
        self.zeroed: list[torch.Tensor] = []  # those that there are
        self.steps, self.most_rows = 0, 0
        self.begun = False  # whether a step was made: what techniques begin in one has begun
        self.full = False

    def begin(self) -> None:
        """Set the gradients that there are, and the figures, to 0.

        Those that recordings write to come back if somebody took them away.
        """
        if not all(map(operator.is_, map(GRADIENT, self.parameters), self.gradients)):
            self._look_at_gradients()
        if self.zeroed:
            torch._foreach_zero_(self.zeroed)
        self.figures.zero_()
        self.steps += 1

    def _look_at_gradients(self) -> None:
        """Find the gradients that there are, which stay the same tensors in most steps."""
        for parameter, gradient in self.recorded_gradients:
            if parameter.grad is not gradient:
                parameter.grad = gradient
        self.gradients = [p.grad for p in self.parameters]
        self.zeroed = [gradient for gradient in self.gradients if gradient is not None]

    def add(self, batch: dict, targets: float, share: float) -> None:
        """Add the gradient and the figures of one batch of a step."""
        tensors = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}
        tensors[SCALE] = torch.tensor([targets, share])
        layout = layout_of(tensors, self.most_positions)
        block = pack(tensors, layout, pinned=self.device.type == "cuda")
        recording = self.recordings.get(layout) or self._recorded(layout, len(batch["sent_ids"]))
        if recording:
            recording.block.copy_(block, non_blocking=True)
            recording.replay()
        else:
            block = block.to(self.device, non_blocking=True)
            self.recorder.run(functools.partial(self._add, layout.views(block)))

    def _add(self, batch: dict) -> None:
        targets, share = batch[SCALE].unbind()
        batch = {key: value for key, value in batch.items() if key != SCALE}
        self.figures += self.backward(batch, targets, share)

    def _recorded(self, layout: Layout, rows: int) -> Recording | None:
        """A new recording, if this shape is worth one: it comes again, and is no uneven rest.

        Before a step was made nothing is recorded.
        """
        self.most_rows = max(self.most_rows, rows)
        seen_before = self.first_step.setdefault(layout, self.steps) < self.steps
        if not (self.begun and seen_before) or rows < self.most_rows or not self._room():
            return None
        block = torch.zeros(layout.size, dtype=torch.uint8, device=self.device)
        replay = self.recorder.record(functools.partial(self._add, layout.views(block)))
        self.recorded_gradients = [(p, p.grad) for p in self.parameters if p.grad is not None]
        self._look_at_gradients()
        self.recordings[layout] = Recording(block, replay)
        return self.recordings[layout]

    def _room(self) -> bool:
        """Whether another shape may be recorded; the first time that not, a line says so."""
        if self.full:
            return False
        self.full = len(self.recordings) >= self.most_shapes or not self.recorder.has_room()
        if self.full:
            self.log(
                f"{len(self.recordings)} shapes of batches are recorded as CUDA graphs; "
                f"others run eagerly"
            )
        return not self.full
