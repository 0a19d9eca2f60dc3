"""The seam for techniques: each hook does what it says, in every task, loaded by its name."""

import importlib
import math
import re
import sys
from dataclasses import dataclass, field, is_dataclass

import pytest
import torch
from course_files import (
    call_main,
    predicted,
    work_in,
    write,
    write_course,
    write_model,
)
from tiny_run import Averager, examples, run, run_path, same_bits, summed_loss, weights

from engine.batches import collate
from engine.checkpoint import load_tree
from engine.errors import InputError
from engine.extension import (
    Extension,
    apply_extensions,
    extension_files,
    load_extensions,
    techniques,
)
from engine.files import ROOT

TASKS = ["classifier", "paraphrase_detection", "sonnet_generation"]
PROBE = '''"""A probe: it leaves a trace of each hook, in numbers that a checkpoint keeps."""

from dataclasses import dataclass

import torch

from engine.extension import Extension


@dataclass
class Probe(Extension):
    size: int = 3
    strength: float = 0.0
    frozen: bool = False
    note: str = ""

    @property
    def freezes_backbone(self):
        return self.frozen

    def prepare_model(self, model):
        model.probe = torch.nn.Linear(1, self.size, bias=False)
        torch.nn.init.ones_(model.probe.weight)
        model.register_buffer("steps", torch.zeros(()))
        model.register_buffer("rows", torch.zeros(()))

    def make_optimizer(self, model, lr, weight_decay):
        if self.note == "sgd":
            return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
        return None

    def penalty(self, model, batch, logits):
        model.rows += len(batch["sent_ids"])
        return self.strength * model.probe.weight.sum()

    def after_step(self, model):
        model.steps += 1
'''


@pytest.fixture
def probe(tmp_path, monkeypatch):
    """`extensions/probe.py` in another folder: anyone may add to this namespace."""
    write(tmp_path / "more" / "extensions" / "probe.py", PROBE)
    monkeypatch.syspath_prepend(tmp_path / "more")
    return "probe"


@pytest.fixture
def place(tmp_path, monkeypatch):
    work_in(monkeypatch, tmp_path)
    write_course("data")
    write_model("model")
    return tmp_path


def words(*extra) -> list[str]:
    return ["--data_dir", "data", "--model_size", "model", "--epochs", "1", *map(str, extra)]


def run_task(monkeypatch, task: str, *extra) -> dict:
    """The tree of the best file of a run of a task."""
    flags = {"classifier": ["--dataset", "sst", "--fine-tune-mode", "full-model"]}
    flags["sonnet_generation"] = ["--max_new_tokens", "2"]
    call_main(monkeypatch, task, *words(*flags.get(task, []), *extra))
    return load_tree(run_path("runs", "*/best.safetensors"))


