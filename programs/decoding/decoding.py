"""Decoding: the same model and prompts, other ways of choosing what comes next, side by side.

`--strategy NAME:OPTION=VALUE,…`, given several times to compare; p is the model's distribution, x
its logits, y what is added to a prompt.

    sample        y_t ~ p, its nucleus of mass top_p: as in sonnet_generation.py
    speculative   the same, written ahead by --draft: speculative.py       Leviathan et al. 2023
    min_p         y_t ~ p, kept where p_i ≥ p_base · max_j p_j        Nguyen et al. 2024, section 3
    typical       y_t ~ p, kept where |H(p) + log p_i| is least       Meister et al. 2022
    best_of       argmax log p(y) / |y|^a over n samples              Adiwardana et al. 2020 (Meena)
    beam          argmax log p(y) / |y|^a, greedily over sets of beams     Freitag & Al-Onaizan 2017
    diverse_beam  groups of beams that avoid one another's tokens   Vijayakumar et al. 2016, alg. 1
    contrastive   argmax (1 − α) p(v | x) − α max_j cos(h_v, h_j)          Su et al. 2022, eq. 5
    sonnet        fourteen lines that rhyme, of about ten syllables: sonnet_form.py

The first five take `temperature` (0: the likeliest token), and all of them but `speculative` take
`repetition` θ: x_i / θ for tokens that were seen (Keskar et al. 2019, section 4.1).
Differs from the papers in that negative logits are multiplied by θ, where division would make a
token likelier; in that the prompt counts as seen; and in |y|^a, a plain power, for the length
penalty of Wu et al. 2016, eq. 14.

Finished batches are kept in a file beside --sonnet_out until all are: --resume goes on from there.

    python -m programs.decoding --checkpoint runs/sonnet-…/best.safetensors \
        --strategy sample --strategy min_p:p=0.1,temperature=1.5 --strategy sonnet --use_gpu
"""

import re
from functools import partial
from pathlib import Path

from engine.errors import InputError, Parser, command
from engine.files import check_writable
from engine.parallel import seed_everything

# isort: split

import torch

from engine.batches import collate
from engine.completion import prompt_dataset, read_prompts
from engine.flags import add_data_dir, check_range, in_data_dir, with_limited_outputs
from engine.parallel import joined_worker
from engine.prediction_files import write_record, write_sonnets
from engine.records import Record, read_sonnets
from engine.settings import Settings
from engine.sonnets import dev_gold, random_lines
from evaluation import report_table, sonnet_report
from programs.decoding import sonnet_form
from programs.decoding.named import STRATEGIES, Speculative, load_strategy
from programs.decoding.speculative import check_draft
from programs.decoding.strategies import Job, Sonnet, Strategy
from programs.unfinished_work import Unfinished, digest, weights_digest
from sonnet_generation import TASK, add_paths

DECISIVE = ("strategy", "seed", "max_new_tokens", "batch_size")  # flags: of the texts, all of them


@torch.no_grad()
def complete(
    model, prompts: list[Record], strategy: Strategy, args, *, known=(), in_parts=None, draft=None
) -> list[Record]:
    """The prompts' first lines continued, `--batch_size` at a time; known: sonnets.

    A batch has a seed of its own, so that its draws are the same whatever was drawn before.
    in_parts: an `Unfinished.made` that keeps each batch under the strategy's name.
    """
    dataset = prompt_dataset(model, prompts, where=args.held_out_sonnet_path)
    device = model.gpt.word_embedding.weight.device
    for read in filter(None, (model, draft)):
        read.eval()

    def make(rows: list[dict], start: int) -> list[str]:
        batch = collate(rows)
        job = Job(
            model,
            batch["token_ids"].to(device),
            batch["attention_mask"].to(device),
            most=args.max_new_tokens,
            generator=torch.Generator(device).manual_seed(args.seed + start),
            known=tuple(known),
            draft=draft,
        )
        texts = [model.tokenizer.decode(t, skip_special_tokens=True) for t in strategy(job)]
        return [text.strip() for text in texts]

    in_parts = in_parts or partial(Unfinished().made, strategy.name)
    rows = [dataset[i] for i in range(len(dataset))]
    texts = in_parts(rows, size=args.batch_size, make=make)
    return [Record(i, text) for i, text in zip(dataset.sent_ids, texts, strict=True)]


def report(sonnets: list[Record], gold: list[Record], prompts: list[Record]) -> dict[str, float]:
    """`sonnet_report`, and the form's figures where the dictionary is installed."""
    figures = sonnet_report(sonnets, gold, prompts)
    if without_dictionary():
        return figures
    return figures | sonnet_form.form_report([sonnet.text for sonnet in sonnets])


def without_dictionary() -> str:
    """Why rhymes and syllables cannot be counted; empty if they can."""
    try:
        sonnet_form.dictionary()
    except InputError as error:
        return str(error)
    return ""


def output_path(path: str, flag: str, several: bool) -> Path:
    """The path itself; with several strategies, the strategy is added to each one's name."""
    path = Path(path)
    suffix = "-" + re.sub(r"[^\w.]+", "-", flag) if several else ""
    return path.with_name(f"{path.stem}{suffix}{path.suffix}")


