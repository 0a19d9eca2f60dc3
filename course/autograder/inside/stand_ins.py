"""Modules that course files import and grading does not need; what is built of them refuses.

No weights of GPT-2, and no model that is not the submission's, can be had here.
"""

import importlib.abc
import importlib.machinery
import sys
import types

import torch

PACKAGES = (
    *("transformers", "huggingface_hub", "tokenizers", "sklearn", "sacrebleu", "pandas", "tqdm"),
    *("requests", "importlib_metadata", "matplotlib", "scipy", "peft", "wandb"),
)
END, END_ID, WORDS = "<|endoftext|>", 50256, 50257


class Unavailable(RuntimeError):
    """Something that the autograder goes without was built or called."""


class Absent:
    """A name of a package that the autograder goes without."""

    def __init__(self, *arguments, **options):
        raise Unavailable(f"{type(self).__name__}: not to be had in the autograder")

    @classmethod
    def from_pretrained(cls, *arguments, **options):
        raise Unavailable(f"{cls.__name__}.from_pretrained: no weights in the autograder")


class PretrainedConfig:
    """As transformers' own: what it is given becomes an attribute."""

    def __init__(self, **options):
        vars(self).update(options)


class PreTrainedModel(torch.nn.Module):
    """A base class alone."""

    def __init__(self, config, *arguments, **options):
        super().__init__()
        self.config = config


class Tokenizer:
    """Stands for GPT-2's: a text's bytes are its tokens."""

    def __init__(self):
        self.pad_token = self.eos_token = END
        self.pad_token_id = self.eos_token_id = END_ID
        self.padding_side = "right"

    @classmethod
    def from_pretrained(cls, *arguments, **options):
        return cls()

    def __len__(self):
        return WORDS

    def __call__(self, text, **options):
        return {"input_ids": list(text.encode())}

    encode = __call__


class Bar:
    """tqdm without a bar: its rows, and whatever is said of them is not shown."""

    def __init__(self, rows=(), *arguments, **options):
        self.rows = range(rows) if isinstance(rows, int) else rows

    def __iter__(self):
        return iter(self.rows)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments, **options: None


KNOWN = {
    "PretrainedConfig": PretrainedConfig,
    "PreTrainedModel": PreTrainedModel,
    **dict.fromkeys(("GPT2Tokenizer", "GPT2TokenizerFast", "AutoTokenizer"), Tokenizer),
    **dict.fromkeys(("tqdm", "trange"), Bar),
}


class StandIn(types.ModuleType):
    """A module that has every public name."""

    __path__ = ()
    __all__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return KNOWN.get(name) or type(name, (Absent,), {})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds stand-ins before anything else, so no file of the submission takes their place."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in PACKAGES:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        pass


def uncompiled(function=None, *arguments, **options):
    """A decorator, with options or without, that leaves a function as it is."""
    return uncompiled if function is None else function


def install() -> None:
    """Put the stand-ins before all other modules, and one for torch's compiler.

    torch's optimizers load the compiler when they are made: 125 MB, and a second and a half.
    """
    sys.meta_path.insert(0, Finder())
    dynamo = types.ModuleType("torch._dynamo")
    dynamo.graph_break = lambda message="": None
    dynamo.is_compiling = lambda: False
    dynamo.disable = torch.compile = uncompiled
    torch._dynamo = sys.modules["torch._dynamo"] = dynamo
