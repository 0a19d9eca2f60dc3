"""What a model predicts and how good that is: accuracy, F1, perplexity, chrF, the form of sonnets.

    python evaluation.py --sonnets predictions/generated_sonnets_dev.txt \
                         --gold data/TRUE_sonnets_held_out_dev.txt \
                         --prompts data/sonnets_held_out_dev.txt
"""

from engine.errors import Parser, command

# isort: split

import torch

from engine.batches import count_targets, forward_tokens
from engine.predicting import accuracy_and_f1, outputs, predict
from engine.records import Record, data_path, read_sonnets
from engine.sonnets import continuation, null_baseline, opening_lines, partners, verses


def model_eval_paraphrase(dataloader, model, device):
    """The course's signature: (accuracy, macro-F1, y_pred, y_true, sent_ids), classes 0 and 1."""
    predictions = predict(model, dataloader, device)
    scores = accuracy_and_f1(predictions)
    return (
        scores["acc"],
        scores["f1"],
        predictions.predicted,
        predictions.labels,
        predictions.sent_ids,
    )


def model_test_paraphrase(dataloader, model, device):
    """The course's signature for rows without labels: (y_pred, sent_ids)."""
    predictions = predict(model, dataloader, device)
    return predictions.predicted, predictions.sent_ids


def cross_entropy(model, loader, loss_fn, device, forward=forward_tokens) -> float:
    """Mean loss a target over a loader, in nats; its exponential is the perplexity."""
    losses, targets = [], 0
    for batch, loss in outputs(model, loader, device, lambda b: loss_fn(forward(model, b), b)):
        targets += count_targets(batch)
        losses.append(loss)
    return sum(torch.stack(losses).tolist()) / targets


def perplexity(loss: float) -> float:
    """exp of a mean loss in nats a token; infinite where no float is as large."""
    return float(torch.tensor(loss, dtype=torch.float64).exp())


def test_sonnet(
    test_path="predictions/generated_sonnets.txt", gold_path="data/TRUE_sonnets_held_out.txt"
) -> float:
    """chrF, 0 to 100, of whole sonnets, the given lines included: the course's way of scoring."""
    generated = read_sonnets(test_path)
    gold = partners(generated, read_sonnets(gold_path), test_path, gold_path)
    return chrf(list(zip(generated, gold, strict=True)))


def chrf(pairs: list[tuple[Record, Record]]) -> float:
    """Corpus chrF of (generated, gold) texts: Popović 2015, through sacrebleu."""
    from sacrebleu.metrics import CHRF

    generated, gold = [a.text for a, _ in pairs], [b.text for _, b in pairs]
    return CHRF().corpus_score(generated, [gold]).score


def distinct_n(sonnets: list[Record], n: int) -> float:
    """Different n-grams of words over all of them: Li et al. 2016, section 5.2."""
    grams = []
    for sonnet in sonnets:
        words = sonnet.text.lower().split()
        grams += zip(*(words[i:] for i in range(n)), strict=False)
    return len(set(grams)) / max(len(grams), 1)


def sonnet_report(
    generated: list[Record], gold: list[Record], prompts: list[Record] | None = None
) -> dict[str, float]:
    """chrF of whole sonnets and of the continuations alone, lines a sonnet, distinct-1 and -2.

    gold and prompts are in the order of `generated`; prompts None: gold's three opening lines.
    """
    given = [len(opening_lines(prompt)) for prompt in prompts or gold]
    added, expected = (
        [continuation(sonnet, n) for sonnet, n in zip(sonnets, given, strict=True)]
        for sonnets in (generated, gold)
    )
    lines = [len(verses(sonnet.text)) for sonnet in generated]
    return {
        "chrf": chrf(list(zip(generated, gold, strict=True))),
        "chrf_continuation": chrf(list(zip(added, expected, strict=True))),
        "lines_mean": sum(lines) / len(lines),
        "lines_14_share": sum(count == 14 for count in lines) / len(lines),
        "distinct_1": distinct_n(added, 1),
        "distinct_2": distinct_n(added, 2),
    }


def report_table(rows: dict[str, dict[str, float]]) -> str:
    """A plain table, one line a system."""
    columns = list(next(iter(rows.values())))
    width = max(len(name) for name in rows)
    lines = [" " * width + "  " + "  ".join(f"{column:>7}" for column in columns)]
    for name, row in rows.items():
        cells = "  ".join(f"{row[column]:{max(len(column), 7)}.3f}" for column in columns)
        lines.append(f"{name:{width}}  {cells}")
    return "\n".join(lines)


@command
def main():
    parser = Parser(__doc__, description="Score generated sonnets against the true ones.")
    parser.add_argument("--sonnets", default="predictions/generated_sonnets_dev.txt")
    parser.add_argument("--gold", default=data_path("sonnet", "gold"))
    parser.add_argument("--prompts", help="the given lines; default: the first three of --gold")
    parser.add_argument(
        "--training", default=data_path("sonnet", "train"), help="for the null baseline"
    )
    args = parser.parse_args()
    generated = read_sonnets(args.sonnets)
    gold = partners(generated, read_sonnets(args.gold), args.sonnets, args.gold)
    prompts = gold
    if args.prompts:
        prompts = partners(generated, read_sonnets(args.prompts), args.sonnets, args.prompts)
    null = null_baseline(prompts, read_sonnets(args.training), where=args.training)
    systems = {args.sonnets: generated, "random lines": null}
    rows = {name: sonnet_report(texts, gold, prompts) for name, texts in systems.items()}
    print(report_table(rows))
    print("next: python prepare_submit.py packs what is in predictions/")


if __name__ == "__main__":
    main()
