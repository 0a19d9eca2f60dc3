"""GPT-2 from scratch on plain text: next-token training with the project's own model and AdamW.

    loss = −1/n Σ log p(x_i | x_<i)                         Radford et al. 2019, eq. 1, in nats

python pretrain.py --text FILE… --valid FILE --size mini --steps 3000 --out DIR

The result is a folder in HuggingFace's format, with its tokenizer: any task takes it by
--model_size DIR. An epoch of the log is `--eval_every` steps. Several GPUs: torchrun.
"""

import math
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

from engine.errors import InputError, Parser, command
from engine.files import atomic_folder, check_folder_writable
from engine.hub import load_gpt2, load_tokenizer
from engine.parallel import seed_everything, seed_worker

# isort: split

import torch

from config import SIZES, GPT2Config
from engine.batches import BatchLoader
from engine.checkpoint import RunFolder, load_model, load_trainable_state
from engine.corpus import BlockBatches, TokenBlocks, collate_blocks
from engine.extension import equip, load_extensions
from engine.flags import add_fit_arguments, add_shard, check_fit_flags, check_range, fit_options
from engine.generation import generate
from engine.inputs import run_inputs
from engine.language_model import LanguageModel, check_penalties, forward_blocks, loss_fn
from engine.parallel import Worker, joined_worker
from engine.settings import Settings
from engine.sharding import whole_gpt, whole_weights
from engine.stages import save_model, tokens_per_step, write_making
from engine.throughput import Meter, count_parameters, utilization
from engine.token_files import prepare_data
from engine.training import fit
from evaluation import cross_entropy, perplexity

TASK = "pretrain"
SHAPES = {
    "mini": GPT2Config(
        hidden_size=256, num_hidden_layers=8, num_attention_heads=4, intermediate_size=1024
    ),
    **SIZES,
}
BETAS = (0.9, 0.95)


def shape_of(args, vocab_size: int) -> GPT2Config:
    """The size that was asked for, with this vocabulary and a position for each of a block."""
    shape = SHAPES[args.size]
    return replace(
        shape,
        vocab_size=vocab_size,
        max_position_embeddings=max(args.block, shape.max_position_embeddings),
        hidden_dropout_prob=args.dropout,
        attention_probs_dropout_prob=args.dropout,
    )


def build_model(args, pretrained: bool = True) -> LanguageModel:
    """The one constructor, for training and for loading; --init names weights to begin with."""
    model = LanguageModel(SimpleNamespace(gpt_config=args.gpt_config, pretrained=False))
    if pretrained and args.init:
        start = load_gpt2(args.init)
        load_trainable_state(model.gpt, start.state_dict(), args.init)
    extensions = load_extensions(args.extension)
    check_penalties(extensions)
    equip(model, extensions)
    return model


def build_loaders(args, data: Path, worker: Worker) -> dict:
    """Batches of full blocks: train, valid (the whole file), and dev, a part of it."""
    train = TokenBlocks(data / "train.bin", args.block)
    batches = BlockBatches(
        len(train),
        args.batch_size,
        args.eval_every * args.accumulate,
        seed=args.seed,
        rank=worker.rank,
        workers=worker.world_size,
    )
    loaders = {"train": BatchLoader(train, batches, collate=collate_blocks)}
    for name, most in {"dev": args.eval_blocks, "valid": None}.items():
        blocks = TokenBlocks(data / "valid.bin", args.block, most)
        rows = list(range(len(blocks)))
        cuts = [rows[i : i + args.batch_size] for i in range(0, len(rows), args.batch_size)]
        loaders[name] = BatchLoader(blocks, cuts, collate=collate_blocks)
    return loaders


def evaluate(model, loader, device) -> dict:
    """Validation loss in nats a token, its exponential, and bits a byte of text."""
    loss = cross_entropy(model, loader, loss_fn, device, forward_blocks)
    bits = loss / math.log(2) / loader.dataset.bytes_per_token
    return {"val_loss": loss, "val_perplexity": perplexity(loss), "bits_per_byte": bits}


def sample(model: LanguageModel, tokenizer, device, *, eager: bool = False) -> str:
    """A text that begins with nothing; the same draws every time."""
    start = torch.tensor([[tokenizer.eos_token_id]], device=device)
    [tokens] = generate(
        model.gpt,
        start,
        max_new_tokens=min(60, model.gpt.config.max_position_embeddings - 1),
        temperature=0.8,
        top_p=0.95,
        end_token=tokenizer.eos_token_id,
        record=False if eager else None,
        generator=torch.Generator(device).manual_seed(0),
    )
    return tokenizer.decode(tokens[1:], skip_special_tokens=True)


