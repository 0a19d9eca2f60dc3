"""The starter is the project without its answers: nothing else is missing, and nothing is told."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from course.handout import starter
from course.handout.blanking import answers
from course.handout.blanks import BLANKS, Blank
from course.handout.tracked import LEFT_OUT, is_below, revealing, tracked_files
from engine.errors import InputError
from engine.files import ROOT

BRANCHES = ("if", "for", "while", "with")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("handout") / "starter"
    starter.main([str(folder)])
    return folder


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The starter with techniques."""
    if not (ROOT / "extensions").is_dir():
        pytest.skip("extensions/ is not here")
    folder = tmp_path_factory.mktemp("handout") / "full"
    starter.main([str(folder), "--with-extensions"])
    return folder


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and mode of every file."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mode)
        for path in files
    }


def of_file(name: str) -> list[Blank]:
    return [blank for blank in BLANKS if blank.file == name]


FILES = sorted({blank.file for blank in BLANKS})


# -- nothing is told ---------------------------------------------------------------------------


def normalised(line: str) -> str:
    """A line without its comment and white space; this file's own way of doing it."""
    return re.sub(r"\s", "", re.sub(r"\s+#.*", "", line))


def told(folder: Path) -> list[str]:
    """The lines of answers that stand in a Python file of a starter."""
    secret = set()
    for name in FILES:
        for answer in answers(text(ROOT / name), of_file(name)):
            secret |= {normalised(line) for line in answer.splitlines()}
    secret = {line for line in secret if len(line) >= 24}
    secret -= {line for line in secret if line.endswith(":") and line.startswith(BRANCHES)}
    assert len(secret) > 60
    return [
        f"{path.relative_to(folder)}: {line}"
        for path in sorted(folder.rglob("*.py"))
        for line in text(path).splitlines()
        if normalised(line) in secret
    ]


def test_no_line_of_an_answer_is_in_the_starter(out):
    assert told(out) == []


def test_no_line_of_an_answer_is_in_the_techniques(full):
    assert told(full) == []
    names = [path.name for path in (full / "extensions").glob("*.py")]
    assert "lora.py" in names and "sliding_window.py" not in names
    assert (full / "programs/dpo").is_dir() and not (full / "programs/decoding").exists()


def test_no_helper_and_no_fast_form_is_defined_in_the_starter(full):
    hidden = {name.rpartition(".")[2] for blank in BLANKS for name in blank.helpers}
    for path in (ROOT / "engine/fast").glob("*.py"):
        hidden |= {node.name for node in ast.parse(text(path)).body if hasattr(node, "name")}
    hidden = {name for name in hidden if len(name) >= 8}  # "run" may mean another thing
    defined = {}
    for path in full.rglob("*.py"):
        for node in ast.walk(ast.parse(text(path))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.setdefault(node.name, path.relative_to(full).as_posix())
    stand_ins = "engine/forms.py"  # the lesson's own, under the names of the fast forms
    assert {defined[name] for name in hidden & defined.keys()} == {stand_ins}


@pytest.mark.parametrize(
    "words", ["scaled_dot_product_attention", "torch.optim.AdamW(", "TopPLogits"]
)
def test_no_library_call_in_the_starter_is_an_answer(full, words):
    found = [path for path in full.rglob("*.py") if words in text(path)]
    assert [path.relative_to(full).as_posix() for path in found] == []


def test_the_projects_own_tests_and_results_are_left_out(full):
    assert all((ROOT / name).exists() for name in LEFT_OUT if name != "extensions/README.md")
    assert [name for name in tree(full) if is_below(name, ["course", "benchmarks", "docs"])] == []
    assert not (full / "engine/fast").exists()
    students = {path.name for path in (ROOT / starter.OURS / "tests").glob("*.py")}
    assert {path.name for path in (full / "tests").iterdir()} == students


def test_what_cannot_do_without_a_revealing_file_goes_with_it(tmp_path):
    line = "dropped = probabilities.cumsum(dim=-1) - probabilities >= top_p"
    files = {"extensions/one.py": line, "extensions/two.py": "import extensions.one"}
    files |= {"extensions/three.py": "from extensions import two", "extensions/four.py": "x = 1"}
    files |= {
        "programs/a/__main__.py": "import programs.a.b",
        "programs/a/b.py": "import engine.fast",
    }
    for name in FILES:
        files[name] = text(ROOT / name)
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    found = revealing(tmp_path, list(files))
    assert found == {f"extensions/{n}.py" for n in ("one", "two", "three")} | {"programs/a"}


# -- what is there works -----------------------------------------------------------------------


def test_the_solution_is_the_same_files_filled_in(out, tmp_path):
    starter.main([str(tmp_path / "solution"), "--solution"])
    empty, filled = tree(out), tree(tmp_path / "solution")
    assert empty.keys() == filled.keys()
    assert sorted(name for name in empty if empty[name] != filled[name]) == FILES
    assert all(filled[name][0] == (ROOT / name).read_bytes() for name in FILES)


def own_imports(folder: Path, path: Path) -> list[str]:
    """The modules of the project that a file cannot be imported without."""
    found = []
    for node in ast.parse(text(path)).body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module)
    return [name for name in found if (ROOT / name.split(".")[0]).is_dir()]