# -- by name, in every task --------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_an_extension_by_name_takes_part_in_a_run_of_each_task(task, probe, place, monkeypatch):
    tree = run_task(monkeypatch, task, "--extension", "probe:size=2,strength=0.5")
    model, rows = tree["model"], {"sonnet_generation": 12}.get(task, 40)
    steps = -(-rows // 8)
    assert model["steps"] == steps and model["rows"] == rows
    assert model["probe.weight"].shape == (2, 1)
    assert (model["probe.weight"] < 1).all()  # the penalty's gradient moved it
    assert tree["settings"]["extension"] == ["probe:size=2,strength=0.5"]


@pytest.mark.parametrize("task", TASKS)
def test_a_checkpoint_rebuilds_its_model_with_the_extension(task, probe, place, monkeypatch):
    run_task(monkeypatch, task, "--extension", "probe:strength=0.5", "--lr", "1e-3")
    best = run_path("runs", "*/best.safetensors")
    program = importlib.import_module(task)
    one = program.TASKS["sst"] if task == "classifier" else program.TASK
    model, _ = one.load(best)
    tree = load_tree(best)
    assert same_bits(weights(model), weights(model) | tree["model"])
    assert "steps" in tree["model"]


def test_predictions_from_a_checkpoint_are_the_run_s_own(probe, place, monkeypatch):
    flags = ["--dataset", "sst", "--fine-tune-mode", "full-model", "--lr", "1e-2"]
    call_main(monkeypatch, "classifier", *words(*flags, "--extension", "probe"))
    path = place / "predictions" / "finetune-sst-test-out.csv"
    first = predicted(path)
    path.unlink()
    best = run_path("runs", "*/best.safetensors")
    call_main(monkeypatch, "classifier", *words("--dataset", "sst", "--checkpoint", best))
    assert predicted(path) == first and len(set(first.values())) > 1


@pytest.mark.parametrize("mode", ["full-model", "last-linear-layer"])
def test_freezing_leaves_the_backbone_s_bits_alone(mode, probe, place, monkeypatch):
    flags = ["--fine-tune-mode", mode, "--extension", "probe:frozen=true,strength=1"]
    tree = run_task(monkeypatch, "classifier", *flags, "--lr", "1e-2")
    assert set(tree["model"]) == {
        "sentiment_head.weight",
        "sentiment_head.bias",
        "probe.weight",
        "steps",
        "rows",
    }


def test_last_linear_layer_runs_the_whole_model_when_an_extension_acts_on_it(
    probe, place, monkeypatch
):
    """Cached features would leave out what an extension does inside the backbone."""

    def no_cache(*_):
        raise AssertionError("features were cached")

    monkeypatch.setattr("engine.frozen_features.FrozenFeatures", no_cache)
    mode = ["--fine-tune-mode", "last-linear-layer"]
    run_task(monkeypatch, "classifier", *mode, "--extension", "probe")
    with pytest.raises(AssertionError, match="features were cached"):
        run_task(monkeypatch, "classifier", *mode)


# -- options -----------------------------------------------------------------------------------


def test_options_are_the_dataclass_s_fields_in_their_types(probe):
    [first, second] = load_extensions(
        ["probe:size=7,strength=1e-2,frozen=True,note=sgd", "probe:frozen=false"]
    )
    assert (first.size, first.strength, first.frozen, first.note) == (7, 0.01, True, "sgd")
    assert (second.size, second.strength, second.frozen, second.note) == (3, 0.0, False, "")


@pytest.mark.parametrize(
    "flag, said",
    [
        ("probe:sice=7", "option 'sice=7', expected some of: size=3, strength=0.0, frozen=False"),
        ("probe:size", "option 'size', expected some of: size=3"),
        ("probe:size=three", "size=three, expected int"),
        ("probe:strength=x", "strength=x, expected float"),
        ("probe:frozen=maybe", "frozen=maybe, expected bool"),
        ("prob", "--extension prob: no such technique; did you mean probe? there are probe, "),
        ("Probe", "--extension Probe: no such technique; did you mean probe? there are probe, "),
        ("zzz:a=1", "--extension zzz: no such technique; there are "),
        ("probe_part", "--extension probe_part: no such technique; did you mean probe?"),
        ("../probe", "--extension ../probe: no such technique; did you mean probe?"),
        ("", "--extension '': no such technique; there are "),
        ("a\nb", r"--extension 'a\nb': no such technique; there are "),
        ("two", "One, Two: expected one technique"),
        ("broken", "--extension broken: No module named 'no_such_package': install the package"),
    ],
)
def test_a_mistake_in_the_flag_is_answered_with_what_there_is(probe, tmp_path, flag, said):
    folder = tmp_path / "more" / "extensions"
    write(folder / "probe_part.py", "from engine.extension import Extension\n")
    write(folder / "broken.py", "import no_such_package\n")
    write(folder / "unfinished.py", "def f(:\n")
    one = PROBE.replace("class Probe(", "class One(")
    write(folder / "two.py", one + "\n\n@dataclass\nclass Two(One):\n    pass\n")
    with pytest.raises(InputError) as refused:
        load_extensions([flag])
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("task", TASKS)
def test_a_technique_that_is_given_twice_is_refused(task, probe, place, monkeypatch, refused):
    twice = ["--extension", "probe:size=2", "--extension", "probe:size=3"]
    with refused("--extension: probe is given twice: give it once, with all options"):
        run_task(monkeypatch, task, *twice)


def test_a_program_is_no_technique(monkeypatch, tmp_path):
    write(tmp_path / "programs" / "tool" / "__main__.py", "")
    monkeypatch.setattr("engine.extension.ROOT", tmp_path)
    with pytest.raises(InputError, match=r"a program.* python -m programs\.tool"):
        load_extensions(["tool"])


@pytest.mark.skipif(not (ROOT / "extensions").is_dir(), reason="extensions/ is not here")
@pytest.mark.parametrize("flag", ["nope", "flash_attention_triton", "dpo", "lora_typo", "../x", ""])
def test_a_name_that_is_no_technique_ends_a_run_in_one_line(flag, place, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run_task(monkeypatch, "classifier", "--extension", flag)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: --extension ")
    assert error.count("\n") == 1 and not list(place.glob("runs/*/best.safetensors"))


def test_the_techniques_are_the_modules_that_can_be_loaded_though_none_is_imported(probe, tmp_path):
    folder = tmp_path / "more" / "extensions"
    write(
        folder / "base.py",
        "from engine.extension import Extension\n\n\nclass Base(Extension): pass\n",
    )
    derived = "from dataclasses import dataclass\n\nfrom extensions.base import Base\n\n\n"
    derived += "@dataclass(frozen=True)\nclass Derived(Base):\n    size: int = 2\n"
    write(folder / "derived.py", derived)
    write(folder / "needy.py", f"import no_such_package\n{PROBE}")
    found = techniques()
    assert "extensions.derived" not in sys.modules and {"probe", "derived", "needy"} <= set(found)
    names = [name for name in extension_files() if name != "needy" and not name.startswith("test_")]
    modules = [importlib.import_module(f"extensions.{name}") for name in names]
    classes = [value for module in modules for value in vars(module).values()]
    options = [c for c in classes if isinstance(c, type) and is_dataclass(c)]
    loadable = {
        c.__module__.removeprefix("extensions.") for c in options if issubclass(c, Extension)
    }
    assert found == sorted(loadable | {"needy"})


# -- each hook ---------------------------------------------------------------------------------


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr("engine.checkpoint.RunFolder.draw_curves", lambda *_: None)
    monkeypatch.setattr("engine.checkpoint.current_commit", lambda: "a test")


@dataclass
class Descent(Extension):
    """Plain gradient descent at rate lr, with a penalty, and a note of every step."""

    weight: float = 0.0
    seen: list = field(default_factory=list)

    def make_optimizer(self, model, lr, weight_decay):
        return torch.optim.SGD(model.parameters(), lr=lr)

    def penalty(self, model, batch, logits):
        return self.weight * logits.square().sum(dim=1).mean()

    def after_step(self, model):
        self.seen.append(weights(model))


def test_a_neutral_extension_changes_no_bit(tmp_path, quiet):
    ends = []
    for extensions in ([], [Extension()], [Extension(), Extension()]):
        model = Averager(dropout=0.3)
        apply_extensions(model, extensions)
        torch.manual_seed(0)
        run(model, tmp_path / str(len(ends)), extensions=extensions, epochs=2)
        ends.append(weights(model))
    assert same_bits(ends[0], ends[1]) and same_bits(ends[0], ends[2])


@pytest.mark.parametrize("batch_size, accumulate", [(8, 1), (4, 2), (3, 3)])
def test_a_penalty_is_added_to_the_mean_loss_of_the_step(tmp_path, quiet, batch_size, accumulate):
    """And its mean over a batch stays a mean, in however many parts the step is done."""
    descent, model = Descent(weight=0.3), Averager()
    how = {"rows": 8, "batch_size": batch_size, "accumulate": accumulate, "lr": 0.5}
    run(model, tmp_path, extensions=[descent], **how)

    by_hand = Averager()
    dataset = examples(8)
    batch = collate([dataset[i] for i in range(8)])
    logits = by_hand(batch["token_ids"], batch["attention_mask"])
    (summed_loss(logits, batch) / 8 + 0.3 * logits.square().sum(dim=1).mean()).backward()
    for name, p in by_hand.named_parameters():
        torch.testing.assert_close(descent.seen[0][name], p.detach() - 0.5 * p.grad, msg=name)


def test_penalties_of_several_extensions_add_up(tmp_path, quiet):
    class Only(Extension):
        def __init__(self, weight):
            self.weight = weight

        def penalty(self, model, batch, logits):
            return self.weight * logits.square().sum(dim=1).mean()

    ends = []
    for extensions in ([Descent(weight=0.5)], [Descent(weight=0.2), Only(0.1), Only(0.2)]):
        model = Averager()
        run(model, tmp_path / str(len(ends)), extensions=extensions)
        ends.append(weights(model))
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name])


