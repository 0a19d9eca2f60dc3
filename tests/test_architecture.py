"""Imports go strictly down, and the house rules that a program can check hold everywhere."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from engine.files import ROOT

LESSON = ["config", "utils", "optimizer", "modules", "models"]
TASKS = ["classifier", "paraphrase_detection", "sonnet_generation"]
ABOVE = (LESSON, ["engine"], ["extensions"], ["evaluation"], TASKS, ["programs"])  # then the rest
LEVEL = {name: level for level, names in enumerate(ABOVE) for name in names}
TOP = len(ABOVE)
CORE = {level for level, names in enumerate(ABOVE) if names not in (["extensions"], ["programs"])}
HEAVY = {"transformers", "sklearn", "pandas", "matplotlib"}


def module_files() -> dict[str, Path]:
    """Module name -> file: the root's, and those of every folder but the tests'."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    paths = [ROOT / line for line in listed.stdout.splitlines()]
    paths = [path for path in paths if path.is_file()] or list(ROOT.rglob("*.py"))
    files = {}
    for path in sorted(paths):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] != "tests" and not parts[0].startswith("."):
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


FILES = module_files()
TREES = {
    name: ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    for name, path in FILES.items()
}
PARTS = {name.split(".")[0] for name in FILES} | set(LEVEL)


def level_of(module: str) -> int:
    return LEVEL.get(module.split(".")[0], TOP)


def imports(tree, known=FILES) -> set[str]:
    """This project's modules that a module imports, anywhere in it; from a import b may be a.b."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & set(known) or {node.module}
    return {name for name in found if name.split(".")[0] in PARTS}


def wrong_imports(module: str, imported: set[str]) -> list[str]:
    """What of its imports a module must not have: from above, one task another, a technique."""
    here, wrong = level_of(module), []
    for name in imported - {module}:
        there = level_of(name)
        technique = here in CORE and name.split(".")[0] == "extensions"
        if there > here or technique or (module in TASKS and name in TASKS):
            wrong.append(f"{module} (level {here}) imports {name} (level {there})")
    return wrong


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down(module):
    assert wrong_imports(module, imports(TREES[module])) == []


def test_imports_make_no_circle():
    graph = {module: imports(tree) - {module} for module, tree in TREES.items()}
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
    "module, text",
    [
        ("utils", "from engine.errors import InputError"),
        ("models.gpt2", "def f():\n    from engine.batches import collate"),
        ("engine.training", "from extensions import lora"),
        ("engine.training", "import programs.dpo"),
        ("engine.fast.adamw", "import evaluation"),
        ("classifier", "import sonnet_generation"),
        ("classifier", "from extensions.lora import LoRA"),
        ("extensions.lora", "from classifier import fit"),
        ("extensions.lora", "from programs.quantize import quantize"),
        ("evaluation", "import demo"),
    ],
)
def test_a_wrong_import_would_be_seen(module, text):
    assert len(wrong_imports(module, imports(ast.parse(text)))) == 1


@pytest.mark.parametrize(
    "module, text",
    [
        ("utils", "from config import SIZES"),
        ("classifier", "import torch, engine.training"),
        ("extensions.lora", "from engine.extension import Extension"),
        ("extensions.smart", "import extensions.averaged_weights"),
        ("programs.dpo", "import sonnet_generation"),
        ("demo", "from classifier import NUM_LABELS"),
    ],
)
def test_a_right_import_is_left_alone(module, text):
    assert wrong_imports(module, imports(ast.parse(text))) == []


# -- house rules -------------------------------------------------------------------------------


def bare_excepts(tree) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]


def is_text(node) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def text_files_without_encoding(tree) -> list[int]:
    """Lines of open(), .open(), .read_text() and .write_text() for text without `encoding`."""
    lines = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(word.arg == "encoding" for word in node.keywords):
            continue
        function, arguments = node.func, list(node.args)
        name = getattr(function, "attr", getattr(function, "id", ""))
        owner = getattr(getattr(function, "value", None), "id", "")
        if name not in ("open", "read_text", "write_text") or owner == "os":
            continue
        if name == "read_text" and isinstance(function, ast.Name):
            continue  # a function of the project's own
        if name == "open":
            mode = arguments[1:2] if isinstance(function, ast.Name) else arguments[:1]
            mode += [word.value for word in node.keywords if word.arg == "mode"]
            words = [part.value for node in mode for part in ast.walk(node) if is_text(part)]
            opens_entry = isinstance(function, ast.Attribute) and arguments and not words
            if opens_entry or (words and all("b" in word for word in words)):
                continue  # archive.open(entry) of a zip is bytes, too
        lines.append(node.lineno)
    return lines


def prints(tree) -> list[int]:
    """Lines of print(…) outside a program's `main` and the function by which it leaves."""
    allowed = {
        id(inner)
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name in ("main", "leave")
        for inner in ast.walk(node)
    }
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "print"
        and id(node) not in allowed
    ]


