"""Decoding: the same model and prompts, other ways of choosing what comes next, side by side.

`--strategy NAME:OPTION=VALUE,…`, given several times to compare; p is the model's distribution, x
its logits, y what is added to a prompt.

    sample        y_t ~ p, its nucleus of mass top_p: as in sonnet_generation.py
    min_p         y_t ~ p, kept where p_i ≥ p_base · max_j p_j        Nguyen et al. 2024, section 3
    typical       y_t ~ p, kept where |H(p) + log p_i| is least       Meister et al. 2022
    best_of       argmax log p(y) / |y|^a over n samples              Adiwardana et al. 2020 (Meena)
    beam          argmax log p(y) / |y|^a, greedily over sets of beams     Freitag & Al-Onaizan 2017
    diverse_beam  groups of beams that avoid one another's tokens   Vijayakumar et al. 2016, alg. 1
    contrastive   argmax (1 − α) p(v | x) − α max_j cos(h_v, h_j)          Su et al. 2022, eq. 5
    sonnet        fourteen lines that rhyme, of about ten syllables: sonnet_form.py

The first four take `temperature` (0: the likeliest token) and `repetition` θ: x_i / θ for tokens
that were seen (Keskar et al. 2019, section 4.1). Differs from the papers in that negative logits
are multiplied by θ, where division would make a token likelier; in that the prompt counts as seen;
and in |y|^a, a plain power, for the length penalty of Wu et al. 2016, eq. 14.

    python -m extensions.decoding --checkpoint runs/sonnet-…/best.safetensors \
        --strategy sample --strategy min_p:p=0.1,temperature=1.5 --strategy sonnet --use_gpu
"""

import argparse
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from batches import collate
from checkpoint import load_model
from dataset import Record, read_sonnets
from evaluation import null_baseline, report_table, sonnet_report, write_sonnets
from extensions import sonnet_form
from extensions.decoding_search import (
    Rows,
    beam_search,
    contrastive_search,
    keep_min_p,
    keep_typical,
    repeat_less,
    sample,
)
from flags import add_data_dir, check_range, parse_options
from models.generation import choose
from parallel import joined_worker
from sonnet_generation import TASK, SonnetGPT, add_paths, build_model, prompt_dataset, read_prompts
from utils import InputError, check_writable, command, seed_everything

ABOVE_ZERO = 1e-9


@dataclass
class Job:
    """Prompts to be continued: (b, t), right-padded, and what strategies need to know."""

    model: SonnetGPT
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    most: int  # new tokens
    generator: torch.Generator | None = None
    known: tuple[Record, ...] = ()  # sonnets whose last words may end lines

    @property
    def end(self) -> int:
        return self.model.tokenizer.eos_token_id

    def rows(self, most: int | None = None) -> Rows:
        return Rows(self.model.gpt, self.input_ids, self.attention_mask, most or self.most)


class Strategy:
    """A dataclass, whose fields are the options; called with a job, it gives a text a prompt."""

    name: str

    def __call__(self, job: Job) -> list[torch.Tensor]:
        raise NotImplementedError

    def check(self, **ranges) -> None:
        """Refuse options outside low <= value <= high."""
        for option, (low, high) in ranges.items():
            value = getattr(self, option)
            if not (low <= value <= high and math.isfinite(value)):
                expected = f"from {low:g} to {high:g}" if high < math.inf else f"at least {low:g}"
                raise InputError(f"--strategy {self.name}: {option}={value}, expected {expected}")


class Drawn(Strategy):
    """Tokens are drawn from what `cut(logits, draw)` keeps, after temperature and repetition."""

    def __post_init__(self):
        self.check(temperature=(0, math.inf), repetition=(ABOVE_ZERO, math.inf))

    def draw(self, logits, generator):
        """(b, v) -> (b,); a strategy may overwrite it, or only `cut`."""
        return choose(self.cut(logits), 1.0, generator=generator)

    def cut(self, logits):
        return logits

    def pick(self, generator):
        """The function that `sample` asks for the next tokens."""

        def pick(logits, rows):
            if self.repetition != 1:
                logits = repeat_less(logits, rows.seen(logits.shape[-1]), self.repetition)
            if self.temperature == 0:
                return logits.argmax(dim=-1)
            return self.draw(logits / self.temperature, generator)

        return pick

    def __call__(self, job):
        return sample(job.rows(), self.pick(job.generator), job.end).texts()


