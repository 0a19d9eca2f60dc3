"""What optimizers for matrices are tested on: a tiny GPT-2 with a head, and one matrix alone."""

import math

import torch
from torch import nn

from config import GPT2Config
from models.gpt2 import GPT2Model


def model_with_head(layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2}
    shape |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = nn.Module()
    model.gpt = GPT2Model(GPT2Config(vocab_size=30, intermediate_size=64, **shape))
    model.head = nn.Linear(16, 2)
    return model.eval()


def step(model, optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    optimizer.zero_grad()
    states = model.gpt(torch.randint(30, (2, 5)))["last_token"]
    (model.head(states) - torch.randn(2, 2)).square().sum().backward()
    optimizer.step()


def gradients(shape, count: int) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(shape, dtype=torch.float64) for _ in range(count)]


def weights_after(grads, make_optimizer) -> list[torch.Tensor]:
    """The weights after each of these gradients, from 0.1 everywhere."""
    weight = nn.Parameter(torch.full_like(grads[0], 0.1))
    optimizer = make_optimizer([weight])
    weights = []
    for grad in grads:
        weight.grad = grad.clone()
        optimizer.step()
        weights.append(weight.detach().clone())
    return weights


def waves(count: int) -> list[torch.Tensor]:
    """Gradients (2, 3) by a formula: the same wherever a published code was run on them."""
    return [
        torch.tensor(
            [
                [math.sin(1 + i + 3 * t), math.cos(2 * i - t), 0.1 * math.sin(5 * i + t)]
                for i in (0, 1)
            ],
            dtype=torch.float64,
        )
        for t in range(count)
    ]
