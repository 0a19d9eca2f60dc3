"""Sonnet generation: GPT-2 learns sonnets and completes others from their first three lines.

loss = −Σ log p(x_i | x_<i) over the tokens of a sonnet and one end token; padding teaches nothing

python sonnet_generation.py --use_gpu
"""

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

from engine.errors import Parser, command
from engine.files import check_writable
from engine.hub import load_tokenizer
from engine.parallel import seed_everything

# isort: split

import torch
from torch import nn

from engine.batches import TokenDataset, collate, next_token_labels, next_token_loss, tokenise
from engine.checkpoint import RunFolder, load_model
from engine.extension import equip, load_extensions
from engine.fast.compiling import CUDA_GRAPHS
from engine.flags import (
    add_data_dir,
    add_fit_arguments,
    add_max_length,
    check_fit_flags,
    check_range,
    fit_options,
    length_limit,
    mark_limited_outputs,
    split_loader,
    take_over,
)
from engine.generation import generate
from engine.hub import backbone
from engine.parallel import Worker, joined_worker
from engine.prediction_files import write_record, write_sonnets
from engine.records import Record, data_path, read_sonnets
from engine.sonnets import partners, prompt_text, split_sonnets
from engine.training import fit
from evaluation import cross_entropy, null_baseline, perplexity, report_table, sonnet_report

TASK = "sonnet"


class SonnetGPT(nn.Module):
    """GPT-2 as a language model, with its tokenizer. args: those of `backbone`."""

    def __init__(self, args):
        super().__init__()
        self.gpt = backbone(args)
        self.tokenizer = load_tokenizer(getattr(args, "model_size", "gpt2"))

    def forward(self, input_ids, attention_mask):
        """(b, t) -> logits (b, t, v) of each position's next token."""
        hidden_states = self.gpt(input_ids, attention_mask)["last_hidden_state"]
        return self.gpt.hidden_state_to_token(hidden_states)

    def generate(self, encoding, temperature=0.7, top_p=0.9, max_length=128):
        """Continue one text by at most max_length tokens: (token_ids (1, t), text).

        encoding: token ids (1, t), or the tokenizer's dict of them.
        """
        input_ids = encoding if isinstance(encoding, torch.Tensor) else encoding["input_ids"]
        [tokens] = generate(
            self.gpt,
            input_ids.to(self.gpt.word_embedding.weight.device),
            max_new_tokens=max_length,
            temperature=temperature,
            top_p=top_p,
            end_token=self.tokenizer.eos_token_id,
        )
        return tokens[None], self.tokenizer.decode(tokens, skip_special_tokens=True)


def complete(model: SonnetGPT, prompts: list[Record], args) -> list[Record]:
    """Continue all prompts in one batch; sampling is determined by the seed."""
    dataset = prompt_dataset(model, prompts, where=args.held_out_sonnet_path)
    batch = collate([dataset[i] for i in range(len(dataset))])
    device = model.gpt.word_embedding.weight.device
    tokens = generate(
        model.gpt,
        batch["token_ids"].to(device),
        batch["attention_mask"].to(device),
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        end_token=model.tokenizer.eos_token_id,
        cuda_graph=args.compile == CUDA_GRAPHS,
        generator=torch.Generator(device).manual_seed(args.seed),
    )
    completed = [model.tokenizer.decode(row, skip_special_tokens=True).strip() for row in tokens]
    return [Record(i, text) for i, text in zip(dataset.sent_ids, completed, strict=True)]


def prompt_dataset(model: SonnetGPT, prompts: list[Record], where) -> TokenDataset:
    """The first three lines of each prompt; one that leaves no position to go on is an error."""
    texts = [prompt_text(prompt) for prompt in prompts]
    sent_ids = [prompt.sent_id for prompt in prompts]
    limit = model.gpt.config.max_position_embeddings - 1
    return TokenDataset(tokenise(model.tokenizer, texts, sent_ids, limit, where=where), sent_ids)


def build_model(args, pretrained: bool = True) -> SonnetGPT:
    """The one constructor, for training and for loading; args as in the checkpoint's settings."""
    model = SonnetGPT(SimpleNamespace(**vars(args), pretrained=pretrained))
    equip(model, load_extensions(args.extension))
    return model


def build_loaders(args, tokenizer, limit: int, worker: Worker) -> dict:
    """The loaders train and dev; a sonnet ends with one end token, which is learnt.

    One that is longer than `limit` keeps its first tokens, and no end.
    """
    loaders = {}
    paths = {"train": args.sonnet_path, "dev": args.dev_gold_path}
    for split, sonnets in split_sonnets(args, worker.say).items():
        sent_ids = [sonnet.sent_id for sonnet in sonnets]
        texts = [sonnet.text for sonnet in sonnets]
        where = {"where": paths[split], "say": worker.say}
        bare = tokenise(tokenizer, texts, sent_ids, limit, **where)
        token_ids = [[*ids, tokenizer.eos_token_id][:limit] for ids in bare]
        dataset = TokenDataset(token_ids, sent_ids, [next_token_labels(ids) for ids in token_ids])
        loaders[split] = split_loader(
            args, dataset, split, worker, args.batch_size, judged=args.batch_size
        )
    return loaders


def loss_fn(logits, batch: dict):
    """Next-token cross-entropy summed over the real tokens, in nats."""
    return next_token_loss(logits, batch["labels"], reduction="sum")


def evaluate(model, loader, device) -> dict:
    """Cross-entropy a token on the dev sonnets, and its exponential."""
    loss = cross_entropy(model, loader, loss_fn, device)
    return {"dev_loss": loss, "dev_perplexity": perplexity(loss)}


