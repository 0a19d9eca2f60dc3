"""Each epoch's figures as TensorBoard's curves, in the run's folder.

    python classifier.py --extension log_tensorboard
    tensorboard --logdir runs

A resumed run goes on in the same curves. Needs the tensorboard package; nothing else here does.
"""

from dataclasses import dataclass

from engine.errors import optional
from engine.extension import Extension


@dataclass
class LogTensorBoard(Extension):
    recordable = True
    shardable = True

    def __post_init__(self):
        optional("tensorboard", "log_tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer_class, self._writer = SummaryWriter, None

    def after_epoch(self, record: dict, folder) -> None:
        epoch = record["epoch"]
        if self._writer is None:  # what an interrupted run wrote of this epoch goes
            self._writer = self._writer_class(folder.path / "tensorboard", purge_step=epoch)
        for name, value in record.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, epoch)
        self._writer.flush()
