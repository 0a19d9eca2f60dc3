"""A power law with a constant, fitted to a curve: y = a + c xᵖ."""

import numpy as np

EXPONENTS = np.arange(0.25, 3.005, 0.01)


def fit_power_law(xs, ys) -> dict[str, float]:
    """a, c ≥ 0 and p of y = a + c xᵖ that make the squared relative errors smallest.

    Beside p the slope in logarithms between the last two points, which leaves the constant in.
    """
    x, y = np.asarray(xs, dtype=float), np.asarray(ys, dtype=float)
    best = None
    for exponent in EXPONENTS:
        columns = np.stack([np.ones_like(x), (x / x.max()) ** exponent], axis=1) / y[:, None]
        weights = _least_squares(columns)
        error = float(((columns @ weights - 1) ** 2).sum())
        if best is None or error < best[0]:
            best = error, float(exponent), weights
    _, exponent, (constant, growing) = best
    slope = np.log(y[-1] / y[-2]) / np.log(x[-1] / x[-2])
    return {
        "exponent": round(exponent, 2),
        "constant": float(constant),
        "factor": float(growing / x.max() ** exponent),
        "last_slope": float(slope),
    }


def _least_squares(columns) -> np.ndarray:
    """Two weights ≥ 0 that bring both columns' sum closest to 1."""
    ones = np.ones(len(columns))
    weights = np.linalg.lstsq(columns, ones, rcond=None)[0]
    if (weights >= 0).all():
        return weights
    alone = [np.dot(column, ones) / np.dot(column, column) for column in columns.T]
    choices = [np.array([alone[0], 0.0]), np.array([0.0, alone[1]])]
    return min(choices, key=lambda w: ((columns @ w - 1) ** 2).sum())
