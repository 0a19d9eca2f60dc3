"""Do programs help? Those of programs/ on gpt2-mini, each against doing without it.

    python studies/programs_help.py --bf16 --jobs 2 --questions quantize ensemble

    search     rate and dropout by 8 trials on 1,000 rows of SST with the first seed, trained with
               the others; plain: the program's default rate
    quantize   SST's and the sonnets' checkpoints as integers; plain: as they are
    ensemble   several seeds' answers, of paraphrases in both orders, too; plain: one seed, and of
               several seeds the mean of each one's own figure
    augment    1,000 rows of SST and 4 new ones for each; 4,000 pairs of paraphrases and more of
               them. All of SST see 5,000 rows, 5 times or once; pairs 8,000, hard negatives some
               more: the figure is the last epoch's. plain: no new rows
    dpo        the sonnets' checkpoints after 48 sonnets' preferences; plain: as they are
    decoding   dev sonnets continued, each strategy with its defaults; plain: the task's sampling

The three tasks' checkpoints are trained once, and kept in --folder. How runs are made and kept:
studies/study.py; what is run: studies/programs_runs.py; on which rows: programs_data.py.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.errors import Parser, command

# isort: split

from studies import programs_runs as runs
from studies.programs_runs import ProgramsStudy
from studies.programs_tables import PLAIN, tables
from studies.study import add_study_arguments, parse

BOTH_ORDERS = "both orders"
ROUNDED = {
    PLAIN: runs.UNROUNDED,
    "int8": "quantize --bits 8",
    "int8 dynamic": "quantize --bits 8 --mode dynamic",
    "int4": "quantize --bits 4",
    "int4 by gptq": "gptq --bits 4",
    "int2": "quantize --bits 2",
    "int2 by gptq": "gptq --bits 2",
}
EDA = ("deletion", "swap", "insertion", "replacement")
AUGMENTED = {  # flags and epochs: all contestants of a task see as many rows
    "sst": {
        PLAIN: ("", 5),
        **{method: (f"--methods {method} --copies 4", 1) for method in EDA},
        "all four": (f"--methods {' '.join(EDA)}", 1),
    },
    "paraphrase": {
        PLAIN: ("", runs.EPOCHS["paraphrase"]),
        "symmetric": ("--methods symmetric", 1),
        "hard_negatives": ("--methods hard_negatives", 2),
    },
}
PREFERENCES = "--epochs 2 --lr 3e-5"  # a tenth of the rate of fine-tuning
PREFERRING = {
    PLAIN: "",
    "dpo": f"--loss dpo {PREFERENCES}",
    "simpo": f"--loss simpo {PREFERENCES}",
}
DECODED = {PLAIN: "sample", "repetition=1.2": "sample:repetition=1.2"}
DECODED |= {
    name: name
    for name in ("min_p", "typical", "best_of", "beam", "diverse_beam", "contrastive", "sonnet")
}
RATES = {PLAIN: 1e-5, f"lr {runs.RATE:g}": runs.RATE}
CHOSEN, BEST = "the best trial itself", "the best trial's flags"

# -- questions: each gives the calls that answer it ------------------------------------------------


def key(question: str, name: str, contestant: str, seeds: Iterable[int]) -> str:
    return f"{question}, {name}, {contestant}, seed {'+'.join(map(str, seeds))}"


def search(study: ProgramsStudy) -> Iterator[Callable]:
    """The best trial's figure is the one that it was chosen by: it goes on with other seeds."""
    first, *others = study.args.seeds

    def search_and_train() -> None:
        best = study.figures(
            key("search", "sst", CHOSEN, [first]), lambda: runs.searched(study, first)
        )
        flags = ["--hidden_dropout_prob", str(best["hidden_dropout_prob"])]
        for seed in others:
            work = partial(runs.tuned, study, best["lr"], flags, seed=seed)
            study.figures(key("search", "sst", BEST, [seed]), work)

    yield search_and_train
    for seed in others or [first]:
        for contestant, lr in RATES.items():
            work = partial(runs.tuned, study, lr, seed=seed)
            yield partial(study.figures, key("search", "sst", contestant, [seed]), work)


