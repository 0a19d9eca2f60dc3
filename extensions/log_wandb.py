"""Each epoch's figures as a run on Weights & Biases, or offline in the run's folder.

    python classifier.py --extension log_wandb:project=gpt2,mode=offline

The run is named after its folder, so that a resumed one goes on with the same curves; after a kill
it logs the epochs since its last save again. It carries the settings of the run. Needs the wandb
package, and for mode=online its login; nothing else here does.
"""

import json
from dataclasses import dataclass

from engine.errors import InputError, optional
from engine.extension import Extension

MODES = ("online", "offline", "disabled")


@dataclass
class LogWandb(Extension):
    project: str = "build-gpt2"
    mode: str = "online"

    recordable = True
    shardable = True

    def __post_init__(self):
        if self.mode not in MODES:
            raise InputError(f"log_wandb: mode={self.mode}: expected one of {', '.join(MODES)}")
        self._wandb, self._run = optional("wandb", "log_wandb"), None

    def after_epoch(self, record: dict, folder) -> None:
        if self._run is None:
            self._run = self._begin(folder)
        self._run.log({name: value for name, value in record.items() if name != "epoch"})

    def _begin(self, folder):
        if self._wandb.run is not None:  # of the data set before this one
            self._wandb.finish()
        settings = json.loads((folder.path / "config.json").read_text(encoding="utf-8"))
        return self._wandb.init(
            project=self.project,
            id=folder.path.name,
            name=folder.path.name,
            dir=folder.path,
            config=settings,
            mode=self.mode,
            resume="allow",
        )