@pytest.mark.parametrize("module", FILES)
def test_no_except_is_bare(module):
    assert bare_excepts(TREES[module]) == []


@pytest.mark.parametrize("module", FILES)
def test_text_files_are_opened_with_an_encoding(module):
    assert text_files_without_encoding(TREES[module]) == []


@pytest.mark.parametrize("module", [name for name in FILES if level_of(name) < LEVEL["classifier"]])
def test_only_programs_print(module):
    assert prints(TREES[module]) == []


def imported_packages(tree) -> list[str]:
    """The packages that a module imports at its top level, in order, without Python's own."""
    names = []
    for node in tree.body:
        if isinstance(node, ast.Import):
            names += [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module.split(".")[0])
    return [name for name in names if name not in sys.stdlib_module_names]


PROGRAMS_OF_ANY_KIND = [
    name
    for name, tree in TREES.items()
    if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
]


@pytest.mark.parametrize("module", PROGRAMS_OF_ANY_KIND)
def test_a_program_imports_errors_first_so_that_ctrl_c_ends_in_one_line(module):
    assert imported_packages(TREES[module])[0] == "engine"
    [main] = [n for n in TREES[module].body if getattr(n, "name", "") == "main"]
    assert [ast.unparse(decorator) for decorator in main.decorator_list] == ["command"]


@pytest.mark.parametrize("module", FILES)
def test_every_module_says_what_it_is_in_its_first_line(module):
    if TREES[module].body:
        docstring = ast.get_docstring(TREES[module])
        assert docstring, f"{FILES[module]} has no docstring"
        assert docstring.splitlines()[0].rstrip()[-1] in ".:`", docstring.splitlines()[0]


@pytest.mark.parametrize(
    "check, text, lines",
    [
        (bare_excepts, "try:\n    f()\nexcept:\n    pass", [3]),
        (bare_excepts, "try:\n    f()\nexcept ValueError:\n    pass", []),
        (text_files_without_encoding, "open(p)", [1]),
        (text_files_without_encoding, "open(p, 'w')\np.open('w')", [1, 2]),
        (text_files_without_encoding, "p.read_text()\np.write_text('x')", [1, 2]),
        (text_files_without_encoding, "open(p, 'rb')\np.open(mode='wb')\nos.open(p, 0)", []),
        (text_files_without_encoding, "archive.open(entry)", []),
        (text_files_without_encoding, "open(p, encoding='utf-8')", []),
        (text_files_without_encoding, "open(p, 'ab' if a else 'wb')", []),
        (text_files_without_encoding, "open(p, 'ab' if a else 'w')", [1]),
        (prints, "def f():\n    print(1)", [2]),
        (prints, "def main():\n    print(1)\ndef f(log=print): log(1)", []),
    ],
)
def test_a_breach_of_a_rule_would_be_seen(check, text, lines):
    assert check(ast.parse(text)) == lines


HELP = f"""
import importlib, sys
sys.argv = ["program", "--help"]
for name in {TASKS}:
    try:
        importlib.import_module(name).main()
    except SystemExit as stop:
        assert stop.code == 0
    print("loaded:", name, *sorted({HEAVY} & sys.modules.keys()))
"""


def test_help_comes_without_loading_heavy_packages():
    run = subprocess.run(
        [sys.executable, "-c", HELP], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = [line for line in run.stdout.splitlines() if line.startswith("loaded:")]
    assert found == [f"loaded: {name}" for name in TASKS]
