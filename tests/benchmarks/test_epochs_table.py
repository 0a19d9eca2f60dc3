"""A row an epoch, with the seconds so far."""

from benchmarks.epochs_table import table


def test_seconds_add_up_over_the_epochs():
    row = {"tokens_per_second": 1234.5, "mfu": 0.0451, "val_loss": 4.25, "bits_per_byte": 1.5}
    epochs = [{**row, "tokens": 2e6, "seconds": 10.0}, {**row, "tokens": 4e6, "seconds": 20.0}]
    _, _, first, second = table({"epochs": epochs}).splitlines()
    assert first == "| 2.0 | 10 | 1,234 | 4.5% | 4.250 | 1.500 |"
    assert second.startswith("| 4.0 | 30 |")
