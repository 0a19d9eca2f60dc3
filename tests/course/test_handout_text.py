"""What the handout says is true of the files that students get."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from course.handout import starter
from course.handout.blanks import BLANKS
from course.handout.page import SOURCE
from engine.files import ROOT
from engine.records import NUM_LABELS, SONNET_FILES, data_file, read_sentiment, read_sonnets
from engine.submission_form import required_predictions
from prepare_submit import ZIP_NAME

HANDOUT = SOURCE.read_text(encoding="utf-8")
README = (ROOT / starter.OURS / "README.md").read_text(encoding="utf-8")
PROSE = re.sub(r"```.*?```", "", HANDOUT + README, flags=re.DOTALL)
SPANS = sorted(set(re.findall(r"`([^`]+)`", PROSE)))
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", HANDOUT + README, flags=re.DOTALL)
    for line in block.splitlines()
]
TASKS = ("classifier", "paraphrase_detection", "sonnet_generation")
VALUE = re.compile(r"([\w.]+)(?:\[(\"?[\w-]+\"?)\])? = (\S+)$")
FILE = re.compile(r"[\w./-]+(?:/|\.(?:py|npy|csv|txt|md|sh|zip|safetensors))$")
NAMES = re.compile(r"[A-Za-z_][\w.]*(?:\(\))?$")


@pytest.fixture(scope="module")
def solution(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "solution"
    starter.main([str(folder), "--solution"])
    return folder


def parsers() -> list:
    """The parser of each task."""
    found = []
    for name in TASKS:
        module = importlib.import_module(name)
        task = module.TASKS["sst"] if name == "classifier" else module.TASK
        parser = starter.Parser()
        task.add_arguments(parser)
        found.append(parser)
    return found


def value_of(name: str, key: str | None = None):
    """What a name of the lesson, of a task or of the engine stands for."""
    first, *rest = name.split(".")
    files = [path.relative_to(ROOT) for path in ROOT.glob("engine/*.py")]
    modules = [
        *TASKS,
        "config",
        "sanity_check",
        *(".".join(f.with_suffix("").parts) for f in files),
    ]
    if first in modules:
        found = importlib.import_module(first)
    else:
        [found] = {
            id(value): value
            for module in modules
            if (value := vars(importlib.import_module(module)).get(first)) is not None
        }.values()
    for part in rest:
        found = getattr(found, part)
    return found if key is None else found[ast.literal_eval(key)]


def words_of_code(folder: Path) -> set[str]:
    """Every name, attribute, argument and string in the Python files of a folder."""
    kinds = {ast.Name: "id", ast.Attribute: "attr", ast.arg: "arg", ast.Constant: "value"}
    kinds |= dict.fromkeys((ast.FunctionDef, ast.ClassDef, ast.alias), "name")
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if type(node) in kinds:
                found.add(getattr(node, kinds[type(node)]))
    return found


def wrong_flags(span: str, *, defaults: bool) -> str | None:
    """What is wrong with `--flag VALUE` and more of them; defaults: whether these are meant."""
    words = shlex.split(span)
    for flag, value in zip(words, [*words[1:], None], strict=True):
        if not flag.startswith("--"):
            continue
        actions = [a for parser in parsers() for a in parser._actions if flag in a.option_strings]
        if not actions:
            return f"no task has {flag}"
        if value is None or value.startswith("--"):
            continue
        if defaults and not any(value == str(action.default) for action in actions):
            return f"{flag} has another default"
        if not any(value in (action.choices or [value]) for action in actions):
            return f"{flag} takes no {value}"
    return None


def wrong_span(span: str, solution: Path, words: set, *, defaults: bool = False) -> str | None:
    """What is wrong with a span of code in the text; None: nothing."""
    if span.startswith("--"):
        return wrong_flags(span, defaults=defaults)
    if match := VALUE.match(span):
        name, key, value = match.groups()
        return None if value_of(name, key) == float(value) else "another value"
    if FILE.match(span):
        there = (solution / span).exists() or span.removeprefix("data/") in DATA
        return None if there or span in WRITTEN else "no such file"
    if NAMES.match(span):
        missing = [part for part in span.removesuffix("()").split(".") if part not in words]
        return f"no such name: {missing}" if missing else None
    if span.startswith("python "):
        return None if (solution / span.split()[1]).is_file() else "no such program"
    if span.startswith("id, "):
        return None if span.removeprefix("id, ") in words else "no such column"
    said = any(isinstance(word, str) and span in word for word in words)
    return None if said else "neither a flag, a file, a value nor a name, nor what a program says"


DATA = {*SONNET_FILES.values()}
DATA |= {data_file(t, s) for t in (*NUM_LABELS, "paraphrase") for s in ("train", "dev", "test")}
WRITTEN = {*required_predictions(), ZIP_NAME, "runs/", "best.safetensors", "extensions/"}


def test_every_span_of_code_is_right(solution):
    words = words_of_code(solution)
    assert len(SPANS) > 90
    paragraphs = [p for p in PROSE.split("\n\n") if "defaults" in p]
    defaults = {span for p in paragraphs for span in re.findall(r"`([^`]+)`", p)}
    wrong = {s: wrong_span(s, solution, words, defaults=s in defaults) for s in SPANS}
    assert {span: reason for span, reason in wrong.items() if reason} == {}


@pytest.mark.parametrize(
    "span",
    [
        *(
            "--epoch 10",
            "--epochs 11",
            "--schedule wavy",
            'LEARNING_RATES["full-model"] = 1e-4',
            "no/such.py",
        ),
        *("GPT2Layer.plus", "predictions/finetune-sst.csv", "x + y"),
    ],
)
def test_a_wrong_span_would_be_seen(solution, span):
    assert wrong_span(span, solution, words_of_code(solution), defaults=True)


def test_the_numbers_in_the_first_table_are_the_defaults():
    rows = re.findall(r"^\| `([\w.]+)` \| ([\d.]+) \|$", HANDOUT, flags=re.MULTILINE)
    assert len(rows) == 7
    assert [row for row in rows if value_of(row[0]) != float(row[1])] == []


@pytest.mark.parametrize(
    "name, count", re.findall(r"^\| `data/([\w.-]+)` \| (\d+) \|$", HANDOUT, flags=re.MULTILINE)
)
def test_the_data_files_have_as_many_rows_as_it_says(name, count):
    places = [folder / name for folder in (ROOT / "data", ROOT.parent / "shared" / "data")]
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        pytest.skip("the course's data are not here")
    rows = read_sentiment(path, None) if name.endswith(".csv") else read_sonnets(path)
    assert len(rows) == int(count)


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_a_command_can_be_given(solution, command):
    program, *words = shlex.split(command)
    if program == "source":
        assert (solution / words[0]).is_file()
        return
    assert program == "python"
    if words[:2] == ["-m", "pytest"]:
        assert all((solution / word).is_file() for word in words[2:])
        return
    assert (solution / words[0]).is_file()
    name = words[0].removesuffix(".py")
    if name in TASKS:
        module = importlib.import_module(name)
        task = module.TASKS["sst"] if name == "classifier" else module.TASK
        task.get_args(words[1:])


def test_every_blank_is_explained_in_the_section_that_it_names():
    parts = re.split(r"^##+ (.+)$", HANDOUT, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    for blank in BLANKS:
        assert f"`{blank.name}`" in sections[blank.section], blank.name
        assert f"`{blank.file}`" in sections[blank.section], blank.name


def test_the_readme_lists_the_blanks_in_their_order():
    rows = re.findall(r"^\| `(\S+)` \| `(\S+)` \| `tests/(\S+)` \|$", README, flags=re.MULTILINE)
    assert rows == [(blank.name, blank.file, blank.test) for blank in BLANKS]


def test_every_paper_that_is_cited_is_in_the_references():
    text, _, references = HANDOUT.partition("## References")
    listed = re.findall(r"^- (.+? \d{4}),", references, flags=re.MULTILINE)
    cited = set(re.findall(r"([A-Z][\w-]+(?: & [A-Z][\w-]+| et al\.)) (\d{4})", text))
    assert {" ".join(one) for one in cited} == set(listed)
    assert listed == sorted(listed)


def test_every_required_prediction_is_named_or_of_a_kind_that_is():
    for name in required_predictions():
        assert name in HANDOUT or name.replace("-dev-", "-test-") in HANDOUT, name
