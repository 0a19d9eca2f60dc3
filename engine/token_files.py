"""The files of a pre-training run: its tokenizer, and the tokens of train and valid, made once."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

from engine.corpus import (
    check_tokens,
    documents,
    save_tokenizer,
    split_texts,
    train_tokenizer,
    write_tokens,
)
from engine.errors import InputError
from engine.files import atomic_write, remove_leftovers
from engine.hub import load_tokenizer
from engine.parallel import Worker, barrier
from engine.run_lock import RunLock
from engine.texts import SpooledTexts

MANY = 100  # documents, of which the last hundredth is one or more


def prepare_data(args, worker: Worker) -> Path:
    """The folder with the tokenizer and the token files, made on the first use; returns it.

    Its name carries a hash of what goes into it, so that another text gets another folder.
    """
    files = [Path(name) for name in [*args.text, *args.valid]]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: no such file: give text files by --text and --valid")
    facts = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    key = repr((facts, len(args.text), args.tokenizer, args.vocab_size, args.limit))
    folder = Path(args.runs_dir) / f"tokens-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    if worker.is_main:
        if not (folder / "valid.json").exists():
            check_texts(args)
        with RunLock(folder, wait=True):
            remove_leftovers(folder)
            if not (folder / "valid.json").exists():
                write_data(args, folder, worker.say)
        vocab_size = len(load_tokenizer(str(folder)))
        for name in ("train", "valid"):
            check_tokens(folder / f"{name}.bin", vocab_size)
    barrier(worker)
    return folder


def check_texts(args) -> None:
    """Refuse files without a document."""
    for files in filter(None, (args.text, args.valid)):
        if next(documents(files), None) is None:
            raise InputError(f"{', '.join(files)}: no text, expected a document: give other files")


def write_data(args, folder: Path, say: Callable) -> None:
    """Read the texts; learn or copy the tokenizer, and write the tokens of train and valid."""
    with contextlib.ExitStack() as stack:
        text, valid = (
            stack.enter_context(SpooledTexts(islice(documents(files), args.limit), folder))
            for files in (args.text, args.valid)
        )
        write_splits(args, folder, text, valid, say)


def write_splits(args, folder: Path, text: SpooledTexts, valid: SpooledTexts, say: Callable):
    """All files of a folder; valid may be empty."""
    count = len(text)
    if not len(valid):
        end = f"{count // MANY} of the documents are" if count >= MANY else "tenth of the tokens is"
        say(f"no --valid: the last {end} kept out for validation; documents: {count}")
    if args.tokenizer:
        tokenizer = load_tokenizer(args.tokenizer)
    else:
        say(f"learning a tokenizer of {args.vocab_size} tokens from the training text")
        tokenizer = train_tokenizer(split(text, valid)["train"], args.vocab_size)
    save_tokenizer(tokenizer, folder)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eos_token_id)
    with atomic_write(folder / "config.json") as file:  # load_tokenizer asks for it
        json.dump({"model_type": "gpt2", "vocab_size": len(tokenizer), **ends}, file)
    for name, texts in split(text, valid, tokenizer).items():
        write_tokens(folder / f"{name}.bin", tokenizer, texts)


def split(text: SpooledTexts, valid: SpooledTexts, tokenizer=None) -> dict[str, Iterable[str]]:
    """The texts of train and valid.

    Without a validation text, the last hundredth of the documents is valid; if that is less than
    one, the last tenth of their tokens (or characters, as long as there is no tokenizer).
    """
    count = len(text)
    if len(valid):
        return {"train": text.part(), "valid": valid.part()}
    if count < MANY:
        before, after = split_texts(list(text.part()), 0.9, tokenizer)
        return {"train": before, "valid": after}
    first = count - count // MANY
    return {"train": text.part(0, first), "valid": text.part(first)}
