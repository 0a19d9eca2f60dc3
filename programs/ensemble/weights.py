"""Pools of several models' class probabilities, and the weights that dev rows like best.

    log p(y|x) = Σ_m w_m log p_m(y|x) − log Z(x)      logarithmic pool, that is: logits averaged
    p(y|x) = Σ_m w_m p_m(y|x)                         linear pool
    w ← w ∘ exp(−η ∇L(w)) / sum                       exponentiated gradient;  w_m ≥ 0, Σ w_m = 1

L, the mean of −log p(y|x) over rows, is convex in w for either pool: a log-sum-exp of linear
functions less a linear one, and −log of a linear one. Hence no minimum is a local one only, and the
gap max_m ∇L(w) · (w − e_m) is no less than L(w) − min L: it says when to stop.

Heskes 1998, "Selecting Weighting Factors in Logarithmic Opinion Pools"; Kivinen & Warmuth 1997,
"Exponentiated Gradient versus Gradient Descent for Linear Predictors"; the gap as in Jaggi 2013,
"Revisiting Frank-Wolfe". Differs from the papers in that L itself is minimised, over all rows at
once, by steps whose rate η is halved until each is sure to go down.
"""

import torch

TOLERANCE = 1e-6  # nats a row by which fitted weights may miss the best


def log_pool(log_probs, weights):
    """(m, n, c) and (m,) -> (n, c): log-probabilities of the weighted geometric mean."""
    return torch.einsum("mnc,m->nc", log_probs, weights).log_softmax(dim=-1)


def linear_pool(log_probs, weights):
    """(m, n, c) and (m,) -> (n, c): log-probabilities of the weighted mean."""
    largest = log_probs.amax(dim=0)
    return torch.einsum("mnc,m->nc", (log_probs - largest).exp(), weights).log() + largest


POOLS = {"log": log_pool, "linear": linear_pool}


def mean_loss(log_probs, labels) -> torch.Tensor:
    """−log p(y|x), a mean over rows; log_probs (n, c)."""
    return -log_probs.gather(1, labels[:, None]).mean()


def loss_and_gradient(log_probs, labels, weights, pool: str) -> tuple[float, torch.Tensor]:
    """L(w) and ∇L(w)."""
    weights = weights.detach().requires_grad_()
    loss = mean_loss(POOLS[pool](log_probs, weights), labels)
    [gradient] = torch.autograd.grad(loss, weights)
    return float(loss.detach()), gradient


def fit_weights(log_probs, labels, pool: str, *, steps: int = 5000) -> torch.Tensor:
    """The w (m,) for which the labels (n,) are likeliest; log_probs (m, n, c) in float64.

    A step is taken if L ends below its tangent plus KL(w_new ‖ w) / η, the bound of which the step
    is the minimum: so L never rises.
    """
    log_weights = torch.zeros(len(log_probs), dtype=torch.float64).log_softmax(dim=0)
    weights, rate = log_weights.exp(), 1.0
    loss, gradient = loss_and_gradient(log_probs, labels, weights, pool)
    for _ in range(steps):
        if gap(weights, gradient) <= TOLERANCE or rate < 1e-12:
            break
        new_log = (log_weights - rate * gradient).log_softmax(dim=0)
        new = new_log.exp()
        new_loss, new_gradient = loss_and_gradient(log_probs, labels, new, pool)
        bound = loss + gradient @ (new - weights) + new @ (new_log - log_weights) / rate
        if new_loss <= min(float(bound), loss):
            log_weights, weights, loss, gradient = new_log, new, new_loss, new_gradient
            rate *= 2
        else:
            rate /= 2
    return weights


def gap(weights, gradient) -> float:
    """max_m ∇L · (w − e_m)."""
    return float(weights @ gradient - gradient.min())


def cross_fitted(log_probs, labels, pool: str) -> torch.Tensor:
    """(n, c): every other row by weights that are fitted on the rows between, and the reverse."""
    pooled = torch.empty_like(log_probs[0])
    for here, there in ((0, 1), (1, 0)):
        weights = fit_weights(log_probs[:, there::2], labels[there::2], pool)
        pooled[here::2] = POOLS[pool](log_probs[:, here::2], weights)
    return pooled
