"""Prediction files: the handout's header and the course's are read, ours is the handout's."""

import pytest
from course_files import write

from engine.errors import InputError
from engine.prediction_files import header_column, read_predictions, write_predictions

COURSE = "id \t Predicted_Sentiment "  # as the course's classifier.py writes it


@pytest.mark.parametrize("header", ["id, Predicted_Sentiment ", COURSE, "id,Predicted_Sentiment"])
def test_a_file_is_read_whatever_separates_its_two_columns(tmp_path, header):
    path = write(tmp_path / "p.csv", f"{header}\na1, 3 \nB2, 0 \n")
    found = read_predictions(path)
    assert found.column == "Predicted_Sentiment" and found.classes == {"a1": 3, "b2": 0}


def test_ours_is_written_with_the_handouts_header(tmp_path):
    write_predictions(tmp_path / "p.csv", "Predicted_Sentiment", ["a1"], [3])
    text = (tmp_path / "p.csv").read_text(encoding="utf-8")
    assert text == "id, Predicted_Sentiment \na1, 3 \n"


@pytest.mark.parametrize("line", ["", "id", "id Predicted_Sentiment", "a1, 3 0", "no, x, y"])
def test_another_line_is_no_header(line):
    assert header_column(line) is None


def test_the_column_of_another_task_is_refused_in_the_courses_form_too(tmp_path):
    path = write(tmp_path / "p.csv", f"{COURSE}\na1, 3 \n")
    with pytest.raises(InputError, match=r"line 1: found 'id \\t Predicted_Sentiment', expected"):
        read_predictions(path, "Predicted_Is_Paraphrase")


@pytest.mark.parametrize("sent_id", ["=1+1", "a\x1b[2Jb", "-5", "a\u200bb"])
def test_an_id_that_a_spreadsheet_or_a_terminal_would_obey_is_refused(tmp_path, sent_id):
    path = write(tmp_path / "p.csv", f"id, Predicted_Sentiment \na1, 3 \n{sent_id}, 2 \n")
    with pytest.raises(InputError, match=r"p\.csv, line 3: found the id "):
        read_predictions(path)
