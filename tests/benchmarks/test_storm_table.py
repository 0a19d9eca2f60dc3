"""The storm's table has a row a program, and their sum."""

from benchmarks.storm_table import table

ROW = {"chains": 2, "starts": 7, "kills": {"SIGKILL": 3, "SIGHUP": 1}, "differences": 0}


def test_the_last_row_is_the_sum():
    lines = table({"jobs": {"sst": ROW, "dpo": ROW | {"differences": 1}}}).splitlines()
    assert lines[2] == "| sst | 2 | 7 | 3 | 0 | 0 | 1 | 0 |"
    assert lines[-1] == "| all | 4 | 14 | 6 | 0 | 0 | 2 | 1 |"
