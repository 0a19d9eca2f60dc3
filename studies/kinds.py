"""How the runs of each kind are made: what is started, and where its figures are read.

Each function starts programs as a person would and gives (figures, epochs): figures by name, and
the lines of metrics.jsonl where the run has trained a task.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import mean

from engine.prediction_files import ANSWER_TOKENS
from engine.records import NUM_LABELS, data_file, read_pairs, read_sentiment, read_sonnets
from engine.sonnets import opening_lines, partners
from evaluation import sonnet_report
from studies.data import GOLD, SMALL, SONNETS
from studies.entries import metric_of
from studies.job import SCHEDULE, Job, lines_of

OF_SONNETS = ("chrf", "lines_14_share", "distinct_2")
UNROUNDED = ["quantize", "--bits", "16"]  # measures a checkpoint as it is
TRIALS = 8
SPACE = {"lr": "log:1e-4..3e-3", "hidden_dropout_prob": "0.0..0.5"}
Made = tuple[dict[str, float], list[dict]]


def flags_of(job: Job) -> list[str]:
    return job.run.contestant.flags.split()


def fine_tune(job: Job) -> Made:
    """The figure of the best epoch."""
    return best_epoch(job, job.train(*job.task_flags, *flags_of(job)))


def best_epoch(job: Job, epochs: list[dict]) -> Made:
    study = job.run.study
    return {study.figure: study.best(record[study.figure] for record in epochs)}, epochs


def distill(job: Job) -> Made:
    """A student of the checkpoints of all the study's seeds; task_flags: the student's own."""
    words = ["-m", "programs.distill", *flags_of(job)]
    for seed in job.run.study.seeds:
        words += ["--teacher", job.checkpoint(seed)]
    return best_epoch(job, job.train(*job.task_flags, through=[*words, "--"]))


def baseline(job: Job) -> Made:
    """One of studies/baselines.py."""
    out = job.folder / "figures.json"
    words = [*flags_of(job), "--task", job.task, "--model_size", job.run.model]
    job.start("-m", "studies.baselines", *words, "--data_dir", job.data, "--out", out)
    return json.loads(out.read_text(encoding="utf-8")), []


def quantize(job: Job) -> Made:
    """A seed's checkpoint as programs.quantize or programs.gptq makes it."""
    return rounded(job, flags_of(job), job.checkpoint(job.seed)), []


def rounded(job: Job, words: list[str], path: Path) -> dict[str, float]:
    """speed: times that of before."""
    program, *flags = words
    out = job.folder / "integers.safetensors"
    flags += ["--checkpoint", path, "--out", out, "--data_dir", job.data, "--batch_size", 32]
    job.program(program, *flags, *job.gpu)
    report = json.loads(Path(f"{out}.json").read_text(encoding="utf-8"))
    before, after, metric = report["before"], report["after"], metric_of(job.task)
    return {
        metric: after[metric],
        "megabytes": after["megabytes"],
        "speed": before["seconds"] / after["seconds"],
    }


def ensemble(job: Job) -> Made:
    """Dev accuracy of the mean of several seeds' logits."""
    out = job.folder / "dev.csv"
    words = ["--task", job.task, "--dev_only", "--data_dir", job.data, *flags_of(job)]
    for seed in job.run.seeds:
        words += ["--checkpoint", job.checkpoint(seed)]
    job.program("ensemble", *words, "--dev_out", out, "--runs_dir", job.folder, *job.gpu)
    return {"dev_acc": accuracy(out, dev_values(job.data, job.task))}, []


def dev_values(data: Path, task: str) -> dict[str, str]:
    """What a prediction file should say, by id."""
    path = data / data_file(task, "dev")
    if task == "paraphrase":
        pairs = read_pairs(path, labelled=True).records
        return {pair.sent_id: str(ANSWER_TOKENS[pair.label]) for pair in pairs}
    records = read_sentiment(path, NUM_LABELS[task])
    return {record.sent_id: str(record.label) for record in records}


def accuracy(path: Path, expected: dict[str, str]) -> float:
    _, *lines = path.read_text(encoding="utf-8").splitlines()
    predicted = dict(line.replace(" ", "").split(",") for line in lines)
    return sum(predicted[sent_id] == value for sent_id, value in expected.items()) / len(expected)


def augment(job: Job) -> Made:
    """Dev accuracy after the last epoch, as a choice among more epochs would be an advantage."""
    data, words = job.data, flags_of(job)
    if words:
        data = job.folder / "data"
        words += ["--seed", job.seed, "--data_dir", job.data, "--out_dir", data]
        job.program("augment", "--task", job.task, *words)
    epochs = job.train(*job.task_flags, data=data)
    return {"dev_acc": epochs[-1]["dev_acc"]}, epochs


def preferences(job: Job) -> Made:
    """A checkpoint after programs.dpo with these flags; without any, as it is."""
    path = trained_on(job, "dpo", "--task", job.task, "--data_dir", job.rows(SMALL))
    if job.task == "sonnet":
        write(job, path)
        return {**dev_figure(job, path), **written(job)}, []
    return dev_figure(job, path), []


