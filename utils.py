"""Small shared things: errors for people, seeds, devices, tokenizers, masks, atomic files."""

import argparse
import contextlib
import ctypes
import difflib
import functools
import glob
import importlib
import json
import os
import platform
import random
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from config import SIZES

ROOT = Path(__file__).resolve().parent
GLIBC_KEEPS = {-4: 0, -1: -1}  # M_MMAP_MAX: none; M_TRIM_THRESHOLD: never, see mallopt(3)
BUNDLED = {"gpt2-mini": ROOT / "pretrained" / "gpt2-mini"}
NOT_BEGUN = "interrupted: nothing was begun"
PATIENCE = 10  # seconds in which torchrun's first process should have failed like another one
ORGANISATION = "openai-community/"  # the hub knows the published sizes with and without it


class InputError(Exception):
    """Something outside the program is wrong: a file, a flag, a machine.

    The message is for the person at the keyboard, on one line: which file and line, what was
    found, what was expected, what to do. Programs print it and exit with code 2 (`command`).
    """


def some(names: list[str], shown: int = 5) -> str:
    """The first of many names, and how many more there are, for a message."""
    more = f", … {len(names) - shown} more" if len(names) > shown else ""
    return (", ".join(names[:shown]) or "none") + more


class Parser(argparse.ArgumentParser):
    """A program's flags; a wrong one is an InputError, and so one line."""

    def error(self, message: str):
        raise InputError(f"{message}: see --help")


def command(main):
    """Decorate a program's `main`: people's errors become one line on stderr and exit code 2."""

    @functools.wraps(main)
    def run(*args, **kwargs):
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # notebooks' have not
                stream.reconfigure(errors="replace")  # what a terminal cannot show ends no run
        if _interrupt.came:
            leave(NOT_BEGUN, 130)
        try:
            return main(*args, **kwargs)
        except InputError as error:
            message = str(error)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            message = f"{where}{error.strerror or error}: free or choose another place, then repeat"
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's, which need not be loaded
                raise
            message = "out of memory: give a smaller --batch_size or --model_size"
        except KeyboardInterrupt:
            leave("interrupted: what was saved is whole; a run goes on by --resume", 130)
        leave(f"error: {message}", 2)

    return run


def leave(message: str, code: int):
    """Exit with a line on stderr; of processes that leave alike, only torchrun's first prints it.

    The others wait: if the first one leaves, too, torchrun ends them. If it does not, the error
    was theirs alone.
    """
    if int(os.environ.get("RANK", 0)) > 0:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(code))
        time.sleep(PATIENCE)
    print(message, file=sys.stderr)
    sys.exit(code)


def _interrupt(number, frame) -> None:
    """Ctrl-C as ever, and noted: packages in C may fail by it in other words, or swallow it."""
    _interrupt.came = True
    signal.default_int_handler(number, frame)


def _end_imports(kind, error, trace) -> None:
    """An error that nobody caught: of a Ctrl-C while a program imports, one line."""
    if hasattr(sys, "ps1") or not (_interrupt.came or issubclass(kind, KeyboardInterrupt)):
        sys.__excepthook__(kind, error, trace)  # ps1: somebody types into Python itself
    else:
        leave(NOT_BEGUN, 130)


_interrupt.came = False
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    if threading.current_thread() is threading.main_thread():  # others may not
        signal.signal(signal.SIGINT, _interrupt)
    sys.excepthook = _end_imports


def optional(module: str, who: str):
    """Import a module of a package that requirements.txt leaves out; `who` needs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:  # of the package, or of one that it needs itself
        package = (error.name or module).partition(".")[0]
        raise InputError(f"{who} needs {package}: pip install {package}") from error


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for its next tensors; glibc only.

    Otherwise large tensors go back to the system when they are freed, and the next ones come page
    by page, each page zeroed: a seventh of the time of a step of GPT-2 on a CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in GLIBC_KEEPS.items():
            libc.mallopt(parameter, value)


def seed_everything(seed: int = 11711) -> None:
    """Seed Python, NumPy and torch, and ask cuDNN for its deterministic kernels."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def model_size_to_params(model_size: str) -> dict:
    """The keyword arguments `d, l, num_heads` of a size name, for `GPT2Model.from_pretrained`.

    A folder or a name outside the published sizes gives {}: the checkpoint says its own shape.
    """
    if model_size not in SIZES:
        return {}
    config = SIZES[model_size]
    return {
        "d": config.hidden_size,
        "l": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
    }


WEIGHT_FILES = (("config.json", "model.safetensors"), ("config.json", "pytorch_model.bin"))
TOKENIZER_FILES = (
    ("config.json", "tokenizer.json"),
    ("config.json", "vocab.json", "merges.txt"),
)


