"""Small files in the course's formats, each an easy task, and programs run in this process."""

import importlib
import json
import random
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from config import GPT2Config
from engine.corpus import train_tokenizer
from engine.files import ROOT
from engine.hub import save_gpt2
from engine.parallel import Worker
from models.gpt2 import GPT2Model

COURSE_DATA = ROOT.parent / "shared" / "data"
WORKER = Worker(torch.device("cpu"))
FEELINGS = ["awful", "poor", "plain", "good", "superb"]  # one for each of SST's classes
THINGS = ["film", "plot", "cast", "scene", "joke", "score"]
VERSES = [  # no word stands in two of them: each tells the next
    "the rose is red",
    "my love burns",
    "nights grow long",
    "sweet summer days",
    "thou bright sun",
    "winter winds blow",
]
ANSWERS = {"3919", "8505"}


def write(path, text: str, encoding: str = "utf-8") -> Path:
    """Write text as it is, newlines included."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def sentiment_text(labels: int, rows: int, *, labelled: bool, seed: int = 0) -> str:
    """A sentiment file in which one word of each sentence tells its class."""
    draw = random.Random(seed)
    lines = ["\tid\tsentence\tsentiment" if labelled else "0\t\tid\tsentence"]
    for i in range(rows):
        label = i % labels
        feeling = FEELINGS[label if labels == 5 else 4 * label]
        filler = " ".join(draw.choices(THINGS, k=draw.randint(0, 4)))
        sentence = f" The {filler} was {feeling}"
        row = (
            [i, f"S{seed}x{i}", sentence, label]
            if labelled
            else [i + 1, float(i), f"t{i}", sentence]
        )
        lines.append("\t".join(map(str, row)))
    return "\n".join(lines) + "\n"


def pairs_text(rows: int, *, labelled: bool, seed: int = 0) -> str:
    """A Quora file whose paraphrases say "good" twice; after them, a row that is incomplete."""
    draw = random.Random(seed)
    lines = ["\tid\tsentence1\tsentence2" + "\tis_duplicate" * labelled]
    for i in range(rows):
        thing, feeling = draw.choice(THINGS), "Awful" if i % 2 else "Good"
        row = [i, f"Q{seed}x{i}", f"Is the {thing} good?", f"{feeling} {thing}?"]
        lines.append("\t".join(map(str, row + [float(1 - i % 2)] * labelled)))
    return "\n".join([*lines, f"{rows}\tq{seed}x{rows}\tis the film good?"]) + "\n"


def sonnets_text(numbers, *, lines: int = 14, seed: int = 0) -> str:
    """A sonnet file: preamble, then each number with its lines, the first ones of 14."""
    draw = random.Random(seed)
    drawn = [[draw.choice(VERSES) for _ in range(max(lines, 14))] for _ in numbers]
    poems = ["\n".join(verses[:lines]) for verses in drawn]
    parts = [f"{number}\n\n{poem}\n\n" for number, poem in zip(numbers, poems, strict=True)]
    return "Sonnets\nby nobody\n\n\n" + "".join(parts)


def write_course(folder, rows: int = 40) -> Path:
    """All of the course's files, small and easy, below `folder`."""
    folder = Path(folder)
    for name, labels in {"sst": 5, "cfimdb": 2}.items():
        for seed, split in enumerate(("train", "dev", "test-student")):
            labelled = split != "test-student"
            text = sentiment_text(labels, rows // (1 + seed), labelled=labelled, seed=seed)
            write(folder / f"ids-{name}-{split}.csv", text)
    for seed, split in enumerate(("train", "dev", "test-student")):
        text = pairs_text(rows // (1 + seed), labelled=split != "test-student", seed=seed)
        write(folder / f"quora-{split}.csv", text)
    write(folder / "sonnets.txt", sonnets_text(range(1, 13)))
    write(folder / "TRUE_sonnets_held_out_dev.txt", sonnets_text(range(132, 136), seed=1))
    write(folder / "sonnets_held_out_dev.txt", sonnets_text(range(132, 136), lines=3, seed=1))
    write(folder / "sonnets_held_out.txt", sonnets_text(range(152, 155), lines=3, seed=3))
    return folder


def make_gpt2(folder, texts: list[str], vocab_size: int, seed: int = 0, **shape) -> None:
    """Write a GPT-2 with random weights and its own tokenizer, in HuggingFace's format."""
    tokenizer = train_tokenizer(texts, vocab_size)
    shape = {"intermediate_size": 4 * shape["hidden_size"], **shape}
    torch.manual_seed(seed)
    save_gpt2(GPT2Model(GPT2Config(vocab_size=len(tokenizer), **shape)), folder)
    tokenizer.save_pretrained(folder)


def write_model(
    folder, *, texts=None, vocab_size=400, seed=0, dropout=0.0, positions=512, **shape
) -> Path:
    """A tiny GPT-2 whose tokenizer knows the words of these files, or of other texts."""
    words = f"{' '.join(['', *FEELINGS, *THINGS])} is the good a paraphrase of was\n" * 20
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4} | shape
    make_gpt2(
        folder,
        texts or [words, *VERSES * 20],
        vocab_size=vocab_size,
        seed=seed,
        max_position_embeddings=positions,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        **shape,
    )
    return Path(folder)


def write_adapter(folder, *, hidden: int = 32) -> Path:
    """A LoRA adapter in PEFT's files, of a GPT-2 as `write_model` writes it."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(0)
    tensors = {}
    for module, out, rank in (("attn.c_attn", 3 * hidden, 2), ("attn.c_proj", hidden, 3)):
        name = f"base_model.model.transformer.h.0.{module}"
        for part, shape in (("lora_A", (rank, hidden)), ("lora_B", (out, rank))):
            tensors[f"{name}.{part}.weight"] = 0.1 * torch.randn(shape, generator=random)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"c_proj": 3}}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def call_main(monkeypatch, program: str, *words) -> None:
    """`python program.py words…`, in this process."""
    monkeypatch.setattr(sys, "argv", [f"{program}.py", *map(str, words)])
    importlib.import_module(program).main()


def work_in(monkeypatch, folder) -> None:
    """Go into a folder; leave git and the drawing of curves out of runs."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("engine.checkpoint.current_commit", lambda: "a test")
    monkeypatch.setattr("engine.checkpoint.RunFolder.draw_curves", lambda *_: None)


def no_training(*_, **__):
    """To be set in the place of `fit`."""
    raise AssertionError("training began")


def predicted(path) -> dict[str, str]:
    """Ids and values of a prediction file, its header left out."""
    _, *rows = Path(path).read_text(encoding="utf-8").splitlines()
    return dict(row.rstrip().split(", ") for row in rows)
