"""On a CUDA GPU: the same model, the three tasks, bf16, and memory that runs out."""

from types import SimpleNamespace

import pytest
import torch
from course_files import call_main, predicted, work_in, write_course, write_model
from tiny_run import run_path

from engine.checkpoint import RunFolder, load_tree
from engine.fast.compiling import CUDA_GRAPHS
from engine.fast.gpt2 import accelerate
from engine.generation import generate
from engine.training import Trainer
from models.gpt2 import GPT2Model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
TASKS = ["classifier", "paraphrase_detection", "sonnet_generation"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    work_in(monkeypatch, tmp_path)
    write_course("data")
    write_model("model")
    return tmp_path


def run(monkeypatch, task: str, *extra) -> dict:
    """The weights of the best epoch of a short run on the GPU."""
    words = ["--data_dir", "data", "--model_size", "model", "--epochs", "2", "--use_gpu"]
    words += {"classifier": ["--dataset", "sst", "--fine-tune-mode", "full-model"]}.get(task, [])
    words += ["--max_new_tokens", "4"] if task == "sonnet_generation" else []
    call_main(monkeypatch, task, *words, *extra)
    folder = extra[extra.index("--runs_dir") + 1] if "--runs_dir" in extra else "runs"
    return load_tree(run_path(folder, "*/best.safetensors"))["model"]


@torch.no_grad()
def test_hidden_states_are_the_cpu_s(place):
    tokens = torch.randint(300, (3, 20))
    mask = torch.tensor([[1] * 20, [1] * 12 + [0] * 8, [1] * 5 + [0] * 15])
    expected = GPT2Model.from_pretrained("model")(tokens, mask)["last_hidden_state"]
    lesson, fast = (SimpleNamespace(gpt=GPT2Model.from_pretrained("model")) for _ in range(2))
    accelerate(fast)
    for model in (lesson.gpt, fast.gpt):
        found = model.cuda()(tokens.cuda(), mask.cuda())["last_hidden_state"].cpu()
        real = mask.bool()
        torch.testing.assert_close(found[real], expected[real], atol=1e-4, rtol=0)


@pytest.mark.parametrize("extra", [[], ["--bf16"]])
@pytest.mark.parametrize("task", TASKS)
def test_a_task_runs_on_the_gpu_and_its_checkpoint_on_the_cpu(task, extra, place, monkeypatch):
    weights = run(monkeypatch, task, *extra)
    assert all(tensor.device.type == "cpu" for tensor in weights.values())
    assert all(tensor.isfinite().all() for tensor in weights.values())
    outputs = {path.name: path.read_bytes() for path in (place / "predictions").iterdir()}
    best = run_path("runs", "*/best.safetensors")
    words = ["--data_dir", "data", "--checkpoint", best]
    words += ["--dataset", "sst"] if task == "classifier" else []
    call_main(monkeypatch, task, *words)
    if task != "sonnet_generation":  # its draws come from the device's own generator
        for name in outputs:
            found = predicted(place / "predictions" / name)
            assert found.keys() == {
                line.split(", ")[0] for line in outputs[name].decode().splitlines()[1:]
            }


def test_bfloat16_follows_float32(place, monkeypatch):
    full = run(monkeypatch, "classifier", "--runs_dir", "full", "--hidden_dropout_prob", "0")
    half = run(
        monkeypatch, "classifier", "--runs_dir", "half", "--hidden_dropout_prob", "0", "--bf16"
    )
    for name in full:
        torch.testing.assert_close(half[name], full[name], atol=1e-3, rtol=0.05)


@pytest.mark.parametrize("extra", [["--compile"], ["--compile", CUDA_GRAPHS], ["--tf32"]])
@pytest.mark.parametrize("task", TASKS)
def test_quicker_kernels_follow_the_plain_ones(task, extra, place, monkeypatch):
    """Gradients that a replayed graph lost or kept too long would lead elsewhere."""
    dropout = ["--hidden_dropout_prob", "0"] if task == "classifier" else []
    plain = run(monkeypatch, task, *dropout, "--runs_dir", "plain")
    quick = run(monkeypatch, task, *dropout, "--runs_dir", "quick", *extra)
    start = GPT2Model.from_pretrained("model").state_dict()
    for name in plain:
        torch.testing.assert_close(quick[name], plain[name], atol=1e-3, rtol=0.05)
    moved = [n for n in start if not torch.equal(plain.get(f"gpt.{n}", start[n]), start[n])]
    assert moved


@pytest.mark.parametrize("task", TASKS)
def test_no_step_of_training_waits_for_the_gpu(task, place, monkeypatch):
    """After the first one, which tries the kernels."""
    steps = []

    def watched(trainer, group, step=Trainer.step):
        if steps:
            torch.cuda.set_sync_debug_mode("error")
        steps.append(1)
        step(trainer, group)
        torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "step", watched)
    run(monkeypatch, task, "--bf16")
    assert len(steps) > 2


def test_a_run_on_the_gpu_resumes(place, monkeypatch, capsys):
    def stop(self, tree, save=RunFolder.save_last):
        save(self, tree)
        if tree["progress"]["epoch"] == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("engine.checkpoint.RunFolder.save_last", stop)
        run(patch, "classifier")
    run(monkeypatch, "classifier", "--resume")
    assert "resumed at epoch 1, step 0" in capsys.readouterr().out


def test_memory_that_runs_out_is_answered_by_smaller_pieces(place, monkeypatch, capsys):
    write_model("model", hidden_size=512, num_hidden_layers=8)
    flags = ["--batch_size", "40", "--hidden_dropout_prob", "0"]
    run(monkeypatch, "classifier", *flags, "--runs_dir", "whole")
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(0.9 * peak / total)
    try:
        run(monkeypatch, "classifier", *flags, "--runs_dir", "pieces")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "same batch size" in capsys.readouterr().out


@pytest.mark.parametrize("sampled", [{"temperature": 0}, {"temperature": 1.2, "top_p": 0.9}])
def test_replayed_decoding_writes_the_same_text(sampled, place):
    model = GPT2Model.from_pretrained("model").eval().cuda()
    mask = torch.tensor([[1] * 9, [1] * 4 + [0] * 5]).cuda()
    tokens = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(0)).cuda()
    plain, replayed = (
        generate(
            model,
            tokens,
            mask,
            max_new_tokens=40,
            cuda_graph=graph,
            generator=torch.Generator("cuda").manual_seed(1),
            **sampled,
        )
        for graph in (False, True)
    )
    assert [row.tolist() for row in replayed] == [row.tolist() for row in plain]