def train(args, model, loaders: dict, tokenizer, folder: RunFolder, worker: Worker):
    """Train; afterwards the model holds its best epoch. Returns how it went."""
    meter = Meter(worker)
    options = fit_options(args, metric="val_loss", maximize=False)

    def evaluate_epoch(model) -> dict:
        rate = meter.tokens_per_second()
        figures = evaluate(model, loaders["dev"], worker.device)
        if math.isfinite(figures["val_loss"]):
            with whole_weights(model):
                text = sample(model, tokenizer, worker.device, eager=args.eager)
            worker.say(f"  sample: {text!r}")
        used = utilization(model, rate, args.block, worker)
        return {**figures, "tokens_per_second": rate, **used}

    return fit(
        model,
        loaders["train"].watched(meter.note),
        loss_fn=loss_fn,
        evaluate=evaluate_epoch,
        options=replace(options, betas=BETAS, one_shape=True),
        folder=folder,
        worker=worker,
        extensions=model.extensions,
        forward=forward_blocks,
    )


def run(args, worker: Worker) -> None:
    """Prepare the text, train, validate on the whole validation text, write the folder."""
    check_folder_writable(args.out)
    seed_everything(args.seed)
    data = prepare_data(args, worker)
    tokenizer = load_tokenizer(str(data))
    args = args.replace(gpt_config=asdict(shape_of(args, len(tokenizer))))
    if args.checkpoint:
        model, _ = load_model(args.checkpoint, TASK, build_model)
    else:
        model = build_model(args)
    model.to("cpu" if args.shard else worker.device)  # parts go there one by one
    loaders = build_loaders(args, data, worker)
    inputs = run_inputs(model, tokenizer, loaders)
    folder = RunFolder(args.runs_dir, TASK, args.size, args, worker.is_main, inputs)
    progress = None
    if not args.checkpoint:
        seed_worker(args.seed, worker)
        announce(args, model, loaders["train"].dataset, folder, worker)
        progress = train(args, model, loaders, tokenizer, folder, worker)
    figures = evaluate(model, loaders["valid"], worker.device)
    worker.say(", ".join(f"{key.replace('_', ' ')} :: {figures[key]:.4f}" for key in figures))
    gpt = whole_gpt(model.gpt)
    if worker.is_main:
        facts = {"train": loaders["train"].dataset.facts, "parameters": count_parameters(model)}
        figures = {"size": args.size, **facts, **figures}
        with atomic_folder(args.out) as out:
            write_making(out, args, figures, progress, worker)
            save_model(out, gpt.to(getattr(torch, args.dtype)), tokenizer)
        print(f"the model is in {args.out}: --model_size {args.out}")
        print(f"next: python classifier.py --model_size {args.out}")


def announce(args, model, blocks: TokenBlocks, folder: RunFolder, worker: Worker) -> None:
    tokens = args.steps * tokens_per_step(args, worker)
    share = tokens / (len(blocks) * args.block)
    worker.say(
        f"pretrain: {count_parameters(model) / 1e6:.1f} million parameters, {args.steps} steps of "
        f"{tokens_per_step(args, worker):,} tokens, {share:.2f} passes over the text, checkpoints "
        f"in {folder.path}"
    )


def get_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--text", nargs="+", required=True, help="UTF-8 files, also .xz or .gz")
    parser.add_argument("--valid", nargs="*", default=[], help="default: the end of --text")
    parser.add_argument("--out", required=True, help="the folder of the trained model")
    parser.add_argument("--size", choices=SHAPES, default="mini")
    parser.add_argument("--init", help="a folder or size whose weights to go on from")
    parser.add_argument("--tokenizer", help="a folder's or size's tokenizer; default: learn one")
    parser.add_argument("--vocab_size", type=int, default=8192, help="of a learnt tokenizer")
    parser.add_argument("--block", type=int, default=1024, help="tokens a block")
    parser.add_argument("--batch_size", type=int, default=8, help="blocks")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--eval_every", type=int, default=250, help="steps to an epoch of the log")
    parser.add_argument("--eval_blocks", type=int, default=64, help="of validation, each epoch")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--dropout", type=float, default=0.0, help="while pre-training")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--use_gpu", action="store_true")
    parser.add_argument("--seed", type=int, default=11711)
    add_fit_arguments(parser)
    add_shard(parser)
    parser.set_defaults(schedule="cosine", warmup=0.02, clip=1.0, weight_decay=0.1)
    args = Settings.parse(parser, argv)
    lowest = {"steps": 1, "eval_every": 1, "eval_blocks": 1, "block": 1, "vocab_size": 257}
    for name, low in lowest.items():
        check_range(args, name, low)
    check_range(args, "dropout", 0, 1)
    if args.steps % args.eval_every:
        raise InputError(f"--steps {args.steps}: expected a multiple of --eval_every")
    args = args.replace(epochs=args.steps // args.eval_every)
    check_fit_flags(args)
    return args


@command
def main():
    args = get_args()
    with joined_worker(args.use_gpu) as worker:
        run(args, worker)


if __name__ == "__main__":
    main()
