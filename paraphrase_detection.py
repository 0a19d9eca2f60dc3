"""Paraphrase detection as a cloze: GPT-2 answers a question about two questions with yes or no.

p(yes) = softmax over {no, yes} of  E[no] · h_last,  E[yes] · h_last      E: tied embedding

python paraphrase_detection.py --use_gpu
"""

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

from engine.errors import InputError, Parser, command, some
from engine.files import check_writable
from engine.hub import load_tokenizer
from engine.parallel import seed_everything

# isort: split

import torch
from torch import nn
from torch.nn import functional as F

from engine.batches import TokenDataset, tokenise
from engine.checkpoint import RunFolder, load_model
from engine.extension import equip, load_extensions
from engine.flags import (
    add_data_dir,
    add_fit_arguments,
    add_max_length,
    check_fit_flags,
    fit_options,
    length_limit,
    mark_limited_outputs,
    split_loader,
    take_over,
)
from engine.hub import backbone
from engine.parallel import Worker, joined_worker
from engine.prediction_files import ANSWER_TOKENS, write_predictions, write_record
from engine.records import PairRecord, data_path, read_pairs, warn_of_rows_in_both
from engine.training import fit
from evaluation import model_eval_paraphrase, model_test_paraphrase

TASK = "paraphrase"


class ParaphraseGPT(nn.Module):
    """GPT-2 whose next token is looked at for "no" and "yes" only.

    args: those of `backbone`, and `answer_tokens`, the ids of "no" and "yes" (default GPT-2's).
    """

    reads_last_token_only = True

    def __init__(self, args):
        super().__init__()
        self.gpt = backbone(args)
        tokens = torch.tensor(list(getattr(args, "answer_tokens", ANSWER_TOKENS.values())))
        self.register_buffer("answer_tokens", tokens, persistent=False)

    def forward(self, input_ids, attention_mask):
        """(b, t) -> logits (b, 2) of "no" and "yes" after the last real token."""
        last_token = self.gpt(input_ids, attention_mask)["last_token"]
        return F.linear(last_token, self.gpt.word_embedding.weight[self.answer_tokens])


def cloze_prompt(sentence1: str, sentence2: str) -> str:
    """The text that GPT-2 continues with its answer: one template for train, dev and test."""
    return f'Is "{sentence1}" a paraphrase of "{sentence2}"?\n'


def prompt_tokens(tokenizer, records: list[PairRecord], limit: int, *, where, say) -> list:
    """Token ids of each pair's prompt; `say` gets a line about those whose questions are cut."""

    def shorten(i: int) -> list[int]:
        return shortened_prompt(tokenizer, records[i], limit)

    sent_ids = [record.sent_id for record in records]
    prompts = [cloze_prompt(record.sentence1, record.sentence2) for record in records]
    how = {"where": where, "say": say, "shorten": shorten}
    return tokenise(tokenizer, prompts, sent_ids, limit, **how)


def shortened_prompt(tokenizer, record: PairRecord, limit: int) -> list[int]:
    """A prompt of at most `limit` tokens: the longer question loses its end, then both do.

    What follows the questions stays, since the answer is read after it.
    """
    questions = [tokenizer(text)["input_ids"] for text in (record.sentence1, record.sentence2)]
    while True:
        prompt = cloze_prompt(*(tokenizer.decode(question) for question in questions))
        token_ids = tokenizer(prompt)["input_ids"]
        shorter, longer = sorted(questions, key=len)
        excess = len(token_ids) - limit
        if excess <= 0 or not longer:
            return token_ids
        del longer[-max(1, min(excess, len(longer) - len(shorter))) :]


def answer_tokens(tokenizer) -> list[int]:
    """The ids of "no" and "yes" at the start of a line."""
    tokens = [tokenizer(word)["input_ids"] for word in ("no", "yes")]
    if any(len(ids) != 1 for ids in tokens):
        raise InputError(
            f'this tokenizer cuts "no" and "yes" into {tokens}: both must be one token'
        )
    return [ids[0] for ids in tokens]


def build_model(args, pretrained: bool = True) -> ParaphraseGPT:
    """The one constructor, for training and for loading; args as in the checkpoint's settings."""
    model = ParaphraseGPT(SimpleNamespace(**vars(args), pretrained=pretrained))
    equip(model, load_extensions(args.extension))
    return model


