"""The README's short tables say what the studies' figures say."""

from studies import programs_tables, techniques_help
from studies.techniques_help import PLAIN


def runs_of(figures: dict[str, list[float]]) -> dict[str, float]:
    return {
        f"sst, {who}, lr 0.001, seed {seed}": value
        for who, values in figures.items()
        for seed, value in enumerate(values)
    }


def test_a_difference_is_clear_only_above_its_own_spread_and_plain_s():
    figures = {
        PLAIN: [0.40, 0.42, 0.44],  # standard deviation 0.02
        "rdrop": [0.50, 0.52, 0.54],  # +0.1 with each seed
        "ema": [0.41, 0.43, 0.45],  # +0.01: less than another seed changes
        "muon": [0.30, 0.62, 0.44],  # +0.033, but 0.151 apart
        "prefix": [0.30, 0.32, 0.34],
        "soap": [0.50],  # not all seeds
    }
    rows = techniques_help.brief({"runs": runs_of(figures)}).splitlines()
    assert rows[0] == "| better | no clear difference | worse |"
    assert rows[2] == "| `rdrop` +0.100 | `ema` +0.010, `muon` +0.033 | `prefix` -0.100 |"


def test_a_kind_of_integers_is_a_column_of_means_over_seeds():
    runs = {
        f"quantize, {task}, {who}, seed {seed}, {metric}": value + seed
        for task in ("sst", "sonnet")
        for who, base in (("plain", 10.0), ("int8", 20.0))
        for metric, value in (("dev_perplexity", base), ("megabytes", 2 * base))
        for seed in (1, 2)
    }
    assert programs_tables.quantized_brief({"runs": runs}).splitlines() == [
        "| | plain | int8 |",
        "|---|---|---|",
        "| dev perplexity | 11.5 | 21.5 |",
        "| megabytes | 21.5 | 41.5 |",
    ]
