"""Dropout, told from what is kept: numbers that are 0, or 1/(1 − p) times what they were."""

import torch


def problem_of(ratios: torch.Tensor, what: str) -> dict[str, str]:
    """What is wrong with dropout at p = 0.5; ratios (n, k): each row is dropped or kept whole."""
    if not ratios.isfinite().all():
        return {"dropout": "found numbers that are not finite in training"}
    is_zero, is_one, is_two = ((ratios - value).abs() < 1e-3 for value in (0, 1, 2))
    if is_one.all():
        return {"dropout": f"no {what} are dropped in training: self.dropout is not applied"}
    if not (is_zero | is_two).all():
        if (is_zero | is_one).all():
            return {"dropout": f"the {what} that are kept are not divided by 1 − p: use nn.Dropout"}
        return {"dropout": f"found numbers that no dropout of {what} gives"}
    if not (is_zero.all(1) | is_two.all(1)).all():
        return {"dropout": f"single numbers of the output are dropped, expected {what}"}
    share = float(is_zero[:, 0].float().mean())
    if not 0.25 < share < 0.75:
        return {"dropout": f"{share:.0%} of the {what} are dropped, expected half: p is 0.5 here"}
    return {}
