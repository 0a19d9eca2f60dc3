"""What a fine-tuned GPT-2 is compared with: models that know words, or no training.

    python -m studies.baselines bag-of-words --task sst --out figures.json
    python -m studies.baselines bigram --task sonnet --out figures.json
    python -m studies.baselines random-weights --seed 1 --out FOLDER

bag-of-words    logistic regression on word counts; of pairs, on min(a, b) and |a − b|
unigram         p(w) = (c(w) + 1) / (N + v) of the training sonnets' tokens
bigram          p(w | h) = (c(h w) + T(h) p(w)) / (c(h) + T(h)), T(h): different tokens after h
                (Witten and Bell 1991, method C, interpolated)
untrained       the model as it is, without fine-tuning
random-weights  a folder with the model's shape and tokenizer, and weights as before pre-training
"""

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from engine.errors import InputError, Parser, command
from engine.files import atomic_write
from engine.hub import load_gpt2, load_tokenizer, save_gpt2

# isort: split

import torch

from engine.devices import device_of
from engine.parallel import Worker
from engine.records import NUM_LABELS, data_file, read_pairs, read_sentiment
from models.gpt2 import GPT2Model
from programs.tasks import TASKS

# -- words -----------------------------------------------------------------------------------------


def bag_of_words(args) -> dict[str, float]:
    """Dev accuracy on word counts."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    if args.task == "sonnet":
        raise InputError("bag-of-words classifies: give --task sst, cfimdb or paraphrase")
    counts = CountVectorizer(token_pattern=r"(?u)\S+")
    paths = [Path(args.data_dir) / data_file(args.task, split) for split in ("train", "dev")]
    if args.task == "paraphrase":
        splits = [read_pairs(path, labelled=True).records for path in paths]
        counts.fit([text for r in splits[0] for text in (r.sentence1, r.sentence2)])
        features = [pair_features(counts, records) for records in splits]
    else:
        splits = [read_sentiment(path, NUM_LABELS[args.task]) for path in paths]
        counts.fit([r.text for r in splits[0]])
        features = [counts.transform([r.text for r in records]) for records in splits]
    labels = [[record.label for record in records] for records in splits]
    model = LogisticRegression(max_iter=2000).fit(features[0], labels[0])
    return {"dev_acc": float(model.score(features[1], labels[1]))}


def pair_features(counts, records):
    """Of each pair what its questions have in common, and in what they differ."""
    from scipy.sparse import hstack

    first, second = (
        counts.transform([getattr(record, f"sentence{i}") for record in records]) for i in (1, 2)
    )
    return hstack([first.minimum(second), abs(first - second)])


# -- tokens ----------------------------------------------------------------------------------------


def unigram(args) -> dict[str, float]:
    train, dev, vocabulary = sonnet_tokens(args)
    return sonnet_figures(unigram_of(train, vocabulary), dev)


def bigram(args) -> dict[str, float]:
    train, dev, vocabulary = sonnet_tokens(args)
    return sonnet_figures(bigram_of(train, unigram_of(train, vocabulary)), dev)


def unigram_of(texts: list[list[int]], vocabulary: int):
    """p(h, w), whatever h is. The first token of a text is given, and so not counted."""
    counts = Counter(token for text in texts for token in text[1:])
    total = counts.total() + vocabulary
    return lambda _, token: (counts[token] + 1) / total


def bigram_of(texts: list[list[int]], shorter):
    """p(h, w); shorter: what it falls back on."""
    pairs = Counter(pair for text in texts for pair in pairwise(text))
    followers, seen = Counter(h for h, _ in pairs), Counter()
    for (h, _), count in pairs.items():
        seen[h] += count

    def probability(h: int, token: int) -> float:
        if not seen[h]:
            return shorter(h, token)
        return (pairs[h, token] + followers[h] * shorter(h, token)) / (seen[h] + followers[h])

    return probability


def sonnet_figures(probability, texts: list[list[int]]) -> dict[str, float]:
    """Cross-entropy a token in nats, and perplexity, of the tokens that the task learns."""
    losses = [-math.log(probability(h, token)) for text in texts for h, token in pairwise(text)]
    loss = sum(losses) / len(losses)
    return {"dev_loss": loss, "dev_perplexity": math.exp(loss)}


def sonnet_tokens(args) -> tuple[list[list[int]], list[list[int]], int]:
    """(train, dev, size of the vocabulary): each sonnet's tokens, the end token included."""
    _, loaders, _ = of_task(args)
    texts = (loaders[split].dataset.token_ids for split in ("train", "dev"))
    return *texts, load_gpt2(args.model_size).config.vocab_size


def untrained(args) -> dict[str, float]:
    """The dev figures of a task's model before its first step."""
    task, loaders, settings = of_task(args)
    model, _ = task.start(settings)
    device = device_of(args.use_gpu)
    return task.evaluate(model.to(device).eval(), loaders["dev"], device)


def of_task(args):
    """(task, loaders, settings) as the task's own program has them."""
    task = TASKS[args.task]
    words = [*task.command[1:], "--model_size", args.model_size, "--data_dir", str(args.data_dir)]
    settings = task.get_args(words)
    tokenizer, config = load_tokenizer(args.model_size), load_gpt2(args.model_size).config
    worker = Worker(device_of(args.use_gpu))
    limit = config.max_position_embeddings
    return task, task.build_loaders(settings, tokenizer, limit, worker), settings


# -- weights ---------------------------------------------------------------------------------------


def random_weights(args) -> None:
    config, tokenizer = load_gpt2(args.model_size).config, load_tokenizer(args.model_size)
    torch.manual_seed(args.seed)
    save_gpt2(GPT2Model(replace(config)), args.out, end_token=tokenizer.eos_token_id)
    tokenizer.save_pretrained(args.out)


BASELINES = {
    "bag-of-words": bag_of_words,
    "unigram": unigram,
    "bigram": bigram,
    "untrained": untrained,
    "random-weights": random_weights,
}


@command
def main():
    parser = Parser(__doc__)
    parser.add_argument("baseline", choices=BASELINES)
    parser.add_argument("--task", choices=TASKS, default="sst")
    parser.add_argument("--model_size", default="gpt2-mini")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--use_gpu", action="store_true")
    parser.add_argument("--out", required=True, help="a JSON file, or the folder of a model")
    args = parser.parse_args()
    figures = BASELINES[args.baseline](args)
    if figures:
        with atomic_write(args.out) as file:
            json.dump(figures, file)
        print(", ".join(f"{name} {value:.4f}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