def test_after_step_comes_once_a_step_after_the_weights_moved_in_the_order_given(tmp_path, quiet):
    order = []

    class Note(Extension):
        def __init__(self, name):
            self.name = name

        def after_step(self, model):
            order.append((self.name, model.head.weight.detach().clone()))

    start = Averager().head.weight.detach()
    notes = [Note("a"), Note("b")]
    run(Averager(), tmp_path, extensions=notes, rows=12, batch_size=2, accumulate=3)
    assert [name for name, _ in order] == ["a", "b", "a", "b"]
    assert torch.equal(order[0][1], order[1][1]) and torch.equal(order[2][1], order[3][1])
    assert not torch.equal(order[0][1], start) and not torch.equal(order[1][1], order[2][1])


def test_an_optimizer_of_an_extension_takes_adamw_s_place(tmp_path, quiet):
    descent, model = Descent(), Averager()
    start = weights(model)
    run(model, tmp_path, extensions=[descent], rows=4, lr=0.0)
    assert same_bits(weights(model), start)  # AdamW's state would be there, and SGD's is not
    tree = load_tree(run_path(tmp_path, "*/last.safetensors"))
    assert not tree["optimizer"]["state"]


def test_two_optimizers_are_refused(tmp_path, quiet):
    with pytest.raises(InputError, match=r"and .* bring an optimizer each: choose one"):
        run(Averager(), tmp_path, extensions=[Descent(), Descent()])


