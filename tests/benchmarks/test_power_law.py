"""Exponents are recovered from laws that are known."""

import numpy as np
import pytest

from benchmarks.power_law import fit_power_law

XS = [64, 128, 256, 512, 1024]


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.37, 2.0])
@pytest.mark.parametrize("constant", [0.0, 0.4])
def test_the_exponent_of_a_law_and_its_constant_come_back(exponent, constant):
    factor = 2 / 1024**exponent
    law = fit_power_law(XS, [constant + factor * x**exponent for x in XS])
    assert law["exponent"] == pytest.approx(exponent, abs=0.011)
    assert law["constant"] == pytest.approx(constant, abs=0.02)


def test_a_constant_does_not_pass_for_slow_growth():
    """Most of a short step is the optimizer's: in logarithms alone the slope would be far off."""
    ys = [0.46 + 0.0005 * x for x in XS]
    slope = np.polyfit(np.log(XS), np.log(ys), 1)[0]
    assert slope < 0.3
    assert fit_power_law(XS, ys)["exponent"] == pytest.approx(1.0, abs=0.011)


def test_noise_of_two_percent_moves_the_exponent_little():
    random = np.random.default_rng(0)
    xs = 2.0 ** np.arange(6, 13)
    ys = (0.1 + 1e-4 * xs**1.5) * random.uniform(0.98, 1.02, size=len(xs))
    assert fit_power_law(xs, ys)["exponent"] == pytest.approx(1.5, abs=0.06)


def test_the_fitted_constant_is_never_negative():
    law = fit_power_law(XS, [x**2 - 1000 for x in XS])
    assert law["constant"] >= 0 and law["factor"] >= 0


def test_the_slope_at_the_end_leaves_the_constant_in():
    law = fit_power_law([1, 2, 4], [3, 6, 12])
    assert law["last_slope"] == pytest.approx(1.0)
    law = fit_power_law([1, 2, 4], [11, 12, 14])
    assert law["last_slope"] == pytest.approx(np.log2(14 / 12))
