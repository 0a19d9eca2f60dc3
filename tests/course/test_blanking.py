"""Bodies are cut out by name: what stays of a file stays byte for byte."""

import ast
import difflib
from pathlib import Path

import pytest

from course.handout.blanking import answers, blanked, find, stand_in, statements
from course.handout.blanks import BLANKS, Blank
from course.handout.starter import write_starter
from course.handout.tracked import starter_files
from engine.errors import InputError
from engine.files import ROOT

FILES = sorted({blank.file for blank in BLANKS})


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blanking") / "starter"
    write_starter(ROOT, folder)
    return folder


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def of_file(name: str) -> list[Blank]:
    return [blank for blank in BLANKS if blank.file == name]


@pytest.mark.parametrize("blank", BLANKS, ids=lambda blank: blank.name)
def test_a_blank_keeps_its_signature_and_docstring_and_says_where_to_read(out, blank):
    before = find(text(ROOT / blank.file), blank.name)
    after = find(text(out / blank.file), blank.name)
    assert ast.unparse(after.args) == ast.unparse(before.args)
    assert ast.get_docstring(after) == ast.get_docstring(before)
    error = after.body[-1]
    assert isinstance(error, ast.Raise) and blank.name in ast.unparse(error)
    assert f"section {blank.section}" in ast.unparse(error)
    if not blank.part:
        assert len(after.body) == 1 + bool(ast.get_docstring(before))


@pytest.mark.parametrize("name", FILES)
def test_everything_else_of_the_file_stays_byte_for_byte(out, name):
    source, blanks = text(ROOT / name), of_file(name)
    taken = {line for answer in answers(source, blanks) for line in answer.splitlines()} | {""}
    nodes = [statements(find(source, blank.name), blank.part)[0] for blank in blanks]
    given = [stand_in(blank, node) for blank, node in zip(blanks, nodes, strict=True)]
    put = {line for stand in given for line in stand.splitlines()}
    changes = difflib.ndiff(source.splitlines(), text(out / name).splitlines())
    for change in changes:
        if change.startswith("- "):
            assert change[2:] in taken
        if change.startswith("+ "):
            assert change[2:] in put and len(change) <= 102


def test_files_without_blanks_are_the_projects_own(out):
    names = [name for name in starter_files(ROOT) if name not in FILES]
    assert len(names) > 80
    assert [n for n in names if (ROOT / n).read_bytes() != (out / n).read_bytes()] == []


SOURCE = '''\
LIMIT = 3  # used by helper


class Thing:
    # a comment
    def __init__(self, config):
        """Makes it."""
        super().__init__()
        self.size = config.size
        self.size += 1

    @staticmethod
    def helper():
        return LIMIT

    @staticmethod
    def work(x):  # of x
        """Works."""
        y = x + 1  # the answer
        return (
            y
        )

    def after(self):
        return 1
'''
BLANKED = '''\
class Thing:
    # a comment
    def __init__(self, config):
        """Makes it."""
        super().__init__()
        # think
        raise NotImplementedError("Thing.__init__: handout.md, section One")

    @staticmethod
    def work(x):  # of x
        """Works."""
        # think
        raise NotImplementedError("Thing.work: handout.md, section One")

    def after(self):
        return 1
'''


def made_up(name: str, **options) -> Blank:
    return Blank("thing.py", name, "One", "think", test="", **options)


def test_bodies_parts_and_helpers_are_cut_out_by_their_lines():
    part = made_up("Thing.__init__", part=("size",))
    whole = made_up("Thing.work", helpers=("Thing.helper", "LIMIT"))
    assert blanked(SOURCE, [whole, part]).lstrip("\n") == BLANKED


@pytest.mark.parametrize(
    "blank, words",
    [
        (made_up("Thing.play"), "Thing.play: no such definition"),
        (made_up("Thing.work", helpers=("toil",)), "toil: no such definition"),
        (made_up("Thing.__init__", part=("color",)), "no run of statements that mention color"),
    ],
)
def test_a_blank_that_is_not_found_is_an_error(blank, words):
    with pytest.raises(InputError, match=words):
        blanked(SOURCE, [blank])
