"""Losses for preference pairs, pure functions of what a model says of the two answers.

    of log-ratios           s = log π(y|x) − log π_ref(y|x):
    L_DPO   = −log σ(β s_w − β s_l)                               Rafailov et al. 2023, eq. 7
    L_IPO   = (s_w − s_l − 1/(2τ))²                               Azar et al. 2023, eq. 17

    of means over tokens    s = 1/|y| log π(y|x):
    L_ORPO  = −s_w + λ L_OR                                       Hong et al. 2024, eq. 6
    L_OR    = −log σ(log odds_w − log odds_l), odds = P/(1 − P)   eq. 7 and 4, with P = exp s
    L_SimPO = −log σ(β s_w − β s_l − γ)                           Meng et al. 2024, eq. 6

y_w is the chosen, y_l the rejected answer to x; log π(y|x) is a sum over the tokens of y. β s is
the implicit reward (Rafailov et al. 2023, section 4; Meng et al. 2024, section 2.2).

Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human Preferences";
Hong et al. 2024, "ORPO"; Meng et al. 2024, "SimPO". Differs from the papers in nothing but ORPO's
first term, which is a mean over the chosen answer's tokens, pair by pair.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

REJECTED, CHOSEN = 0, 1


def dpo_loss(chosen, rejected, beta: float):
    """L_DPO of the log-ratios s_w, s_l (b,); returns (b,)."""
    return -F.logsigmoid(beta * (chosen - rejected))


def ipo_loss(chosen, rejected, tau: float):
    """L_IPO of the log-ratios s_w, s_l (b,); returns (b,)."""
    return (chosen - rejected - 1 / (2 * tau)) ** 2


def orpo_loss(chosen, rejected, weight: float):
    """L_ORPO of the mean log-probabilities s_w, s_l (b,); returns (b,). weight is λ."""
    return -chosen - weight * F.logsigmoid(log_odds(chosen) - log_odds(rejected))


def simpo_loss(chosen, rejected, beta: float, gamma: float):
    """L_SimPO of the mean log-probabilities s_w, s_l (b,); returns (b,)."""
    return -F.logsigmoid(beta * (chosen - rejected) - gamma)


def log_odds(log_probability):
    """log P/(1 − P) of log P; finite where P rounds to 1."""
    certain = torch.finfo(log_probability.dtype).eps
    return log_probability - torch.log(-torch.expm1(log_probability.clamp(max=-certain)))


@dataclass(frozen=True)
class Objective:
    """A loss by name, with its numbers; beta is IPO's τ and ORPO's λ too.

    What it compares, s (b, 2), and what it is computed from, log π(y|x) (b, 2), stand in the order
    rejected, chosen.
    """

    name: str
    beta: float
    gamma: float = 0.0

    @property
    def has_reference(self) -> bool:
        return self.name in ("dpo", "ipo")

    def scores(self, log_probs, batch: dict):
        """s of log π(y|x)."""
        if self.has_reference:
            return log_probs - batch["reference"]
        return log_probs / batch["answer_lengths"]

    def loss(self, scores, batch: dict | None = None):
        """Summed over pairs."""
        rejected, chosen = scores.unbind(dim=1)
        if self.name == "simpo":
            return simpo_loss(chosen, rejected, self.beta, self.gamma).sum()
        losses = {"dpo": dpo_loss, "ipo": ipo_loss, "orpo": orpo_loss}
        return losses[self.name](chosen, rejected, self.beta).sum()

    def margins(self, scores):
        """How much larger the implicit reward of the chosen answer is, (b,)."""
        return self.beta * (scores[:, CHOSEN] - scores[:, REJECTED])