def grpo(job: Job) -> Made:
    """The same of programs.grpo, whose rewards are taken of what the task's program writes."""
    path = trained_on(job, "grpo", "--data_dir", job.data)
    write(job, path)
    return {**rewarded(job), **dev_figure(job, path), **written(job)}, []


def trained_on(job: Job, program: str, *words) -> Path:
    """A seed's checkpoint after a program with the contestant's flags; without any, itself."""
    path, flags, folder = job.checkpoint(job.seed), flags_of(job), job.folder / program
    if not flags:
        return path
    how = ["--checkpoint", path, "--seed", job.seed, "--runs_dir", folder, *SCHEDULE]
    job.program(program, *flags, *words, *how, *job.precision, *job.gpu)
    [path] = folder.glob("*/best.safetensors")
    return path


def dev_figure(job: Job, path: Path) -> dict[str, float]:
    """The task's own dev figure of a checkpoint."""
    metric = metric_of(job.task)
    return {metric: rounded(job, UNROUNDED, path)[metric]}


def decoding(job: Job) -> Made:
    """Dev sonnets continued by one strategy with its defaults.

    task_flags: what the draft of speculative decoding is trained with, beside the study's flags.
    """
    draft = job.task_flags and ["--draft", job.checkpoint(job.seed, *job.task_flags)]
    words = ["--strategy", *flags_of(job), *continuing(job, job.checkpoint(job.seed)), *draft]
    job.program("decoding", *words, *job.gpu)
    figures = {**written(job), "seconds": job.seconds}
    return figures | ({"accepted": accepted_share(job)} if draft else {}), []


def accepted_share(job: Job) -> float:
    """Of the drafted tokens, as the program says it."""
    text = (job.folder / "log.txt").read_text(encoding="utf-8")
    return float(re.search(r"drafted tokens are accepted \(([\d.]+)\)", text)[1])


def write(job: Job, path: Path) -> None:
    """Let the sonnets' program continue the dev sonnets."""
    job.start("sonnet_generation.py", *continuing(job, path), *job.gpu)


def continuing(job: Job, path: Path) -> list:
    """The flags with which a program continues sonnets by a checkpoint."""
    words = ["--checkpoint", path, "--seed", job.seed, "--data_dir", job.data]
    outputs = ["--dev_sonnet_out", job.folder / "dev.txt", "--sonnet_out", job.folder / "other.txt"]
    return words + outputs


def written(job: Job) -> dict[str, float]:
    """Figures of a file of continued dev sonnets."""
    path, gold = job.folder / "dev.txt", job.data / GOLD
    generated = read_sonnets(path)
    report = sonnet_report(generated, partners(generated, read_sonnets(gold), path, gold))
    return {name: report[name] for name in OF_SONNETS}


def rewarded(job: Job) -> dict[str, float]:
    """The mean reward of the same file, and its part for rhymes."""
    from programs.grpo.rewards import Rewards, known_lines, rewards

    known = known_lines(read_sonnets(job.data / SONNETS))
    generated = read_sonnets(job.folder / "dev.txt")
    found = [rewards(sonnet.text, len(opening_lines(sonnet)), known) for sonnet in generated]
    totals = [each.total(Rewards()) for each in found]
    return {"reward": mean(totals), "rhyme": mean(each.rhyme for each in found)}


def search(job: Job) -> Made:
    """The figure and the flags of the best trial."""
    task = [*job.run.study.flags.split(), *job.model_flags(), "--data_dir", job.data, *SCHEDULE]
    task += ["--seed", job.seed, *job.precision, *job.gpu]
    words = ["--trials", TRIALS, "--space", *(f"{name}={text}" for name, text in SPACE.items())]
    words += ["--study", "search", "--seed", job.seed, "--runs_dir", job.folder]
    job.program("search", *words, "--", "classifier.py", "--dataset", job.task, *task)
    trials = []
    for path in (job.folder / "search" / "search").glob("trial-*/*/metrics.jsonl"):
        settings = json.loads(path.with_name("config.json").read_text(encoding="utf-8"))
        best = max(record["dev_acc"] for record in lines_of(path))
        trials.append({"dev_acc": best, **{name: settings[name] for name in SPACE}})
    return max(trials, key=lambda trial: trial["dev_acc"]), []


def searched(job: Job) -> Made:
    """A run with the best trial's flags."""
    flags = [word for name in SPACE for word in (f"--{name}", job.run.found[name])]
    epochs = job.train(*flags)
    return {"dev_acc": max(record["dev_acc"] for record in epochs)}, epochs


KINDS: dict[str, Callable[[Job], Made]] = {
    "fine-tune": fine_tune,
    "baseline": baseline,
    "quantize": quantize,
    "ensemble": ensemble,
    "augment": augment,
    "preferences": preferences,
    "grpo": grpo,
    "distill": distill,
    "decoding": decoding,
    "search": search,
    "searched": searched,
}