def train(args, model, loaders: dict, folder: RunFolder, worker: Worker) -> None:
    """Fine-tune; afterwards the model holds the epoch of the lowest dev loss."""
    fit(
        model,
        loaders["train"],
        loss_fn=loss_fn,
        evaluate=lambda m: evaluate(m, loaders["dev"], worker.device),
        options=fit_options(args, metric="dev_loss", maximize=False),
        folder=folder,
        worker=worker,
        extensions=model.extensions,
    )


def read_prompts(args, model: SonnetGPT) -> dict[str, list[Record]]:
    """The prompts of each output path; what is wrong with them is said before training."""
    paths = {
        args.dev_sonnet_out: args.dev_sonnet_path,
        args.sonnet_out: args.held_out_sonnet_path,
    }
    prompts = {output: read_sonnets(path) for output, path in paths.items()}
    for output, path in paths.items():
        prompt_dataset(model, prompts[output], where=path)
    if dev_gold(args):
        random_lines(args, prompts[args.dev_sonnet_out])
    return {output: records[: args.limit] for output, records in prompts.items()}


def dev_gold(args) -> list[Record]:
    """The full text of the dev prompts, in their order; [] without the file of it."""
    if not Path(args.dev_gold_path).exists():
        return []
    prompts, gold = read_sonnets(args.dev_sonnet_path), read_sonnets(args.dev_gold_path)
    return partners(prompts, gold, args.dev_sonnet_path, args.dev_gold_path)[: args.limit]


def random_lines(args, prompts: list[Record]) -> list[Record]:
    """The null baseline of these prompts, out of the training sonnets."""
    return null_baseline(prompts, read_sonnets(args.sonnet_path), where=args.sonnet_path)


def test(args, model, prompts: dict[str, list[Record]], worker: Worker, made_by) -> None:
    """Complete the dev and the held-out prompts; score dev where its full sonnets are there.

    made_by: the run's folder or checkpoint.
    """
    figures = {}
    for path, records in prompts.items():
        sonnets = complete(model, records, args)
        if not worker.is_main:
            continue
        write_sonnets(path, sonnets)
        print(f"{len(sonnets)} sonnets are in {path}")
        if path == args.dev_sonnet_out and (gold := dev_gold(args)):
            systems = {"generated": sonnets, "random lines": random_lines(args, records)}
            rows = {name: sonnet_report(texts, gold, records) for name, texts in systems.items()}
            print(report_table(rows))
            figures = {"chrF": rows["generated"]["chrf"]}
        write_record(made_by, path, args, figures)


def run(args, worker: Worker) -> None:
    """Train and generate, or only generate with `--checkpoint`."""
    for path in (args.sonnet_out, args.dev_sonnet_out):
        check_writable(path)
    seed_everything(args.seed)
    if args.checkpoint:
        made_by = args.checkpoint
        model, trained_with = load_model(made_by, TASK, build_model)
        take_over(args, trained_with)
    else:
        model = build_model(args)
        args.gpt_config = asdict(model.gpt.config)
    model.to(worker.device)
    prompts = read_prompts(args, model)
    if not args.checkpoint:
        loaders = build_loaders(args, model.tokenizer, length_limit(args, model), worker)
        torch.manual_seed(args.seed + worker.rank)  # dropout differs from worker to worker
        name = Path(args.model_size).name
        folder = RunFolder(args.runs_dir, TASK, name, vars(args), writes=worker.is_main)
        worker.say(f"sonnet: lr {args.lr:g}, checkpoints in {folder.path}")
        train(args, model, loaders, folder, worker)
        made_by = folder.path
    test(args, model, prompts, worker, made_by)


def add_split_paths(parser) -> None:
    """The files that `split_sonnets` reads."""
    parser.add_argument("--sonnet_path", default=data_path(TASK, "train"))
    parser.add_argument("--held_out_sonnet_path", default=data_path(TASK, "test"))
    parser.add_argument("--dev_gold_path", default=data_path(TASK, "gold"))


def add_paths(parser) -> None:
    """The files of this task."""
    add_split_paths(parser)
    parser.add_argument("--dev_sonnet_path", default=data_path(TASK, "dev"))
    parser.add_argument("--sonnet_out", default="predictions/generated_sonnets.txt")
    parser.add_argument("--dev_sonnet_out", default="predictions/generated_sonnets_dev.txt")


def add_sampling(parser) -> None:
    """How `complete` draws; `check_sampling` refuses what makes no sense."""
    parser.add_argument("--temperature", type=float, default=1.2, help="0: greedy")
    parser.add_argument(
        "--top_p", type=float, default=0.9, help="nucleus sampling's share; 0: greedy"
    )
    parser.add_argument("--top_k", type=int, default=0, help="0: no cut")
    parser.add_argument("--max_new_tokens", type=int, default=256)


def check_sampling(args) -> None:
    check_range(args, "temperature", 0)
    check_range(args, "top_p", 0, 1)
    check_range(args, "top_k", 0)
    check_range(args, "max_new_tokens", 1)


def get_args(argv=None):
    parser = Parser(description=__doc__.splitlines()[0])
    add_paths(parser)
    parser.add_argument("--seed", type=int, default=11711)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--use_gpu", action="store_true")
    add_sampling(parser)
    parser.add_argument(
        "--patience", type=int, default=3, help="epochs without a better one; 0: never stop"
    )
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--model_size", default="gpt2", help="a size, a hub name or a folder")
    add_data_dir(parser)
    add_max_length(parser)
    add_fit_arguments(parser)
    args = parser.parse_args(argv)
    check_fit_flags(args)
    check_sampling(args)
    check_range(args, "patience", 0)
    mark_limited_outputs(args, parser)
    return args


@command
def main():
    args = get_args()
    with joined_worker(args.use_gpu) as worker:
        run(args, worker)


if __name__ == "__main__":
    main()