def test_nothing_that_is_imported_is_left_out(full):
    for path in full.rglob("*.py"):
        for name in own_imports(full, path):
            place = full / name.replace(".", "/")
            assert place.is_dir() or place.with_suffix(".py").is_file(), f"{path}: {name}"


def test_two_calls_give_the_same_files(out, tmp_path):
    starter.main([str(tmp_path / "again")])
    assert tree(tmp_path / "again") == tree(out)


def test_a_folder_with_something_in_it_is_refused(tmp_path, refused):
    kept = tmp_path / "mine"
    kept.write_text("x", encoding="utf-8")
    with refused(f"{tmp_path}: not empty"):
        starter.main([str(tmp_path)])
    with refused(f"{kept}: a file, expected a new folder"):
        starter.main([str(kept)])
    assert list(tmp_path.iterdir()) == [kept]


def test_an_empty_folder_will_do(tmp_path):
    starter.main([str(tmp_path)])
    assert (tmp_path / "optimizer.py").is_file()


def test_a_starter_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def broken(source, blanks):
        raise KeyboardInterrupt

    monkeypatch.setattr(starter, "blanked", broken)
    with pytest.raises(KeyboardInterrupt):
        starter.write_starter(ROOT, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("checkout", [True, False])
def test_only_tracked_files_are_known_or_without_git_those_that_are_not_ignored(tmp_path, checkout):
    for name in ("a.py", "new.py", "data/big.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x", encoding="utf-8")
    (tmp_path / ".gitignore").write_text("*.csv\n", encoding="utf-8")
    if checkout:
        for words in (["init", "--quiet"], ["add", "a.py", ".gitignore"]):
            subprocess.run(["git", *words], cwd=tmp_path, check=True)
    expected = [".gitignore", "a.py", *([] if checkout else ["new.py"])]
    assert tracked_files(tmp_path) == expected


def test_a_tracked_file_that_is_missing_is_named(tmp_path, monkeypatch):
    tracked = tracked_files(ROOT)
    monkeypatch.setattr(starter, "starter_files", lambda *_, **__: [*tracked[:3], "gone.py"])
    with pytest.raises(InputError, match=r"not there: gone\.py: put them back"):
        starter.write_starter(ROOT, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_git_knows_nothing_of_is_an_error(tmp_path):
    with pytest.raises(InputError, match="git knows no file there"):
        tracked_files(tmp_path)


def test_every_blank_has_its_own_test_file_in_the_order_of_the_work(out):
    files = sorted(path.name for path in (out / "tests").glob("test_*.py"))
    assert files == [blank.test for blank in BLANKS]
