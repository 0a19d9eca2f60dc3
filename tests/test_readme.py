"""What the README says is true: its commands parse, its files exist."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from engine.files import ROOT
from studies import entries, figures, plan
from studies.records import Records

README, RUNNING = (
    (ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/running.md")
)
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", README + RUNNING, flags=re.DOTALL | re.MULTILINE)
BLOCKS = [block for language, block in FENCED if language in ("", "sh")]
COMMANDS = [
    re.split(r"#| [|<] ", line)[0].strip()
    for line in "\n".join(BLOCKS).replace("\\\n", "").splitlines()
    if re.match(r"(python|make|source) ", line)
]
TASKS = ("classifier", "paraphrase_detection", "sonnet_generation")


def test_the_page_can_be_read_at_one_sitting():
    assert len(README.splitlines()) <= 150


def test_there_are_commands_to_check():
    assert len(COMMANDS) >= 9


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_a_command_names_a_program_that_is_there_and_flags_that_it_has(command):
    program, *words = shlex.split(command)
    if program == "make":
        targets = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{words[0]}:", targets, flags=re.MULTILINE)
        return
    if words[0] == "-m":
        folder, *_, name = words[1].split(".")
        if not any((ROOT / folder).glob("*/__main__.py")) and name != folder:
            pytest.skip(f"{folder}/ has no programs here")
        assert ROOT.joinpath(*words[1].split("."), "__main__.py").is_file()
        return
    assert (ROOT / words[0]).is_file()
    name = words[0].removesuffix(".py")
    if name in TASKS:
        module = importlib.import_module(name)
        task = module.TASKS["sst"] if name == "classifier" else module.TASK
        task.get_args([w for w in words[1:] if w != "FOLDER"])


def test_the_flags_in_the_table_are_flags():
    rows = re.findall(r"^\| `(--.*?)` \|", RUNNING, flags=re.MULTILINE)
    rows += re.findall(r"`, `(--\w+ \w+)`", RUNNING)
    flags = {word for row in rows for word in re.findall(r"--[\w-]+", row)}
    assert len(flags) > 8
    words = [sys.executable, str(ROOT / "classifier.py"), "--help"]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert [flag for flag in flags if flag not in text] == []


def test_the_files_of_the_tree_are_there():
    [tree] = [block for block in BLOCKS if "config.py      GPT2Config" in block]
    named = re.findall(r"(?<![\w/.<>-])[a-z_0-9]+(?:\.py|\.npy|/)(?![\w])", tree)
    folders = ("", "modules", "models", "data")
    assert len(named) > 25
    missing = [n for n in named if not any((ROOT / f / n).exists() for f in folders)]
    assert set(missing) <= {"extensions/", "programs/", "course/"}  # the core runs without them


def test_every_module_has_its_place_in_the_tree():
    [tree] = [block for block in BLOCKS if "config.py      GPT2Config" in block]
    for path in [*ROOT.glob("*.py"), *ROOT.glob("mod*/*.py")]:
        if path.name != "__init__.py":
            assert path.name in tree, path


def test_the_results_name_their_checkpoint_and_machine():
    results = json.loads((ROOT / "benchmarks" / "results" / "core.json").read_text("utf-8"))
    for fact in ("checkpoint", "hardware"):
        assert results[fact] in README
    for job in results["jobs"]:
        times = job["seconds"]
        if "starter" in times:
            ratio = times["starter"]["median"] / times["ours"]["median"]
            assert job["ratio"] == pytest.approx(ratio)


def test_the_study_is_of_the_bundled_checkpoint():
    runs = Records(ROOT / "studies" / "results").read("pretraining")
    now = {"checkpoint": plan.checkpoint_name("gpt2-mini"), "limit": None}
    assert all(now.items() <= run["settings"].items() for run in runs)
    for study in entries.load(suite="pretraining"):
        table = figures.figures_of(study, runs)
        for start in ("random weights", "gpt2-mini"):
            assert len(figures.values(table, start, study.figure)) == 3


# -- the example of a technique ----------------------------------------------------------------

LEFT_OUT = (".*", "__pycache__", "data", "predictions", "runs", "pretrained", "*.safetensors")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A copy of the tree, to which the README's example was added as the README says."""
    if not (ROOT / "extensions").is_dir():
        pytest.skip("extensions/ is not here")
    root = tmp_path_factory.mktemp("scratch") / "tree"
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(*LEFT_OUT))
    [code] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    [path] = re.findall(r"^Saved as `(extensions/\w+\.py)`", README, flags=re.MULTILINE)
    [row] = re.findall(rf"`` (\| `{path.removeprefix('extensions/')}` \|.*\|) ``\n", README)
    [tried] = re.findall(r"`(TRIED = .*?)`", README)
    (root / path).write_text(code, encoding="utf-8")
    test = f'"""Its test."""\n\nfrom technique_cases import Tried\n\n{tried}\n'
    (root / "tests/extensions/test_confidence.py").write_text(test, encoding="utf-8")
    page = (root / "extensions" / "README.md").read_text(encoding="utf-8")
    [*_, last] = re.finditer(r"^\| `\w+\.py` \|(?:.*\|){6}\n", page, flags=re.MULTILINE)
    page = f"{page[: last.end()]}{row}\n{page[last.end() :]}"
    (root / "extensions" / "README.md").write_text(page, encoding="utf-8")
    return root


def passed(scratch, *words) -> int:
    """How many tests pass in the copy; none may fail."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "", "-p", "no:cacheprovider", *words]
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    return int(re.search(r"^(\d+) passed", done.stdout, flags=re.MULTILINE)[1])


def test_the_example_is_what_the_pages_and_the_tree_expect_of_a_technique(scratch):
    files = "test_architecture extensions/test_contract benchmarks/test_extensions_benchmark"
    files = [f"tests/{name}.py" for name in files.split()]
    of_it = "confidence and (imports or except or encoding or print or first_line or page)"
    assert passed(scratch, *files, "-k", f"every_technique or ({of_it})") >= 9


@pytest.mark.slow
def test_the_example_does_what_every_technique_must_do(scratch):
    assert passed(scratch, "tests/extensions/test_contract.py", "-k", "confidence") > 40


def test_the_example_is_formatted_and_clean(scratch):
    for words in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *words, "extensions/confidence.py"]
        done = subprocess.run(ruff, cwd=scratch, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
