"""Compare AdamW after 1,000 steps with weights that the formula gave: `python optimizer_test.py`.

y = (x₀ + x₁, −x₂) is learnt from x uniform in [0, 1)³ by a linear layer, summed squared error.
The reference was computed in NumPy and float64 from the formula alone (Kingma & Ba 2014, end of
section 2, then the decay of Loshchilov & Hutter 2017), and is kept in float32, the weights' dtype.
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


@command
def main() -> None:
    Parser(__doc__).parse_args()
    reference, weights = torch.tensor(np.load(REFERENCE)), train()
    print("expected", reference.tolist())
    print("found   ", weights.tolist())
    if not torch.allclose(reference, weights, atol=1e-6, rtol=1e-4):
        difference = (reference - weights).abs().max()
        sys.exit(f"AdamW differs from the formula by {difference:.2e}: look at optimizer.py")
    print("Optimizer test passed!")


if __name__ == "__main__":
    main()
