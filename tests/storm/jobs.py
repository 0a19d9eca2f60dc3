"""The programs that the storm kills, each on data and models so small that it takes seconds."""

import importlib
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from course_files import FEELINGS, THINGS, VERSES, write
from task_checkpoints import write_originals

from engine.files import ROOT


@dataclass(frozen=True)
class Job:
    """A command. program: a file of the root, or a package of programs/.

    processes: how many torchrun starts. resumes: whether it has --resume; without it the same
    command goes on or begins anew. repeats: whether a finished one works again. every: in which
    rounds of all jobs it has a turn; 3: in each third.
    """

    name: str
    program: str
    flags: tuple[str, ...]
    processes: int = 1
    resumes: bool = True
    repeats: bool = True
    every: int = 1

    def words(self, resume: bool) -> list[str]:
        """What comes after the interpreter on its command line."""
        flags = [*self.flags, *["--resume"] * (resume and self.resumes)]
        is_file = self.program.endswith(".py")
        program = [str(ROOT / self.program)] if is_file else ["-m", self.program]
        if self.processes == 1:
            return [*program, *flags]
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc_per_node={self.processes}"]
        return ["-m", *torchrun, *program, *flags]


COURSE = "--data_dir data --model_size model"
TRAINING = f"{COURSE} --epochs 3 --lr 1e-3 --save_minutes 0"  # it saves after every step
PRETRAIN = "--text text.txt --out made --vocab_size 300 --block 16 --batch_size 2 --dropout 0.1 "
PRETRAIN += "--steps 4 --eval_every 2 --save_minutes 0"
NOW_AND_THEN = "--save_minutes 0.001"  # an epoch may end without a save
SPACE = "--trials 2 --pruner none --space lr=1e-3..1e-2"


def _job(name: str, program: str, flags: str, **more) -> Job:
    return Job(name, program, tuple(flags.split()), **more)


JOBS = [
    _job("sst", "classifier.py", f"{TRAINING} --dataset sst --fine-tune-mode full-model"),
    _job("head", "classifier.py", f"{TRAINING} --dataset cfimdb {NOW_AND_THEN}"),
    _job("paraphrase", "paraphrase_detection.py", f"{TRAINING} --schedule linear --warmup 0.2"),
    _job(
        *("sonnet", "sonnet_generation.py"),
        f"{TRAINING} --max_new_tokens 8 --accumulate 2 --clip 1",
    ),
    _job(
        *("techniques", "classifier.py"),
        f"{TRAINING} --dataset sst --fine-tune-mode full-model --extension lora --extension ema",
    ),
    _job("pretrain", "pretrain.py", PRETRAIN),
    _job("dpo", "programs.dpo", f"{TRAINING} --kinds sampled shuffled --max_new_tokens 8"),
    _job(
        *("gptq", "programs.gptq"),
        "--checkpoint sonnet.safetensors --out int4.safetensors --group_size 16 --data_dir data "
        "--max_new_tokens 4",
    ),
    _job(
        *("decoding", "programs.decoding"),
        "--checkpoint sonnet.safetensors --batch_size 2 --max_new_tokens 8 --data_dir data",
    ),
    _job(
        *("quantize", "programs.quantize"),
        "--checkpoint sst.safetensors --out int8.safetensors --predict --data_dir data",
        resumes=False,
    ),
    _job(
        *("ensemble", "programs.ensemble"),
        "--task paraphrase --both_orders --checkpoint paraphrase.safetensors --data_dir data",
        resumes=False,
    ),
    _job(
        *("augment", "programs.augment"),
        "--task sst --methods deletion insertion --copies 40 --out_dir more --data_dir data",
        resumes=False,
    ),
    _job(
        *("search", "programs.search"),
        f"{SPACE} -- classifier.py {COURSE} --dataset sst --epochs 2",
        resumes=False,
        repeats=False,
        every=3,
    ),
    _job(
        *("sst, 2 processes", "classifier.py"),
        f"{TRAINING} --dataset sst --fine-tune-mode full-model",
        processes=2,
        every=3,
    ),
    _job(
        *("pretrain, 2 processes", "pretrain.py"),
        PRETRAIN,
        processes=2,
        every=3,
    ),
]


def turns(jobs: list[Job]) -> Iterator[Job]:
    """Whose turn it is, round after round, without an end."""
    for number in itertools.count():
        yield from (job for job in jobs if number % job.every == 0)


def write_inputs(folder: Path) -> None:
    """What the commands read: data/, model/, text.txt, and a checkpoint of each task."""
    write_originals(folder, rows=24, dropout=0.1)  # so that the random state matters
    words = [f"The {thing} was {feeling}." for thing in THINGS for feeling in FEELINGS]
    write(folder / "text.txt", "\n<|endoftext|>\n".join([*words, *VERSES] * 8) + "\n")


def preload(jobs: list[Job]) -> None:
    """Import what the programs import, once for all processes that are forked from this one."""
    for program in {job.program.removesuffix(".py") for job in jobs}:
        name = program.rpartition(".")[2]
        importlib.import_module(f"{program}.{name}" if "." in program else program)
    sys.argv[1:] = []
