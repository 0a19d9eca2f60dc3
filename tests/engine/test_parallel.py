"""Several processes with shares of the batch do what one does with all of it; only one writes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from children import in_workers
from course_files import WORKER, call_main, work_in, write, write_course, write_model
from pair_runs import RUNS, figures, flags_of, torchrun
from slow import slow_unless
from tiny_run import assert_same_results, run_path
from torch import distributed as dist

from engine.batches import LengthBuckets, make_loader
from engine.checkpoint import load_tree
from engine.errors import InputError
from engine.files import ROOT
from engine.parallel import Worker, all_reduce, backends, broadcast, gather, start_worker

CASES = [*((name, "") for name in RUNS), ("sst", "--shard")]
ROWS = 41  # the last common batch of 8 has one row: the second process gets none


@pytest.fixture
def place(tmp_path, monkeypatch):
    work_in(monkeypatch, tmp_path)
    write_course("data", rows=ROWS)
    write_model("model")  # without dropout, which differs from process to process
    return tmp_path


@pytest.mark.parametrize("name, how", slow_unless(("sst", "").__eq__, CASES))
def test_two_processes_at_half_the_batch_follow_the_single_one(name, how, place, monkeypatch):
    program, *words = flags_of(name, 8)
    call_main(monkeypatch, program, *words, "--runs_dir", "single")
    alone = {path.name: path.read_bytes() for path in Path("predictions").iterdir()}

    _, *words = flags_of(name, 4)
    run = torchrun(ROOT / f"{program}.py", *words, "--runs_dir", "pair", *how.split())
    assert run.returncode == 0, run.stderr
    pairs = list(zip(figures(place / "single"), figures(place / "pair"), strict=True))
    assert len(pairs) == 2
    for one, two in pairs:
        for key in one.keys() - {"seconds"}:
            assert two[key] == pytest.approx(one[key], abs=1e-5), key
    one, two = (
        load_tree(run_path(folder, "*/best.safetensors"))["model"] for folder in ("single", "pair")
    )
    for key in one:  # AdamW divides by tiny numbers at first: rounding shows
        torch.testing.assert_close(two[key], one[key], atol=2e-4, rtol=1e-3, msg=key)
    assert {path.name: path.read_bytes() for path in Path("predictions").iterdir()} == alone
    said = run.stdout.splitlines()
    assert sum(line.startswith("Epoch 0") for line in said) == 1
    assert all(sum("predictions are in " + name in line for line in said) <= 1 for name in alone)


KILLER = f"""import os, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
import classifier
from engine import training

save = training.Trainer.save

