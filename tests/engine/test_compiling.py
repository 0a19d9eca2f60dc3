"""`--compile`: the same gradients in other kernels, one graph, and one line where it cannot be."""

import stat

import pytest
import torch
from course_files import call_main, work_in, write, write_course, write_model
from recorder import CallAgain
from tiny_run import Averager, run, run_path, same_bits, tiny_classifier, trainer, weights

from classifier import TASKS
from engine.batches import TokenDataset, collate, forward_tokens, make_loader, to_device
from engine.checkpoint import load_tree
from engine.compiling import compiled, compiler_errors
from engine.errors import InputError
from engine.trainer import Trainer

SST = TASKS["sst"]
CPU = torch.device("cpu")


def texts(rows: int) -> TokenDataset:
    """Of lengths from 3 to 13, so that almost every batch has a shape of its own."""
    ids = [[1 + (3 * i + j) % 39 for j in range(3 + i % 11)] for i in range(rows)]
    return TokenDataset(ids, [f"row{i}" for i in range(rows)], [i % 5 for i in range(rows)])


def trained(tmp_path, compile) -> tuple[dict, Trainer]:
    model, loader = tiny_classifier(), make_loader(texts(26), 4)
    torch.manual_seed(1)
    run = trainer(model, loader, SST.loss_fn, tmp_path, lr=1e-3, compile=compile)
    run.train_epoch()
    return weights(model), run


@pytest.mark.slow
def test_a_compiled_epoch_ends_where_the_plain_one_does(tmp_path):
    plain, run = trained(tmp_path, None)
    fast, fast_run = trained(tmp_path, "default")
    assert fast_run.gradients.objective.network is not fast_run.model
    assert fast_run.progress.loss == pytest.approx(run.progress.loss, rel=1e-5)
    for name in plain:  # AdamW divides by tiny numbers at first: rounding shows
        torch.testing.assert_close(fast[name], plain[name], atol=2e-4, rtol=1e-3, msg=name)


def test_a_task_s_model_is_one_graph_for_all_lengths():
    """It never goes back to Python, and is not compiled anew for another shape."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    model = tiny_classifier(0.1)
    fast = torch.compile(model, dynamic=True, fullgraph=True, backend=backend)
    dataset = texts(26)
    for rows in (range(4), range(7, 11), range(20, 23)):
        batch = to_device(collate([dataset[i] for i in rows]), CPU)
        assert forward_tokens(fast, batch).shape == (len(rows), 5)
    assert len(graphs) == 1


def test_batches_of_one_shape_get_kernels_of_that_shape(monkeypatch):
    given = []
    monkeypatch.setattr("torch.compile", lambda model, dynamic, mode: given.append(dynamic))
    compiled(Averager(), "default")
    compiled(Averager(), "default", one_shape=True)
    assert given == [True, False]


def test_a_second_model_of_the_same_kind_has_its_own_hooks(monkeypatch):
    """SST's and CFIMDB's are trained in one process."""
    compile_ = torch.compile
    monkeypatch.setattr(
        "torch.compile", lambda model, dynamic, mode: compile_(model, backend="eager")
    )
    batch = to_device(collate([texts(4)[i] for i in range(4)]), CPU)
    seen = {}
    for name in ("first", "second"):
        model = tiny_classifier()

        def note(*_, name=name):
            seen[name] = seen.get(name, 0) + 1

        if name != "first":
            model.gpt.gpt_layers[0].out_dense.register_forward_hook(note)
        for _ in range(2):
            forward_tokens(compiled(model, "default"), batch)
    assert set(seen) == {"second"}


@pytest.mark.slow
def test_evaluation_is_not_compiled(tmp_path):
    seen = []

    def evaluate(model):
        seen.append(model)
        return {"dev": 1.0}

    model = Averager()
    run(model, tmp_path, evaluate=evaluate, compile="default")
    assert seen == [model] and model._compiled_call_impl is None


@pytest.mark.slow
def test_a_task_takes_the_flag_and_resumes_to_the_same_bits(tmp_path, monkeypatch, capsys):
    work_in(monkeypatch, tmp_path)
    write_course("data")
    write_model("model", dropout=0.1, num_hidden_layers=1)
    words = ["--data_dir", "data", "--model_size", "model", "--dataset", "sst", "--limit", "10"]
    words += ["--fine-tune-mode", "full-model", "--epochs", "2", "--compile"]
    call_main(monkeypatch, "classifier", *words, "--runs_dir", "whole")

    def stop(record):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("engine.checkpoint.RunFolder.write_metrics", lambda *_: stop(_))
        call_main(patch, "classifier", *words, "--runs_dir", "cut", "--save_minutes", "0")
    call_main(monkeypatch, "classifier", *words, "--runs_dir", "cut", "--resume")
    whole, cut = (load_tree(run_path(f, "*/best.safetensors"))["model"] for f in ("whole", "cut"))
    assert same_bits(whole, cut)


# -- what it cannot do -------------------------------------------------------------------------


def broken_compiler(path, message: str) -> str:
    """A C++ compiler that knows its version and nothing else."""
    text = f'#!/bin/sh\n[ "$1" = --version ] && exec g++ --version\necho "{message}" >&2\nexit 1\n'
    script = write(path, text)
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return str(script)


@pytest.mark.parametrize("recorded", [False, True])
def test_a_machine_that_cannot_compile_says_so_in_one_line(recorded, tmp_path, monkeypatch):
    missing = "fatal error: Python.h: No such file or directory"
    broken = (None, broken_compiler(tmp_path / "c++", missing))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch._dynamo.reset()
    with torch._inductor.config.patch("cpp.cxx", broken), pytest.raises(InputError) as stop:
        recorders = {"cpu": CallAgain} if recorded else {}
        run(Averager(), tmp_path, compile="default", one_shape=recorded, recorders=recorders)
    message = str(stop.value)
    assert message.startswith("--compile: ") and "leave --compile out" in message
    assert "\n" not in message


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="something else"), compiler_errors("default"):
        raise RuntimeError("something else")
    assert compiled(Averager(), None).__class__ is Averager
