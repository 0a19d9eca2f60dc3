"""Each planted mistake costs its line of the rubric, and the message names it."""

import itertools
import types

import planted
import pytest

import engine.hub
import sonnet_generation
from course.autograder.checks import hypotheses
from course.autograder.inside import parts, runner, task_parts
from course.autograder.rubric import CHECKS
from course.autograder.session import Failed, described
from engine.files import ROOT
from models.gpt2 import GPT2Model


def module_of(file: str, *mistakes) -> types.ModuleType:
    module = types.ModuleType(file.removesuffix(".py").replace("/", "."))
    code = compile(planted.edited(file, *mistakes), f"/submission/{file}", "exec")
    exec(code, vars(module))
    return module


@pytest.fixture
def findings(monkeypatch):
    """Run the checks of a section in this process, on files with mistakes: line -> message."""
    monkeypatch.setattr(GPT2Model, "from_pretrained", GPT2Model.from_pretrained)
    for module in (engine.hub, sonnet_generation):
        monkeypatch.setattr(module, "load_tokenizer", lambda name: None)
    seeds = itertools.count()

    def ask(op, tensors, **settings):
        try:
            return runner.answer({"op": op, "seed": next(seeds)} | settings, tensors)
        except Exception as error:
            description = runner.description(error, "/submission")
            raise Failed(described(description, 0)) from error

    def findings(section: str, *mistakes) -> dict[str, str]:
        edited = {m.file.removesuffix(".py").replace("/", "."): m.file for m in mistakes}
        modules = {name: module_of(file, *mistakes) for name, file in edited.items()}

        def load(module, name):
            return getattr(modules.get(module) or __import__(module, fromlist=[name]), name)

        monkeypatch.setattr(parts, "load", load)
        monkeypatch.setattr(task_parts, "load", load)
        found = {}
        for check in CHECKS:
            if check.section == section:
                problems = dict.fromkeys(check.lines, "")
                found |= problems | measured(check, ask)
        return found

    return findings


def measured(check, ask) -> dict[str, str]:
    try:
        return check.measure(ask, hypotheses.Draw(11))
    except Failed as failure:
        return dict.fromkeys(check.lines, str(failure))


@pytest.mark.parametrize("section", {check.section: None for check in CHECKS})
def test_our_own_solution_has_no_fault(findings, section):
    assert not any(findings(section).values())


CASES = {f"{mistake.line}: {mistake.says}": mistake for mistake in planted.PLANTED}
BOTH = {"model.last_right": {"last_left"}, "layer.residuals": {"residuals"}}


@pytest.mark.parametrize("case", CASES)
def test_a_planted_mistake_is_named_and_costs_its_line_alone(findings, case):
    mistake = CASES[case]
    section, line = mistake.line.split(".")
    found = findings(section, mistake)
    assert found[line].startswith(mistake.says), found
    others = {name for name, problem in found.items() if problem} - {line}
    end_to_end = {"forward", "whole"}  # these are wrong wherever a part is
    assert others <= BOTH.get(mistake.line, set()) | end_to_end, found


def test_there_are_many_planted_mistakes_and_each_is_told_from_the_others():
    assert len(CASES) == len(planted.PLANTED) >= 25


def test_the_page_has_the_table_of_the_planted_mistakes():
    path = ROOT / "course" / "README.md"
    text = path.read_text(encoding="utf-8")
    assert planted.page(text) == text, "run python tests/course/planted.py"
