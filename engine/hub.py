"""Models by name: a bundled folder, the user's own, or HuggingFace's hub; loading and saving."""

import contextlib
import socket
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError

from safetensors import SafetensorError

from config import SIZES, GPT2Config
from engine.errors import InputError, did_you_mean, excerpt
from engine.files import ROOT, atomic_path, process_mark, remove_leftovers
from engine.mapped_weights import mapped_gpt2
from engine.model_config import check_finite, check_numbers, check_shape, read_document
from models.base_gpt import read_config
from models.gpt2 import GPT2Model

BUNDLED = {"gpt2-mini": ROOT / "pretrained" / "gpt2-mini"}
ORGANISATION = "openai-community/"  # the hub knows the published sizes with and without it
WEIGHT_FILES = (("config.json", "model.safetensors"), ("config.json", "pytorch_model.bin"))
TOKENIZER_FILES = (
    ("config.json", "tokenizer.json"),
    ("config.json", "vocab.json", "merges.txt"),
)
PROBE = "Yes, no: 1 +\n\tü."  # what a whole tokenizer can encode
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
WEIGHTS += tuple(f"{name}.index.json" for name in WEIGHTS)  # of shards
UNREADABLE = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, EOFError),
    *(SafetensorError, UnpicklingError),
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
        if not offline and not hub_resolves():
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


def hub_resolves() -> bool:
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
        document = read_document(folder / "config.json")
        check_numbers(document)
        vocab_size = document["vocab_size"]
        tokenizer = AutoTokenizer.from_pretrained(folder)
        largest = max(tokenizer(PROBE)["input_ids"], default=0)
    except Exception as error:  # tokenizers, in Rust, raises no narrower one
        reason = excerpt(f"{type(error).__name__} {error}")
        raise InputError(
            f"{folder}: the tokenizer cannot be read ({reason}): copy its files again"
        ) from error
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"{folder}: the tokenizer has no end token: name one as eos_token in "
            f"tokenizer_config.json, or copy its files again"
        )
    if len(tokenizer) > vocab_size or largest >= vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model's config.json "
            f"{vocab_size}: copy the files of one and the same model"
        )
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


@contextlib.contextmanager
def quiet_transformers():
    """Without transformers' progress bars and reports: what matters in them is an error of ours."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_gpt2(model_size: str = "gpt2", mapped: bool = False, **shape) -> GPT2Model:
    """`GPT2Model.from_pretrained` for a size name, a bundled one, a hub name or a folder.

    mapped: its matrices may stay in their files until they are used. shape: its d, l, num_heads.
    What is wrong with the files is an InputError.
    """
    from huggingface_hub.errors import StrictDataclassError

    folder = checkpoint_folder(model_size)
    file = folder / "config.json"
    if not file.exists():
        raise InputError(f"{file}: not found: this folder is no HuggingFace checkpoint")
    try:
        with quiet_transformers():
            check_numbers(read_document(file))
            check_shape(values := read_config(folder), folder)
            file = next((path for name in WEIGHTS if (path := folder / name).exists()), folder)
            if mapped and not shape and (model := mapped_gpt2(folder, values)):
                return model
            model = GPT2Model.from_pretrained(folder, **shape)
            check_finite(model)
            return model
    except (*UNREADABLE, StrictDataclassError) as error:
        reason = " ".join(f"{error}".split()).partition(". ")[0] or type(error).__name__
        if any(isinstance(cause, UnpicklingError) for cause in _chain(error)):
            reason = "no pickle, or one of more than weights, which is refused"
        if reason.startswith(f"{folder}: "):  # the lesson's own message
            raise InputError(f"{excerpt(reason)}: copy the checkpoint again") from error
        raise InputError(f"{file}: {excerpt(reason)}: copy the checkpoint again") from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it came from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def save_gpt2(gpt: GPT2Model, folder, end_token: int | None = None) -> None:
    """`GPT2Model.save_pretrained`, each file whole or not at all, config.json last."""
    folder = Path(folder)
    remove_leftovers(folder)
    folder.mkdir(parents=True, exist_ok=True)
    beside = {"dir": folder, "prefix": f".saving.{process_mark()}.", "suffix": ".tmp"}
    with tempfile.TemporaryDirectory(**beside) as scratch, quiet_transformers():
        gpt.save_pretrained(scratch, end_token)
        for file in sorted(Path(scratch).iterdir(), reverse=True):
            with atomic_path(folder / file.name) as path:
                file.replace(path)


def backbone(settings) -> GPT2Model:
    """The GPT-2 under a task's model, as the task's settings ask for it.

    They name a checkpoint: `model_size` (default gpt2), `d`, `l`, `num_heads` (from_pretrained),
    and say with `mapped` whether little of it need be in memory at once.
    With `pretrained` False only its shape is built, `gpt_config`, to be filled from a checkpoint.
    """
    if not getattr(settings, "pretrained", True):
        return GPT2Model(GPT2Config(**settings.gpt_config))
    given = vars(settings)
    shape = {name: given[name] for name in ("d", "l", "num_heads") if name in given}
    mapped = getattr(settings, "mapped", False)
    return load_gpt2(getattr(settings, "model_size", "gpt2"), mapped=mapped, **shape)
