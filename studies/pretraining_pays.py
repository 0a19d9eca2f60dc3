"""Does pre-training pay? gpt2-mini, the same network with random weights, and a bag of words.

    python studies/pretraining_pays.py --bf16 --jobs 2

How runs are made, chosen and kept: studies/study.py.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.errors import Parser, command
from engine.hub import load_gpt2, load_tokenizer, save_gpt2

# isort: split

import torch

from engine.records import NUM_LABELS, data_file, read_pairs, read_sentiment
from models.gpt2 import GPT2Model
from studies.study import RUNS, Study, add_study_arguments, metric_of, parse, scores, shown

BAG, RANDOM, MINI = "bag of words", "random weights", "gpt2-mini"


def flags_of(start: str, seed: int, folder: str) -> list[str]:
    return ["--model_size", random_model(folder, seed) if start == RANDOM else "gpt2-mini"]


def random_model(folder: str, seed: int) -> str:
    """gpt2-mini's shape and tokenizer with weights as before pre-training, in a folder there."""
    folder = Path(folder) / "random"
    config = load_gpt2("gpt2-mini").config
    tokenizer = load_tokenizer("gpt2-mini")
    torch.manual_seed(seed)
    save_gpt2(GPT2Model(replace(config)), folder, end_token=tokenizer.eos_token_id)
    tokenizer.save_pretrained(folder)
    return str(folder)


def bag_of_words(args, name: str) -> float:
    """Dev accuracy of a logistic regression on word counts; of pairs, on min(a, b) and |a − b|."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    counts = CountVectorizer(token_pattern=r"(?u)\S+")
    paths = [Path(args.data_dir) / data_file(name, split) for split in ("train", "dev")]
    if name == "paraphrase":
        files = [read_pairs(path, labelled=True) for path in paths]
        splits = [file.records[: args.limit] for file in files]
        counts.fit([text for r in splits[0] for text in (r.sentence1, r.sentence2)])

        def features(records):
            first, second = (
                counts.transform([getattr(r, f"sentence{i}") for r in records]) for i in (1, 2)
            )
            return hstack([first.minimum(second), abs(first - second)])

    else:
        splits = [read_sentiment(path, NUM_LABELS[name])[: args.limit] for path in paths]
        counts.fit([r.text for r in splits[0]])

        def features(records):
            return counts.transform([r.text for r in records])

    x, y = zip(*((features(rows), [r.label for r in rows]) for rows in splits), strict=True)
    return float(LogisticRegression(max_iter=2000).fit(x[0], y[0]).score(x[1], y[1]))


def run(study: Study) -> None:
    """All contestants in all tasks."""
    calls = []
    for name in study.args.tasks:
        if name != "sonnet":
            words = partial(bag_of_words, study.args, name)
            calls.append(partial(study.figure, f"{name}, {BAG}", words))
        for start in (RANDOM, MINI):
            calls.append(partial(study.contest, name, start, partial(flags_of, start)))
    study.side_by_side(calls)


def table(results: dict) -> str:
    """Markdown: a row a task, mean ± standard deviation over the seeds."""
    lines = [f"| task | {BAG} | {RANDOM} | {MINI} |", "|---|---|---|---|"]
    for name in RUNS:
        found = [scores(results["runs"], name, start)[1] for start in (BAG, RANDOM, MINI)]
        cells = [shown(name, values) if values else "–" for values in found]
        lines.append(f"| {name}, {metric_of(name).replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


@command
def main():
    parser = Parser(description=__doc__.splitlines()[0])
    out = "studies/results/pretraining_pays.json"
    add_study_arguments(parser, out=out, tasks=list(RUNS), lrs=[3e-4, 1e-3])
    study = Study(parse(parser))
    run(study)
    print(table(study.results))


if __name__ == "__main__":
    main()
