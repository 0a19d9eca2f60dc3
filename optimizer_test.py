"""Compare AdamW after 1,000 steps with weights that the formula gave: `python optimizer_test.py`.

y = (x₀ + x₁, −x₂) is learnt from x uniform in [0, 1)³ by a linear layer, summed squared error.
`python optimizer_test.py --write` makes the reference anew, in NumPy and float64, from the formula
alone (Kingma & Ba 2014, end of section 2, then the decay of Loshchilov & Hutter 2017). It is kept
in float32, the dtype of the weights.
"""

import sys
from pathlib import Path

from engine.errors import Parser, command

# isort: split

import numpy as np
import torch

from optimizer import AdamW

REFERENCE = Path(__file__).with_name("optimizer_test.npy")
SEED, STEPS, LR, WEIGHT_DECAY = 0, 1000, 1e-3, 1e-4


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One example: x (3,) and its target y (2,)."""
    x = rng.uniform(size=[3])
    return x, np.array([x[0] + x[1], -x[2]])


def first_layer() -> torch.nn.Linear:
    torch.manual_seed(SEED)
    return torch.nn.Linear(3, 2, bias=False)


def train(optimizer_class=AdamW) -> torch.Tensor:
    """The layer's weights (2, 3) after training with an optimizer."""
    layer, rng = first_layer(), np.random.default_rng(SEED)
    optimizer = optimizer_class(layer.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    for _ in range(STEPS):
        x, y = (torch.tensor(array, dtype=torch.float32) for array in draw(rng))
        optimizer.zero_grad()
        ((layer(x) - y) ** 2).sum().backward()
        optimizer.step()
    return layer.weight.detach()


def train_by_formula() -> np.ndarray:
    """The same weights from the formula, in float64; the gradient is 2 (W x − y) xᵀ."""
    weight = first_layer().weight.detach().double().numpy().copy()
    m, v, rng = np.zeros_like(weight), np.zeros_like(weight), np.random.default_rng(SEED)
    beta1, beta2, eps = 0.9, 0.999, 1e-6
    for t in range(1, STEPS + 1):
        x, y = draw(rng)
        gradient = 2 * np.outer(weight @ x - y, x)
        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient**2
        rate = LR * np.sqrt(1 - beta2**t) / (1 - beta1**t)
        weight = weight - rate * m / (np.sqrt(v) + eps)
        weight = weight - LR * WEIGHT_DECAY * weight
    return weight


@command
def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="make the reference anew first")
    if parser.parse_args().write:
        np.save(REFERENCE, train_by_formula().astype(np.float32))
    reference, weights = torch.tensor(np.load(REFERENCE)), train()
    print("expected", reference.tolist())
    print("found   ", weights.tolist())
    if not torch.allclose(reference, weights, atol=1e-6, rtol=1e-4):
        difference = (reference - weights).abs().max()
        sys.exit(f"AdamW differs from the formula by {difference:.2e}: look at optimizer.py")
    print("Optimizer test passed!")


if __name__ == "__main__":
    main()