def output_paths(args) -> dict[str, dict[str, Path]]:
    """By the path that was asked for and by strategy; all of them can be written."""
    outputs = {}
    for path in (args.dev_sonnet_out, args.sonnet_out):
        check_writable(path)
        several = len(args.strategy) > 1
        outputs[path] = {flag: output_path(path, flag, several) for flag in args.strategy}
        for own in outputs[path].values():
            check_writable(own)
    return outputs


def start_draft(args, model):
    """The model of --draft, which writes ahead for the other one; None without the flag."""
    if not args.draft:
        return None
    draft, _ = TASK.load(args.draft)
    check_draft(args.draft, draft, model)
    return draft.to(model.gpt.word_embedding.weight.device)


def start_work(args, model, prompts: dict, known, draft=None) -> Unfinished:
    """Beside --sonnet_out; with --resume, what an interrupted run of the same work has left."""
    out = Path(args.sonnet_out)
    work = {name: getattr(args, name) for name in DECISIVE}
    work |= {
        "model": weights_digest(model),
        "device": model.gpt.word_embedding.weight.device.type,
        "prompts": digest(*prompts.values()),
        "sonnets": digest(*known),
    } | ({"draft": weights_digest(draft)} if draft else {})
    return Unfinished(out.with_name(f"{out.stem}-unfinished.jsonl"), work, resume=args.resume)


def start_model(args, device):
    if args.checkpoint:
        model, _ = TASK.load(args.checkpoint)
    else:
        model, _ = TASK.start(args)
    return model.to(device)


def run(args, worker, say) -> None:
    """Continue the dev and held-out prompts by each strategy; compare them where gold is there."""
    strategies = {flag: load_strategy(flag) for flag in args.strategy}
    formal = any(isinstance(strategy, Sonnet) for strategy in strategies.values())
    if formal:
        sonnet_form.dictionary()
    outputs = output_paths(args)
    known = read_sonnets(args.sonnet_path) if formal else []
    seed_everything(args.seed)
    model = start_model(args, worker.device)
    draft, prompts = start_draft(args, model), read_prompts(args, model)
    gold, work = dev_gold(args), start_work(args, model, prompts, known, draft)
    if args.resume:
        say(f"resumed: {len(work)} sonnets are there already")
    else:
        say(f"after an interruption, --resume goes on from {work.path}")
    rows = {}
    for split, path in TASK.outputs(args).items():
        records = prompts[split]
        for flag, strategy in strategies.items():
            in_parts = partial(work.made, f"{flag}, {split}")
            how = {"known": known, "in_parts": in_parts, "draft": draft}
            sonnets = complete(model, records, strategy, args, **how)
            write_sonnets(outputs[path][flag], sonnets)
            say(f"{len(sonnets)} sonnets by {flag} are in {outputs[path][flag]}")
            if split == "dev" and gold:
                rows[flag] = report(sonnets, gold, records)
            figures = {"chrF": rows[flag]["chrf"]} if flag in rows else {}
            if args.checkpoint:
                write_record(args.checkpoint, outputs[path][flag], args, figures)
    for flag, strategy in strategies.items():
        if isinstance(strategy, Speculative):
            say(f"{flag}: {strategy.tally}")
    if gold:
        dev = prompts["dev"]
        for name, texts in (("random lines", random_lines(args, dev)), ("the poet's own", gold)):
            rows[name] = report(texts, gold, dev)
        say(report_table(rows))
        if reason := without_dictionary():
            say(f"rhymes and syllables are not counted: {reason}")
        files = f"--gold {args.dev_gold_path} --prompts {args.dev_sonnet_path}"
        say(f"next: python evaluation.py {files} --sonnets FILE scores a file")
    else:
        say("next: python prepare_submit.py packs what is in predictions/")
    work.remove()


def get_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--checkpoint", metavar="FILE", help="a sonnet run's best.safetensors")
    parser.add_argument("--draft", metavar="FILE", help="speculative: a smaller model's best file")
    parser.add_argument("--model_size", default="gpt2", help="without --checkpoint: as it is")
    parser.add_argument(
        "--strategy",
        action="append",
        metavar="NAME[:OPTION=VALUE,…]",
        help=f"may be given several times; one of {', '.join(STRATEGIES)}; default sample",
    )
    add_paths(parser)
    parser.add_argument("--resume", action="store_true", help="go on with the run of these flags")
    parser.add_argument("--seed", type=int, default=11711)
    parser.add_argument("--use_gpu", action="store_true")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="not for sonnet")
    parser.add_argument("--batch_size", type=int, default=12, help="prompts at once, kept together")
    parser.add_argument("--limit", type=int, help="use the first N prompts of each file")
    add_data_dir(parser)
    args = in_data_dir(Settings.parse(parser, argv))
    strategies = list(dict.fromkeys(args.strategy or ["sample"]))
    args = args.replace(extension=[], strategy=strategies)
    for name in ("max_new_tokens", "batch_size", "limit"):
        check_range(args, name, 1)
    check_range(args, "seed", 0, 2**32 - 1)
    ahead = any(flag.partition(":")[0] == Speculative.name for flag in strategies)
    if ahead != bool(args.draft):
        raise InputError("--strategy speculative and --draft FILE: expected both, or none of them")
    return with_limited_outputs(args)


@command
def main():
    args = get_args()
    with joined_worker(args.use_gpu) as worker:
        if worker.is_main:
            run(args, worker, print)
