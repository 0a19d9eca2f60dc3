"""Tiny things that need no download: tokenizers and GPT-2 folders made on the spot."""

import contextlib
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the programs that tests start, too

import pytest
import torch
from course_files import write_course, write_model

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """All of the course's files, small and easy."""
    return write_course(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A tiny GPT-2 without dropout."""
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def dropout_folder(tmp_path_factory):
    """A tiny GPT-2 with GPT-2's dropout of 0.1."""
    return write_model(tmp_path_factory.mktemp("tiny-gpt2-dropout"), dropout=0.1)


@pytest.fixture
def refused(capsys):
    """`with refused("words"):` a program that ends with status 2 and one line with these words."""

    @contextlib.contextmanager
    def refused(*expected: str):
        with pytest.raises(SystemExit) as stop:
            yield
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert error.startswith("error: ") and error.count("\n") == 1, error
        assert all(words in error for words in expected), error

    return refused
