"""Imports go strictly down, and the house rules that a program can check hold everywhere."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from utils import ROOT

LEVELS = {
    0: "config utils optimizer parallel compiling",
    1: "modules checkpoint engine",
    2: "models dataset batches corpus",
    3: "evaluation prediction_files training flags stages",
    4: "extensions",
    5: "classifier paraphrase_detection sonnet_generation",
    6: "sanity_check optimizer_test prepare_submit demo pretrain data benchmarks course",
}
LEVEL = {name: level for level, names in LEVELS.items() for name in names.split()}
# Techniques that are programs of their own, run outside the one loop.
PROGRAMS = {
    f"extensions.{name}": 6
    for name in (
        *("dpo", "gptq", "ensemble", "search", "significance", "decoding", "augment"),
        *("quantize", "quantised_job", "search_trial", "preference_data"),
    )
}
PEERS = {  # within a level: who may import whom
    ("utils", "config"),
    ("parallel", "utils"),
    ("compiling", "parallel"),
    ("compiling", "utils"),
    ("modules.gpt2_layer", "modules.attention"),
    ("models.gpt2", "models.base_gpt"),
    ("models.generation", "models.cuda_graph"),
    ("models.generation", "models.gpt2"),
    ("models.generation", "models.last_token"),
    ("models.gpt2", "models.last_token"),
    ("batches", "models.gpt2"),
    ("flags", "training"),
    ("extensions.augment_text", "extensions.leak_check"),
    ("extensions.search", "extensions.search_trial"),
    ("extensions.sonnet_writer", "extensions.decoding_search"),
    ("extensions.sonnet_writer", "extensions.sonnet_form"),
    ("extensions.decoding_strategies", "extensions.decoding_search"),
    ("extensions.decoding_strategies", "extensions.sonnet_form"),
    ("extensions.decoding_strategies", "extensions.sonnet_writer"),
    ("extensions.swa", "extensions.ema"),
    ("extensions.ema", "extensions.averaged_weights"),
    ("extensions.smart", "extensions.averaged_weights"),
    ("extensions.quantised_linear", "extensions.qat"),
    ("extensions.gptq_rounding", "extensions.qat"),
    ("extensions.gptq_rounding", "extensions.quantised_linear"),
    ("extensions.quantize", "extensions.quantised_job"),
    ("extensions.gptq", "extensions.quantised_job"),
    ("extensions.gptq", "extensions.quantize"),
    ("extensions.kfac", "extensions.matrix_optimizer"),
    ("extensions.muon", "extensions.matrix_optimizer"),
    ("extensions.shampoo", "extensions.matrix_optimizer"),
    ("extensions.soap", "extensions.matrix_optimizer"),
    ("extensions.dpo", "extensions.preference_data"),
    ("extensions.preference_batches", "extensions.preference_losses"),
    ("extensions.preference_batches", "extensions.preference_pairs"),
    ("benchmarks.pretrain", "benchmarks.timing"),
    ("benchmarks.study", "benchmarks.timing"),
    ("benchmarks.pretraining_pays", "benchmarks.study"),
    ("benchmarks.techniques_help", "benchmarks.study"),
    ("benchmarks.programs_help", "benchmarks.programs_runs"),
    ("benchmarks.programs_help", "benchmarks.study"),
    ("benchmarks.programs_runs", "benchmarks.programs_data"),
    ("benchmarks.programs_runs", "benchmarks.study"),
    ("benchmarks.pretrain", "pretrain"),
    ("benchmarks.extensions", "benchmarks.timing"),
    ("benchmarks.extensions", "pretrain"),
    ("benchmarks.scaling", "pretrain"),
}
BENCHMARKS = {  # the one program of many small files: who of them imports whom
    "core": "jobs limits match random_checkpoint report timing",
    "counts": "jobs",
    "huggingface": "peer",
    "limits": "timing",
    "match": "counts huggingface jobs limits peers timing",
    "peer": "jobs timing",
    "peers": "peer starter",
    "scaling": "counts power_law report starter timing",
    "tables": "core extensions pretrain pretraining_pays programs_help report scaling "
    "techniques_help",
}
PEERS |= {
    (f"benchmarks.{module}", f"benchmarks.{name}")
    for module, names in BENCHMARKS.items()
    for name in names.split()
}
CORE = {0, 1, 2, 3, 5}
TASKS = LEVELS[5].split()
HEAVY = {"transformers", "sklearn", "pandas", "matplotlib"}


def module_files() -> dict[str, Path]:
    """Module name -> file: the root's programs, and the folders that belong to a level."""
    folders = [name for name in LEVEL if (ROOT / name).is_dir()]
    paths = list(ROOT.glob("*.py"))
    for folder in folders:
        paths += (ROOT / folder).rglob("*.py")
    files = {}
    for path in sorted(paths):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


FILES = module_files()
TREES = {
    name: ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    for name, path in FILES.items()
}


def level_of(module: str) -> int:
    return PROGRAMS.get(module, LEVEL[module.split(".")[0]])


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
    return {name for name in found if name.split(".")[0] in LEVEL}


def wrong_imports(module: str, imported: set[str]) -> list[str]:
    """What of its imports a module must not have."""
    here, wrong = level_of(module), []
    for name in imported:
        there = level_of(name)
        peers = here == there and (module, name) not in PEERS
        program = here in CORE and name.split(".")[0] == "extensions"
        if there > here or peers or program:
            wrong.append(f"{module} (level {here}) imports {name} (level {there})")
    return wrong


def test_every_module_has_a_level():
    assert [name for name in FILES if name.split(".")[0] not in LEVEL] == []
    assert {"config", "models.gpt2", "data.download", "benchmarks.core"} <= FILES.keys()


@pytest.mark.parametrize("module", FILES)
def test_imports_go_strictly_down(module):
    assert wrong_imports(module, imports(TREES[module])) == []


def test_peers_are_those_that_there_are_and_make_no_cycle():
    graph = {module: imports(tree) - {module} for module, tree in TREES.items()}
    there = (ROOT / "extensions").is_dir()  # the core runs without it
    for module, name in PEERS:
        if module.startswith("extensions.") and not there:
            continue
        assert name in graph[module], f"{module} no longer imports {name}: take it off the list"
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
    "module, text",
    [
        ("utils", "import models.gpt2"),
        ("config", "import utils"),
        ("models.gpt2", "def f():\n    from training import fit"),
        ("training", "from extensions import lora"),
        ("training", "import extensions.dpo"),
        ("classifier", "import sonnet_generation"),
        ("classifier", "from extensions.lora import LoRA"),
        ("extensions.lora", "from classifier import fit"),
        ("extensions.lora", "import extensions.soap"),
        ("evaluation", "import demo"),
    ],
)
def test_a_wrong_import_would_be_seen(module, text):
    assert len(wrong_imports(module, imports(ast.parse(text)))) == 1


@pytest.mark.parametrize(
    "module, text",
    [
        ("utils", "from config import SIZES"),
        ("classifier", "import torch, training"),
        ("extensions.lora", "from training import Extension"),
        ("extensions.dpo", "import sonnet_generation"),
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
            if words and all("b" in word for word in words):
                continue
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


@pytest.mark.parametrize("module", [name for name in FILES if level_of(name) <= 4])
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
    name for name, tree in TREES.items() if tree.body and "__main__" in ast.unparse(tree.body[-1])
]


@pytest.mark.parametrize("module", PROGRAMS_OF_ANY_KIND)
def test_a_program_imports_utils_first_so_that_ctrl_c_ends_in_one_line(module):
    assert imported_packages(TREES[module])[0] == "utils"
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