@dataclass
class Sample(Drawn):
    name = "sample"
    temperature: float = 1.2
    top_p: float = 0.9
    top_k: int = 0
    repetition: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        self.check(top_p=(0, 1), top_k=(0, math.inf))

    def draw(self, logits, generator):
        return choose(logits, 1.0, top_k=self.top_k, top_p=self.top_p, generator=generator)


@dataclass
class MinP(Drawn):
    name = "min_p"
    p: float = 0.1
    temperature: float = 1.5
    repetition: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        self.check(p=(0, 1))

    def cut(self, logits):
        return keep_min_p(logits, self.p)


@dataclass
class Typical(Drawn):
    name = "typical"
    mass: float = 0.9
    temperature: float = 1.0
    repetition: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        self.check(mass=(ABOVE_ZERO, 1))

    def cut(self, logits):
        return keep_typical(logits, self.mass)


@dataclass
class BestOf(Sample):
    """p(y) is the model's own, whatever the draws are from."""

    name = "best_of"
    n: int = 8
    length_penalty: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        self.check(n=(1, math.inf), length_penalty=(-math.inf, math.inf))

    def __call__(self, job):
        rows = sample(job.rows().repeated(self.n), self.pick(job.generator), job.end)
        added = rows.lengths - rows.prompts
        scores = (rows.likelihood / added**self.length_penalty).view(-1, self.n)
        best = torch.arange(len(scores), device=scores.device) * self.n + scores.argmax(dim=1)
        return rows.select(best).texts()


@dataclass
class Beam(Strategy):
    name = "beam"
    beams: int = 4
    length_penalty: float = 1.0

    def __post_init__(self):
        self.check(beams=(1, math.inf), length_penalty=(-math.inf, math.inf))

    def __call__(self, job):
        found = beam_search(job.rows(), end=job.end, **vars(self))
        return [hypotheses[0].tokens for hypotheses in found]


@dataclass
class DiverseBeam(Beam):
    name = "diverse_beam"
    groups: int = 2
    diversity: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        self.check(groups=(1, self.beams), diversity=(0, math.inf))
        if self.beams % self.groups:
            raise InputError(
                f"--strategy {self.name}: beams={self.beams}, groups={self.groups}: expected "
                f"groups of equal size"
            )


@dataclass
class Contrastive(Strategy):
    name = "contrastive"
    k: int = 4
    alpha: float = 0.6

    def __post_init__(self):
        self.check(k=(1, math.inf), alpha=(0, 1))

    def __call__(self, job):
        return contrastive_search(job.rows(), end=job.end, **vars(self)).texts()


@dataclass
class Sonnet(Strategy):
    """syllables: of a line; candidates: last words that are scored in full."""

    name = "sonnet"
    temperature: float = 0.8
    top_p: float = 0.9
    syllables: int = 10
    candidates: int = 24

    def __post_init__(self):
        self.check(temperature=(0, math.inf), top_p=(0, 1))
        self.check(syllables=(4, 20), candidates=(1, math.inf))

    def __call__(self, job):
        lines = [line for sonnet in job.known for line in sonnet.text.splitlines()]
        form = sonnet_form.SonnetForm(
            job.model.tokenizer,
            job.model.gpt.config.vocab_size,
            vocabulary={sonnet_form.last_word(line) for line in lines},
            budget=self.syllables,
        )
        writer = sonnet_form.Writer(
            job.rows(len(sonnet_form.SCHEME) * sonnet_form.LINE_TOKENS),
            form.to(job.input_ids.device),
            temperature=self.temperature,
            top_p=self.top_p,
            candidates=self.candidates,
            generator=job.generator,
        )
        return writer.write().texts()


STRATEGIES = {
    kind.name: kind
    for kind in (Sample, MinP, Typical, BestOf, Beam, DiverseBeam, Contrastive, Sonnet)
}


def load_strategy(flag: str) -> Strategy:
    """`"min_p:p=0.1"` -> the strategy with these options."""
    name, _, text = flag.partition(":")
    if name not in STRATEGIES:
        raise InputError(f"--strategy {name}: there are {', '.join(STRATEGIES)}")
    kind = STRATEGIES[name]
    return kind(**parse_options(f"--strategy {name}", text, kind))


