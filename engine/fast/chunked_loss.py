"""The output layer and its cross-entropy in chunks of positions: the logits (n, v) never exist.

    z = h Wᵀ,    loss = Σ_i log Σ_j exp z_ij − z_iy,    ∂loss/∂z_i = softmax(z_i) − e_y
    ∂loss/∂h = ∂loss/∂z W,    ∂loss/∂W = (∂loss/∂z)ᵀ h          y: the label of position i

Hsu et al. 2024 ("Liger Kernel"), fused linear cross-entropy. The forward pass computes the
gradients, too, while it has a chunk's logits: so nothing is computed twice, and the backward pass
only multiplies them by a number. Differs from the paper in that a chunk is computed by torch's own
operations, that ∂loss/∂W adds up in float32 under autocast, and that right answers are counted.
"""

import contextlib

import torch
from torch._compile import _disable_dynamo
from torch.nn import functional as F

from engine.batches import IGNORED_LABEL, TokenScores

CHUNK = {"cpu": 2**24, "cuda": 2**27}  # logits at once, by device type: 64 and 512 MiB in float32
FEWEST = 512  # positions at once: with fewer, adding to ∂loss/∂W takes longer than the products
ALIGNED = 64  # to a multiple of it, a vocabulary in 16 bits is filled up for tensor cores


def score_next_tokens(gpt, hidden_states, labels) -> TokenScores:
    """How likely labels (b, t) are by a GPT-2's tied output layer, on hidden states (b, t, d)."""
    return linear_cross_entropy(hidden_states, gpt.word_embedding.weight, labels)


@_disable_dynamo  # a compiler would unroll the loop; torch.compiler.disable loads it at once
def linear_cross_entropy(hidden, weight, labels, positions: int | None = None) -> TokenScores:
    """Cross-entropy of the logits hidden (…, d) · weight (v, d)ᵀ against labels (…).

    A label may be IGNORED_LABEL; positions: of a chunk. Under autocast the products are in its
    type, the loss in float32.
    """
    kind, v = hidden.device.type, len(weight)
    hidden, labels = hidden.flatten(0, -2), labels.flatten()
    most = positions or max(CHUNK.get(kind, CHUNK["cuda"]) // v, FEWEST)
    chunks = max(-(-len(labels) // most), 1)
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    options = {
        "dtype": torch.get_autocast_dtype(kind) if autocast else hidden.dtype,
        "positions": max(-(-len(labels) // chunks), 1),  # all chunks alike
        "learns": torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad),
    }
    with torch.autocast(kind, enabled=False) if autocast else contextlib.nullcontext():
        return TokenScores(*LinearCrossEntropy.apply(hidden, weight, labels, options))


class LinearCrossEntropy(torch.autograd.Function):
    """hidden (n, d), weight (v, d), labels (n,) -> summed loss and right answers, both ()."""

    @staticmethod
    def forward(ctx, hidden, weight, labels, options):
        dtype, learns = options["dtype"], options["learns"]
        wide = torch.promote_types(dtype, torch.float32)
        matrix = aligned(weight.to(dtype)) if dtype.itemsize == 2 else weight
        loss, correct = hidden.new_zeros((), dtype=wide), labels.new_zeros(())
        gradients = [torch.zeros_like(x) for x in (hidden, weight)] if learns else []
        for start in range(0, len(labels), options["positions"]):
            part = slice(start, start + options["positions"])
            real = labels[part] != IGNORED_LABEL
            states, targets = hidden[part].to(dtype), torch.where(real, labels[part], 0)
            logits = (states @ matrix.T).to(wide)
            logits[:, len(weight) :] = -torch.inf
            losses, right, gradient = score(logits, targets)
            loss += torch.where(real, losses, 0).sum()
            correct += (right & real).sum()
            if learns:
                to_hidden, to_weight = gradients
                gradient = gradient.to(dtype)
                to_hidden[part] = (gradient @ matrix) * real[:, None]
                add_product(to_weight, gradient[:, : len(weight)].T, states * real[:, None])
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, of_loss, _):
        to_hidden, to_weight = ctx.saved_tensors
        return to_hidden * of_loss, to_weight * of_loss, None, None


def score(logits, labels):
    """Of logits (n, v) and labels (n,): the losses, whether each is the likeliest, ∂loss/∂logits.

    log Σ exp z = max z − log max softmax(z), which takes no further look at all logits.
    """
    largest, likeliest = logits.max(dim=1)
    gradient = logits.softmax(dim=1)
    log_sum = largest - gradient.gather(1, likeliest[:, None])[:, 0].log()
    losses = log_sum - logits.gather(1, labels[:, None])[:, 0]
    gradient.scatter_add_(1, labels[:, None], gradient.new_full((len(labels), 1), -1))
    return losses, likeliest == labels, gradient


def add_product(total, left, right) -> None:
    """total += left @ right, in the type of `total`."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def aligned(matrix):
    """(v, d) with rows of zeros behind, up to a multiple of `ALIGNED`."""
    return F.pad(matrix, (0, 0, 0, -len(matrix) % ALIGNED))