def quantize(study: ProgramsStudy) -> Iterator[Callable]:
    for name in ("sst", "sonnet"):
        for seed in study.args.seeds:
            for contestant, flags in ROUNDED.items():
                work = partial(runs.rounded, study, name, flags, seed=seed)
                yield partial(study.figures, key("quantize", name, contestant, [seed]), work)


def ensemble(study: ProgramsStudy) -> Iterator[Callable]:
    for name, orders in (("sst", [""]), ("paraphrase", ["", BOTH_ORDERS])):
        for count in range(1, len(study.args.seeds) + 1):
            for seeds in combinations(study.args.seeds, count):
                for order in orders:
                    flags = ["--both_orders"] if order else []
                    work = partial(runs.together, study, name, seeds, flags)
                    contestant = ensemble_name(count, order)
                    yield partial(study.figures, key("ensemble", name, contestant, seeds), work)


def ensemble_name(count: int, order: str) -> str:
    """Of contestants, without what is as in a plain one."""
    return " in ".join(filter(None, [f"{count} seeds" if count > 1 else "", order])) or PLAIN


def augment(study: ProgramsStudy) -> Iterator[Callable]:
    for name, contestants in AUGMENTED.items():
        for seed in study.args.seeds:
            for contestant, (flags, epochs) in contestants.items():
                if (name, contestant) == ("paraphrase", PLAIN):
                    work = partial(runs.as_trained, study, name, seed=seed)
                else:
                    work = partial(runs.augmented, study, name, flags, epochs=epochs, seed=seed)
                yield partial(study.figures, key("augment", name, contestant, [seed]), work)


def dpo(study: ProgramsStudy) -> Iterator[Callable]:
    for seed in study.args.seeds:
        for contestant, flags in PREFERRING.items():
            work = partial(runs.preferring, study, flags, seed=seed)
            yield partial(study.figures, key("dpo", "sonnet", contestant, [seed]), work)


def decoding(study: ProgramsStudy) -> Iterator[Callable]:
    for seed in study.args.seeds:
        for contestant, strategy in DECODED.items():
            work = partial(runs.decoded, study, strategy, seed=seed)
            yield partial(study.figures, key("decoding", "sonnet", contestant, [seed]), work)


@dataclass(frozen=True)
class Question:
    calls: Callable[[ProgramsStudy], Iterator[Callable]]
    order: Iterable[str]  # of contestants in the table
    checkpoints: tuple[str, ...] = ()  # the tasks that it needs some of


QUESTIONS = {  # that with the longest chain of runs first, so that others go on beside it
    "search": Question(search, (*RATES, BEST, CHOSEN)),
    "augment": Question(augment, (*AUGMENTED["sst"], *AUGMENTED["paraphrase"]), ("paraphrase",)),
    "quantize": Question(quantize, ROUNDED, ("sst", "sonnet")),
    "dpo": Question(dpo, PREFERRING, ("sonnet",)),
    "decoding": Question(decoding, DECODED, ("sonnet",)),
    "ensemble": Question(
        ensemble,
        [ensemble_name(count, order) for order in ("", BOTH_ORDERS) for count in (1, 2, 3)],
        ("sst", "paraphrase"),
    ),
}


def run(study: ProgramsStudy) -> None:
    """The checkpoints first: they are what several questions at a time are asked about."""
    asked = [QUESTIONS[name] for name in study.args.questions]
    tasks = dict.fromkeys(name for question in asked for name in question.checkpoints)
    study.side_by_side(
        partial(runs.checkpoint, study, name, seed) for name in tasks for seed in study.args.seeds
    )
    study.side_by_side(call for question in asked for call in question.calls(study))


def table(results: dict) -> str:
    """Markdown, a table for each question and task; differences to plain are seed by seed."""
    return tables(results["runs"], {name: list(each.order) for name, each in QUESTIONS.items()})


@command
def main():
    parser = Parser(description=__doc__.splitlines()[0])
    add_study_arguments(parser, out="studies/results/programs_help.json")
    parser.add_argument("--questions", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument("--folder", default="runs/programs_help", help="data and checkpoints")
    study = ProgramsStudy(parse(parser))
    run(study)
    print(table(study.results))


if __name__ == "__main__":
    main()
