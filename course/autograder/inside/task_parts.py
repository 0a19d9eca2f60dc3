"""The optimizer and the three tasks' models, as `parts` has the layers and the model."""

from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from course.autograder.inside.parts import ANSWERS, config_of, load, op


@op("adamw.steps")
def adamw(settings, tensors):
    """Parameters "param.I", gradients "grad.T.I"; without one, the gradient is None."""
    groups, params = settings["groups"], {}
    for i, group in enumerate(groups):
        params[i] = nn.Parameter(tensors[f"param.{i}"].clone(), requires_grad=group["trained"])
    own = [{**group["options"], "params": [params[i]]} for i, group in enumerate(groups)]
    optimizer = load("optimizer", "AdamW")(own, **settings["options"])
    found = {}
    for t in range(settings["steps"]):
        for i, param in params.items():
            grad = tensors.get(f"grad.{t}.{i}")
            param.grad = None if grad is None else grad.clone()
        optimizer.step()
        for i, param in params.items():
            found[f"{t}.{i}"] = param.detach().clone()
    return found


class FixedGPT(nn.Module):
    """In the place of a task's GPT-2: its hidden states are those that the grader sends."""

    def __init__(self, config, tensors):
        super().__init__()
        self.config = config
        self.word_embedding = nn.Embedding.from_pretrained(tensors["embedding"], freeze=False)
        self.last_hidden_state, self.last_token = tensors["hidden"], tensors["last_token"]

    def forward(self, input_ids, attention_mask=None):
        return {"last_hidden_state": self.last_hidden_state, "last_token": self.last_token}

    def hidden_state_to_token(self, hidden_state):
        return hidden_state @ self.word_embedding.weight.T


def task_model(settings, tensors, module: str, name: str) -> tuple[nn.Module, FixedGPT]:
    """A task's model on a FixedGPT, and that; its own parameters are drawn by a seed."""
    given = settings["config"]
    config = config_of(settings)
    fixed = FixedGPT(config, tensors)
    gpt = load("models.gpt2", "GPT2Model")
    gpt.from_pretrained = classmethod(lambda cls, *words, **options: fixed)
    arguments = SimpleNamespace(
        **{"d": given["hidden_size"], "l": given["num_hidden_layers"], "use_gpu": False},
        **{"num_heads": given["num_attention_heads"], "hidden_size": given["hidden_size"]},
        **{"pretrained": False, "gpt_config": given, "model_size": str(checkpoint())},
        **{"hidden_dropout_prob": given["hidden_dropout_prob"], "answer_tokens": ANSWERS},
        **{"num_labels": settings.get("labels"), "fine_tune_mode": settings.get("mode")},
        **{"temperature": 1.2, "top_p": 0.9, "seed": 0, "batch_size": 8, "lr": 1e-5, "epochs": 1},
    )
    torch.manual_seed(settings["weights"])
    model = load(module, name)(arguments).eval()
    torch.manual_seed(settings["seed"])
    return model, fixed


def checkpoint() -> Path:
    """A folder that says which shape of GPT-2 is meant, and has no weights."""
    return Path(__file__).resolve().parent / "checkpoint"


def logits_and_head(model, fixed, tensors) -> dict:
    """The logits on a GPT-2 that is fixed, and the parameters of what stands on it."""
    model.gpt = fixed
    own = {
        f"head.{name}": value
        for name, value in model.named_parameters()
        if not name.startswith("gpt.")
    }
    return {"logits": model(tensors["ids"], tensors["mask"])} | own


@op("sentiment.logits")
def sentiment(settings, tensors):
    model, fixed = task_model(settings, tensors, "classifier", "GPT2SentimentClassifier")
    return logits_and_head(model, fixed, tensors)


@op("sentiment.frozen")
def frozen(settings, tensors):
    """Which parameters are trained: 1 or 0 for the GPT-2 and for the rest."""
    model, _ = task_model(settings, tensors, "classifier", "GPT2SentimentClassifier")
    trained = {"gpt": [], "head": []}
    for name, value in model.named_parameters():
        trained["gpt" if name.startswith("gpt.") else "head"].append(value.requires_grad)
    return {name: torch.tensor(flags) for name, flags in trained.items()}


@op("paraphrase.logits")
def paraphrase(settings, tensors):
    model, fixed = task_model(settings, tensors, "paraphrase_detection", "ParaphraseGPT")
    return logits_and_head(model, fixed, tensors)


@op("sonnet.logits")
def sonnet(settings, tensors):
    model, fixed = task_model(settings, tensors, "sonnet_generation", "SonnetGPT")
    model.gpt = fixed
    return {"logits": model(tensors["ids"], tensors["mask"])}
