"""docs/slurm.sh, with stand-ins for Slurm: a job whose time ends saves, and goes on later."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from course_files import write, write_course, write_model
from pair_runs import flags_of
from tiny_run import run_path

from engine.checkpoint import load_tree
from engine.files import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="no bash")

COMMANDS = {
    "srun": 'exec "$@"',
    "torchrun": f'echo $$ > torchrun.pid; exec {sys.executable} -m torch.distributed.run "$@"',
    "scancel": 'kill -s "${1#--signal=}" "$(cat torchrun.pid)"',
    "scontrol": '[ "$1" = requeue ] && touch requeued; echo localhost',
}
SLOW = f"""import sys, time
sys.path.insert(0, {str(ROOT)!r})
import classifier
from engine import training

step = training.Trainer.step

def step_slowly(self, group):
    step(self, group)
    if self.progress.epoch == 1 and "--resume" not in sys.argv:
        open("second epoch", "w").close()
        time.sleep(1)

training.Trainer.step = step_slowly
classifier.main()
"""


@pytest.fixture
def job(tmp_path):
    """Starts the script as Slurm does, in a folder with the stand-ins."""
    for name, text in COMMANDS.items():
        write(tmp_path / "bin" / name, f"#!/bin/bash\n{text}\n").chmod(0o755)
    write_course(tmp_path / "data", rows=41)
    write_model(tmp_path / "model")
    write(tmp_path / "slow.py", SLOW)
    slurm = {"JOB_ID": "7", "JOB_NODELIST": "localhost", "JOB_NUM_NODES": "1", "GPUS_ON_NODE": "2"}
    environment = os.environ | {f"SLURM_{name}": value for name, value in slurm.items()}
    environment["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{environment['PATH']}"

    def start() -> subprocess.Popen:
        words = ["bash", ROOT / "docs" / "slurm.sh", "slow.py", *flags_of("sst", 4)[1:], "--shard"]
        how = {"stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(words, cwd=tmp_path, env=environment, **how)

    return start


@pytest.mark.slow
def test_a_job_that_is_out_of_time_goes_on_when_it_is_queued_again(job, tmp_path):
    with job() as first:
        while not (tmp_path / "second epoch").exists() and first.poll() is None:
            time.sleep(0.1)
        first.send_signal(signal.SIGUSR1)
        _, said = first.communicate()
    assert first.returncode != 0 and (tmp_path / "requeued").exists()
    assert said.count("stopped by SIGTERM: what was saved is whole") == 1

    def progress() -> dict:
        return load_tree(run_path(tmp_path / "runs" / "slurm-7", "*/last.safetensors"))["progress"]

    assert progress()["epoch"] == 1 and not progress()["finished"]
    (tmp_path / "requeued").unlink()
    with job() as second:
        _, said = second.communicate()
    assert second.returncode == 0, said
    assert progress()["finished"] and not (tmp_path / "requeued").exists()