def checkpoint_folder(model_size: str, choices=WEIGHT_FILES) -> Path:
    """The folder with a model's files: a bundled one, the user's, or the hub's local cache.

    A folder in the working directory takes precedence over the hub's model of the same name.

    choices: tuples of file names, of which one must be found whole; from the hub, the cache is
    asked first, so that a model that was used once works without network.
    """
    folder = Path(BUNDLED.get(model_size, model_size))
    if folder.is_dir():
        if model_size in SIZES and not (folder / "config.json").exists():
            raise InputError(
                f"{model_size}: the folder {folder.resolve()} hides the model of this name, and is "
                f"no checkpoint (no config.json): rename it, or work in another folder"
            )
        return folder
    if model_size in BUNDLED:
        raise InputError(f"{model_size}: {folder} is missing: give one of {', '.join(SIZES)}")
    if str(model_size).startswith((".", "/", "~")):
        raise InputError(f"{model_size}: no such folder: give a HuggingFace folder or a size name")
    return _hub_folder(str(model_size), choices)


def _hub_folder(name: str, choices) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    places = [(alias, True) for alias in _hub_names(name)] + [(name, False)]
    for alias, offline in places:
        if not offline and not _hub_resolves():
            break
        for files in choices:
            try:
                paths = [hf_hub_download(alias, file, local_files_only=offline) for file in files]
                return Path(paths[0]).parent
            except EntryNotFoundError:
                continue  # this repository has other files, or the cache not all of them
            except (OSError, HfHubHTTPError, HFValidationError):
                break
    raise InputError(
        f"{name}: {did_you_mean(name, [*BUNDLED, *SIZES])}neither a folder nor in the HuggingFace "
        f"cache, and the hub cannot be reached or has no such GPT-2; --model_size gpt2-mini, which "
        f"is bundled, works at once; else (1) connect to the internet once, (2) copy a HuggingFace "
        f"cache here and set HF_HOME to it, or (3) give --model_size a folder that holds "
        f"config.json, model.safetensors and the tokenizer files"
    )


def _hub_names(name: str) -> list[str]:
    """The names under which the hub, and so its cache, may have a model; the given one first."""
    bare = name.removeprefix(ORGANISATION)
    return list(dict.fromkeys((name, bare, ORGANISATION + bare))) if bare in SIZES else [name]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The known words that look like a mistyped one, as the beginning of a message; or nothing."""
    known = list(known)
    close = [] if word in known else difflib.get_close_matches(word.lower(), known)
    return f"did you mean {' or '.join(close)}? " if close else ""


def _hub_resolves() -> bool:
    """Whether the hub's name resolves (or a proxy would): if not, retrying takes half a minute."""
    from huggingface_hub import constants

    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def load_tokenizer(model_size: str = "gpt2"):
    """The tokenizer that belongs to a size name, a hub name or a folder, padding on the right.

    The padding token is the end-of-text token, as GPT-2 has none of its own: what is padding is
    said by the attention mask, never by an id.
    """
    folder = checkpoint_folder(model_size, TOKENIZER_FILES)
    if not any(all((folder / file).exists() for file in files) for files in TOKENIZER_FILES):
        raise InputError(
            f"{folder}: no tokenizer.json, nor vocab.json and merges.txt, beside config.json: "
            f"copy the tokenizer files of the model into this folder"
        )
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        vocab_size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())
        raise InputError(
            f"{folder}: the tokenizer cannot be read ({reason}): copy its files again"
        ) from error
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model's config.json "
            f"{vocab_size}: copy the files of one and the same model"
        )
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def extended_attention_mask(attention_mask, dtype):
    """Turn a mask of ones (real) and zeros (padding) into one that is added to attention scores.

    (b, t) -> (b, 1, 1, t): 0 at real tokens, the lowest finite number of `dtype` at padding.
    """
    import torch

    padding = attention_mask[:, None, None, :] == 0
    extended = torch.zeros(padding.shape, dtype=dtype, device=attention_mask.device)
    return extended.masked_fill(padding, torch.finfo(dtype).min)


@contextlib.contextmanager
def atomic_path(path):
    """Give a temporary path beside `path`; it becomes `path`, whole, when the block ends well.

    It is fsynced and renamed; on any error it is removed and the old file stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(descriptor)
    try:
        yield Path(name)
        _sync(name)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
        _sync(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_write(path, mode: str = "w"):
    """Open a file (UTF-8 unless mode is "wb") that appears under its name whole or not at all."""
    encoding = None if "b" in mode else "utf-8"
    with atomic_path(path) as temporary, open(temporary, mode, encoding=encoding) as file:
        yield file


def _sync(path) -> None:
    """Wait until a file's bytes, or a folder's renames, would survive a power cut.

    A file is opened for writing, as Windows asks. Folders cannot be opened there, nor synced on
    some network drives: for them this is an attempt.
    """
    is_folder = os.path.isdir(path)
    with contextlib.suppress(OSError) if is_folder else contextlib.nullcontext():
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_leftovers(folder, name: str | None = None) -> None:
    """Delete the temporary files that a killed run left in a folder, those of one file or all."""
    for leftover in Path(folder).glob(f".{glob.escape(name) if name else '*'}.*.tmp"):
        leftover.unlink(missing_ok=True)


def check_writable(path) -> None:
    """Fail now, not after hours of training, if `path` cannot be written.

    What a killed run left half-written beside it goes.
    """
    folder = Path(path).parent
    if Path(path).is_dir():
        raise InputError(f"{path}: a folder, expected the path of a file: choose another one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            remove_leftovers(folder, Path(path).name)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}): choose another output path or mend "
            f"the folder's permissions"
        ) from error


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