def save_and_die(self):
    save(self)
    if self.progress.epoch == 1 and self.progress.step == 1:
        if self.worker.is_main:
            os.kill(os.getpid(), signal.SIGKILL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(60)  # torchrun ends it

training.Trainer.save = save_and_die
classifier.main()
"""


@pytest.fixture
def pair(monkeypatch):
    """Runs classifier.py in two forked processes, which begin at once; torchrun takes seconds."""
    return lambda *words: in_workers(lambda: call_main(monkeypatch, "classifier", *words))


def dropping(how: list[str]) -> list[str]:
    """Flags of a run with dropout, for which each process has a random state of its own."""
    _, *words = flags_of("sst", 4)
    words[words.index("--hidden_dropout_prob") + 1] = "0.3"
    return words + how


@pytest.mark.slow
@pytest.mark.parametrize("how", [[], ["--shard"]])
def test_two_processes_that_were_killed_resume_to_the_same_bits(how, place, pair):
    words = [*dropping(how), "--save_minutes", "0"]
    pair(*words, "--runs_dir", "whole")
    killed = torchrun(write("killer.py", KILLER), *words, "--runs_dir", "killed")
    assert killed.returncode != 0
    assert load_tree(run_path("killed", "*/last.safetensors"))["progress"]["epoch"] == 1
    pair(*words, "--runs_dir", "killed", "--resume")
    assert_same_results("whole", "killed")


PREEMPTED = f"""import os, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
import classifier
from engine import training

step = training.Trainer.step

def step_slowly(self, group):
    step(self, group)
    if self.progress.epoch == 1:
        if self.progress.step == 1 and self.worker.is_main:
            os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(1)

training.Trainer.step = step_slowly
classifier.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [[], ["--shard"]])
def test_a_cluster_that_stops_torchrun_finds_the_run_saved(how, place, pair):
    """torchrun hands SIGTERM on; the run ends in its second epoch, and goes on to the same bits."""
    words = dropping(how)
    pair(*words, "--runs_dir", "whole")
    stopped = torchrun(write("preempted.py", PREEMPTED), *words, "--runs_dir", "stopped")
    assert stopped.returncode != 0
    assert stopped.stderr.count("stopped by SIGTERM: what was saved is whole") == 1
    progress = load_tree(run_path("stopped", "*/last.safetensors"))["progress"]
    assert progress["epoch"] == 1 and progress["step"] > 0
    pair(*words, "--runs_dir", "stopped", "--resume")
    whole, resumed = (
        load_tree(run_path(folder, "*/last.safetensors"))["model"]
        for folder in ("whole", "stopped")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


OVERFLOWING = f"""import os, sys
sys.path.insert(0, {str(ROOT)!r})
import classifier
from engine import machine_flags, training
from engine.trees import tensors_digest

machine_flags.has_fp16_units = lambda kind: True
task = type(classifier.TASKS["sst"])
loss_fn, finish, calls = task.loss_fn, training.Trainer.finish_epoch, []

def large_on_one_worker(self, logits, batch):
    calls.append(1)
    large = os.environ["RANK"] == "1" and len(calls) <= 3
    return loss_fn(self, logits, batch) * (1e9 if large else 1.0)

def note(self):
    weights = tensors_digest(dict(self.model.named_parameters()))
    with open("rank-" + os.environ["RANK"], "a") as file:
        print(self.progress.skipped, self.scaler.get_scale(), weights, file=file)
    finish(self)

task.loss_fn, training.Trainer.finish_epoch = large_on_one_worker, note
classifier.main()
"""


@pytest.mark.slow
def test_all_workers_skip_a_step_in_which_one_of_them_overflows_float16(place):
    words = [*flags_of("sst", 4)[1:], "--fp16", "--clip", "1"]
    run = torchrun(write("overflowing.py", OVERFLOWING), *words)
    assert run.returncode == 0, run.stderr
    one, two = (Path(f"rank-{rank}").read_text("utf-8").splitlines() for rank in range(2))
    assert one == two and len(one) == 2
    assert int(one[0].split()[0]) >= 3 and one[0].split()[2] != one[1].split()[2]


@pytest.mark.parametrize(
    "wrong, said",
    [
        (["--batch_size", "0"], "--batch_size 0: expected at least 1"),
        (["--lrr", "1"], "unrecognized arguments: --lrr 1"),
        (["--data_dir", "nowhere"], "nowhere/ids-sst-train.csv"),
    ],
)
def test_a_mistake_is_said_once_and_ends_all_processes(wrong, said, place):
    run = torchrun(ROOT / "classifier.py", *flags_of("sst", 4)[1:], *wrong)
    assert run.returncode != 0
    own = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert len(own) == 1 and said in own[0]
    assert "usage:" not in run.stderr and "Traceback" not in run.stderr.split(own[0])[0]


# -- shares ------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [2, 3, 5])
@pytest.mark.parametrize("rows", [1, 7, 24, 41])
def test_the_shares_together_are_the_batches_of_one_process(rows, workers):
    """In the same order, each row once, and no share larger than its batch size."""
    lengths = [1 + i % 7 for i in range(rows)]
    whole = LengthBuckets(lengths, 4 * workers, seed=3)
    shares = [LengthBuckets(lengths, 4, seed=3, rank=r, workers=workers) for r in range(workers)]
    for epoch in range(2):
        for sampler in (whole, *shares):
            sampler.set_epoch(epoch)
        parts = [list(share) for share in shares]
        assert {len(part) for part in parts} == {len(whole)} == {len(shares[0])}
        for batch, *pieces in zip(whole, *parts, strict=True):
            assert sorted(row for piece in pieces for row in piece) == sorted(batch)
            assert max(map(len, pieces)) <= 4
            assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


def test_cfimdb_s_batch_of_8_is_shared_out():
    import classifier

    sizes = {}
    for count in (1, 2, 3, 4, 8, 16):
        seen = []

        def note(dataset, batch_size, seen=seen, **how):
            seen += [batch_size] * how.get("shuffle", False)
            return make_loader(dataset, batch_size, **how)

        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr("engine.flags.make_loader", note)
            monkeypatch.setattr(
                classifier, "tokenize", lambda t, texts, *_, **__: [[1]] * len(texts)
            )
            args = classifier.TASKS["sst"].get_args(
                ["--data_dir", str(ROOT / "data" / "sample"), "--batch_size", "64"]
            )
            worker = Worker(torch.device("cpu"), rank=0, world_size=count)
            classifier.TASKS["cfimdb"].build_loaders(args, None, 512, worker)
        sizes[count] = set(seen)
    assert sizes == {1: {8}, 2: {4}, 3: {3}, 4: {2}, 8: {1}, 16: {1}}


@pytest.mark.parametrize(
    "device, shard, sizes",
    [("cpu", False, {8}), ("cuda", False, {256}), ("mps", False, {256}), ("cuda", True, {8})],
)
def test_a_gpu_judges_more_rows_at_once_than_it_learns_from(device, shard, sizes):
    """They fit, without gradients, and few launches are quicker than many."""
    import classifier

    args = classifier.TASKS["sst"].get_args(["--data_dir", str(ROOT / "data" / "sample")])
    args = args.replace(shard=shard)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(classifier, "tokenize", lambda t, texts, *_, **__: [[1]] * len(texts))
        loaders = classifier.TASKS["sst"].build_loaders(args, None, 9, Worker(torch.device(device)))
    assert loaders["train"].batch_sampler.batch_size == 8
    assert {loaders[split].batch_sampler.batch_size for split in ("dev", "test")} == sizes


def test_a_single_process_talks_to_nobody():
    assert all_reduce([1.5, 2.0], WORKER) == [1.5, 2.0]
    tensor = torch.arange(3)
    assert gather(tensor, WORKER)[0] is tensor
    broadcast([tensor], WORKER)


def test_numbers_are_added_up_beside_the_gpus():
    def add_up() -> None:
        dist.init_process_group("gloo")
        rank = dist.get_rank()
        worker = Worker(torch.device("meta"), rank, 2)  # where no number can be read
        assert all_reduce([1.0, rank + 0.5], worker) == [2.0, 2.0]

    in_workers(add_up)


def test_what_the_host_asks_other_workers_waits_for_no_gpu():
    assert backends(torch.device("cuda")) == "cpu:gloo,cuda:nccl"
    assert backends(torch.device("cpu")) == "gloo"


def test_asking_for_a_gpu_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(InputError, match="1 CUDA GPUs are visible, this process needs number 1"):
        start_worker(use_gpu=True)


REUSE = """
import platform, resource, sys, torch
from engine.parallel import start_worker

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if platform.libc_ver()[0] != "glibc":
    sys.exit("no glibc")
given_back = [page_faults() for _ in range(3)]
start_worker(use_gpu=False)
kept = [page_faults() for _ in range(30)]
print(min(given_back), min(kept))
"""


def test_a_worker_on_a_cpu_keeps_the_memory_that_it_frees():
    run = subprocess.run(
        [sys.executable, "-c", REUSE], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if "no glibc" in run.stderr:
        pytest.skip("not glibc")
    given_back, kept = map(int, run.stdout.split())
    assert given_back >= 32 and kept <= 4  # of 64 MiB: 32 pages at most if they are huge ones
