"""A missing optional package breaks no import, and is named with the command to install it."""

import re
import subprocess
import sys

import pytest

from engine.errors import InputError, optional
from engine.files import ROOT

NAMES = re.findall(
    r"^(\w+)==", (ROOT / "requirements-optional.txt").read_text("utf-8"), re.MULTILINE
)
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("extensions", "programs", "studies", "benchmarks", "course")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.parent.name != "tests"  # those of the handout run in a starter
]
IMPORT = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({NAMES}))
for name in {MODULES}:
    importlib.import_module(name)
assert not any(map(sys.modules.get, {NAMES}))
print("all", len({MODULES}))
"""


def test_every_extension_and_benchmark_imports_without_the_optional_packages():
    assert "triton" in NAMES and "benchmarks.timing" in MODULES
    words = [sys.executable, "-c", IMPORT]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"all {len(MODULES)}\n"), done.stderr


def test_a_package_that_is_there_is_imported():
    assert optional("json", "this") is sys.modules["json"]


@pytest.mark.parametrize(
    "module, text, name, package",
    [
        ("no_such_thing.part", None, "", "no_such_thing"),
        ("no_such_thing.part", None, "such-thing", "such-thing"),  # pip's name
        ("needy", "import another_thing.part", "", "another_thing"),  # that it needs itself
        ("needy", "import another_thing.part", "needy-thing", "another_thing"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    module, text, name, package, tmp_path, monkeypatch
):
    if text:
        (tmp_path / f"{module}.py").write_text(text, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=f"^this needs {package}: pip install {package}$"):
        optional(module, "this", name)