def test_those_that_freeze_change_the_model_before_the_others():
    order = []

    class Note(Extension):
        def __init__(self, name, freezes):
            self.name, self.freezes_backbone = name, freezes

        def prepare_model(self, model):
            order.append(self.name)

    flags = {"a": False, "b": True, "c": False, "d": True}
    apply_extensions(Averager(), [Note(name, freezes) for name, freezes in flags.items()])
    assert order == ["b", "d", "a", "c"]


def test_two_adapters_that_freeze_the_rest_do_not_freeze_each_other():
    class Adapter(Extension):
        freezes_backbone = True

        def __init__(self, name):
            self.name = name

        def prepare_model(self, model):
            model.gpt.register_parameter(self.name, torch.nn.Parameter(torch.zeros(2)))

    model = Averager()
    apply_extensions(model, [Adapter("one"), Extension(), Adapter("two")])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"gpt.one", "gpt.two", "head.weight", "head.bias"}


# -- what the pages say ------------------------------------------------------------------------


def test_the_readme_s_example_works(tmp_path, place, monkeypatch):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?ConfidencePenalty.*?)```", text, flags=re.DOTALL)
    [flag] = re.findall(r"`--extension (confidence:\S+)`", text)
    write(tmp_path / "more" / "extensions" / "confidence.py", code)
    monkeypatch.syspath_prepend(tmp_path / "more")
    [extension] = load_extensions([flag])
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])
    found = extension.penalty(None, {}, logits)
    entropy = (math.log(2) - 0.25 * math.log(0.25) - 0.75 * math.log(0.75)) / 2
    assert float(found) == pytest.approx(-extension.weight * entropy)
    run_task(monkeypatch, "classifier", "--extension", flag)


@dataclass
class Remembering(Extension):
    """Looks whether what one hook stores is there in the next."""

    def prepare_model(self, model):
        self.model, self.checked, self.parts = model, 0, []

    def check(self, model):
        assert self.model is model
        self.checked += 1

    def before_backward(self, model, batch):
        assert self.model is model and all(p.grad is None for p in model.parameters())
        self.parts.append(len(batch["sent_ids"]))

    def after_step(self, model):
        assert all(p.grad is not None for p in model.parameters())


def test_a_run_has_one_instance_of_an_extension(tmp_path, quiet):
    one, model = Remembering(), Averager()
    apply_extensions(model, [one])
    assert model.extensions == [one] and model.extensions[0] is one
    run(model, tmp_path, extensions=model.extensions, rows=8, batch_size=8)
    assert one.checked == 1 and set(one.parts) == {8}


@pytest.mark.skipif(not (ROOT / "extensions").is_dir(), reason="extensions/ is not here")
def test_the_hooks_in_the_extensions_page_are_those_of_the_seam():
    page = (ROOT / "extensions" / "README.md").read_text(encoding="utf-8")
    text = page.partition("## How to add one")[2].partition("## What there")[0]
    named = set(re.findall(r"\| `(\w+)[(`= ]", text)) - {"file"}
    public = {name for name in vars(Extension) if not name.startswith("_")}
    assert named == public