def build_loaders(args, tokenizer, limit: int, worker: Worker) -> dict:
    """The loaders train, dev and test; only train is shuffled. Rows left out are named."""
    loaders, rows = {}, {}
    paths = {"train": args.para_train, "dev": args.para_dev, "test": args.para_test}
    for split, path in paths.items():
        pairs = read_pairs(path, labelled=split != "test")
        rows[split] = pairs.records
        if pairs.dropped:
            dropped = some(pairs.dropped)
            worker.say(f"{path}: {len(pairs.dropped)} incomplete rows are left out: {dropped}")
    warn_of_rows_in_both(rows["train"], rows["dev"], paths, worker.say)
    for split, path in paths.items():
        records = rows[split][: args.limit]
        sent_ids = [record.sent_id for record in records]
        token_ids = prompt_tokens(tokenizer, records, limit, where=path, say=worker.say)
        labels = None if split == "test" else [record.label for record in records]
        dataset = TokenDataset(token_ids, sent_ids, labels)
        loaders[split] = split_loader(args, dataset, split, worker, args.batch_size)
    return loaders


def loss_fn(logits, batch: dict):
    """Cross-entropy between "no" and "yes", summed over the batch, in nats."""
    return F.cross_entropy(logits, batch["labels"], reduction="sum")


def evaluate(model, loader, device) -> dict:
    """Accuracy and macro-F1 on the dev set."""
    accuracy, f1, *_ = model_eval_paraphrase(loader, model, device)
    return {"dev_acc": accuracy, "dev_f1": f1}


def train(args, model, loaders: dict, folder: RunFolder, worker: Worker) -> None:
    """Fine-tune; afterwards the model holds its best epoch."""
    fit(
        model,
        loaders["train"],
        loss_fn=loss_fn,
        evaluate=lambda m: evaluate(m, loaders["dev"], worker.device),
        options=fit_options(args, metric="dev_acc"),
        folder=folder,
        worker=worker,
        extensions=model.extensions,
    )


def test(args, model, loaders: dict, worker: Worker, made_by) -> None:
    """Write the answers for dev and test as GPT-2's tokens of "no" and "yes".

    made_by: the run's folder or checkpoint.
    """
    scores = evaluate(model, loaders["dev"], worker.device)
    worker.say(f"paraphrase: dev acc :: {scores['dev_acc']:.3f}, dev f1 :: {scores['dev_f1']:.3f}")
    for split, path in {"dev": args.para_dev_out, "test": args.para_test_out}.items():
        predicted, sent_ids = model_test_paraphrase(loaders[split], model, worker.device)
        if worker.is_main:
            answers = [ANSWER_TOKENS[label] for label in predicted]
            write_predictions(path, "Predicted_Is_Paraphrase", sent_ids, answers)
            write_record(made_by, path, args, {"acc": scores["dev_acc"]})
        worker.say(f"{split} predictions are in {path}")


def run(args, worker: Worker) -> None:
    """Train and predict, or only predict with `--checkpoint`."""
    for path in (args.para_dev_out, args.para_test_out):
        check_writable(path)
    seed_everything(args.seed)
    if args.checkpoint:
        made_by = args.checkpoint
        model, trained_with = load_model(made_by, TASK, build_model)
        take_over(args, trained_with)
        tokenizer = load_tokenizer(args.model_size)
    else:
        tokenizer = load_tokenizer(args.model_size)
        args.answer_tokens = answer_tokens(tokenizer)
        model = build_model(args)
        args.gpt_config = asdict(model.gpt.config)
    model.to(worker.device)
    loaders = build_loaders(args, tokenizer, length_limit(args, model), worker)
    if not args.checkpoint:
        torch.manual_seed(args.seed + worker.rank)  # dropout differs from worker to worker
        name = Path(args.model_size).name
        folder = RunFolder(args.runs_dir, TASK, name, vars(args), writes=worker.is_main)
        worker.say(f"paraphrase: lr {args.lr:g}, checkpoints in {folder.path}")
        train(args, model, loaders, folder, worker)
        made_by = folder.path
    test(args, model, loaders, worker, made_by)


def get_args(argv=None):
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--para_train", default=data_path("paraphrase", "train"))
    parser.add_argument("--para_dev", default=data_path("paraphrase", "dev"))
    parser.add_argument("--para_test", default=data_path("paraphrase", "test"))
    parser.add_argument("--para_dev_out", default="predictions/para-dev-output.csv")
    parser.add_argument("--para_test_out", default="predictions/para-test-output.csv")
    parser.add_argument("--seed", type=int, default=11711)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--use_gpu", action="store_true")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--model_size", default="gpt2", help="a size, a hub name or a folder")
    add_data_dir(parser)
    add_max_length(parser)
    add_fit_arguments(parser)
    args = parser.parse_args(argv)
    check_fit_flags(args)
    mark_limited_outputs(args, parser)
    return args


@command
def main():
    args = get_args()
    with joined_worker(args.use_gpu) as worker:
        run(args, worker)


if __name__ == "__main__":
    main()