@torch.no_grad()
def complete(model, prompts: list[Record], strategy: Strategy, args, known=()) -> list[Record]:
    """The prompts' first lines continued, `--batch_size` at a time; known: sonnets."""
    dataset = prompt_dataset(model, prompts, where=args.held_out_sonnet_path)
    device = model.gpt.word_embedding.weight.device
    generator = torch.Generator(device).manual_seed(args.seed)
    model.eval()
    texts = []
    starts = range(0, len(dataset), args.batch_size)
    for start in tqdm(starts, strategy.name, leave=False, disable=None):
        stop = min(start + args.batch_size, len(dataset))
        batch = collate([dataset[i] for i in range(start, stop)])
        job = Job(
            model,
            batch["token_ids"].to(device),
            batch["attention_mask"].to(device),
            most=args.max_new_tokens,
            generator=generator,
            known=tuple(known),
        )
        texts += [model.tokenizer.decode(t, skip_special_tokens=True) for t in strategy(job)]
    return [Record(i, text.strip()) for i, text in zip(dataset.sent_ids, texts, strict=True)]


def report(sonnets: list[Record], gold: list[Record]) -> dict[str, float]:
    """`sonnet_report`, and the form's figures where the dictionary is installed."""
    figures = sonnet_report(sonnets, gold)
    try:
        return figures | sonnet_form.form_report([sonnet.text for sonnet in sonnets])
    except InputError:
        return figures


def output_path(path: str, flag: str, several: bool) -> Path:
    """The path itself; with several strategies, the strategy is added to each one's name."""
    path = Path(path)
    suffix = "-" + re.sub(r"[^\w.]+", "-", flag) if several else ""
    return path.with_name(f"{path.stem}{suffix}{path.suffix}")


def run(args, worker, say) -> None:
    """Continue the dev and held-out prompts by each strategy; compare them where gold is there."""
    strategies = {flag: load_strategy(flag) for flag in args.strategy}
    formal = any(isinstance(strategy, Sonnet) for strategy in strategies.values())
    if formal:
        sonnet_form.dictionary()
    outputs = {}
    for path in (args.dev_sonnet_out, args.sonnet_out):
        check_writable(path)
        outputs[path] = {flag: output_path(path, flag, len(strategies) > 1) for flag in strategies}
        for own in outputs[path].values():
            check_writable(own)
    has_gold = Path(args.dev_gold_path).exists()
    known = read_sonnets(args.sonnet_path) if formal or has_gold else []
    seed_everything(args.seed)
    if args.checkpoint:
        model, _ = load_model(args.checkpoint, TASK, build_model)
    else:
        model = build_model(args)
    model.to(worker.device)
    rows = {}
    for path, prompts in read_prompts(args, model).items():
        for flag, strategy in strategies.items():
            sonnets = complete(model, prompts, strategy, args, known)
            write_sonnets(outputs[path][flag], sonnets)
            say(f"{len(sonnets)} sonnets by {flag} are in {outputs[path][flag]}")
            if path == args.dev_sonnet_out and has_gold:
                gold = read_sonnets(args.dev_gold_path)[: len(sonnets)]
                rows[flag] = report(sonnets, gold)
    if rows:
        null = null_baseline(gold, known)
        rows |= {"random lines": report(null, gold), "the poet's own": report(gold, gold)}
        say(report_table(rows))
        say(f"next: python evaluation.py --gold {args.dev_gold_path} --sonnets FILE scores a file")
    else:
        say("next: python prepare_submit.py packs what is in predictions/")


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", metavar="FILE", help="a sonnet run's best.safetensors")
    parser.add_argument("--model_size", default="gpt2", help="without --checkpoint: as it is")
    parser.add_argument(
        "--strategy",
        action="append",
        metavar="NAME[:OPTION=VALUE,…]",
        help=f"may be given several times; one of {', '.join(STRATEGIES)}; default sample",
    )
    add_paths(parser)
    parser.add_argument("--seed", type=int, default=11711)
    parser.add_argument("--use_gpu", action="store_true")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="not for sonnet")
    parser.add_argument("--batch_size", type=int, default=12, help="prompts at once")
    parser.add_argument("--limit", type=int, help="use the first N prompts of each file")
    add_data_dir(parser)
    args = parser.parse_args(argv)
    args.extension = []
    args.strategy = list(dict.fromkeys(args.strategy or ["sample"]))
    for name in ("max_new_tokens", "batch_size", "limit"):
        check_range(args, name, 1)
    check_range(args, "seed", 0, 2**32 - 1)
    return args


@command
def main():
    args = get_args()
    with joined_worker(args.use_gpu) as worker:
        if worker.is_main:
            run(args, worker, print)


if __name__ == "__main__":
    main()
