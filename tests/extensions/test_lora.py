"""LoRA and DoRA against PEFT on the same weights: outputs, gradients, merged weights, files."""

from types import SimpleNamespace

import pytest
import torch
from course_files import call_main, work_in, write_course, write_model
from peft import LoraConfig, PeftModel, get_peft_model
from technique_cases import Tried
from tiny_run import run_path
from torch import nn
from transformers import GPT2LMHeadModel

from engine.checkpoint import load_tree
from engine.errors import InputError
from engine.extension import apply_extensions
from engine.hub import save_gpt2
from extensions.lora import LoRA, LoRALinear, adapters, export_peft, merge, unmerge
from models.gpt2 import GPT2Model

TRIED = {
    "lora": Tried(
        "rank=8,targets=all",
        varied=[
            "rank=2,alpha=3,dropout=0.1,targets=key+out_dense,rslora=true,dora=true",
            "init=pissa,plus=4,targets=all",
            "adapter=adapter,plus=2",
        ],
    )
}

KINDS = [{}, {"rslora": True}, {"dora": True}, {"dora": True, "rslora": True}]
EVERYTHING = "all"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("lora") / "model", hidden_size=32)


def adapted(folder, *, trained: bool = True, **options) -> SimpleNamespace:
    """A model with adapters; trained: B and the lengths are no longer as at the start."""
    model = nn.Module()
    model.gpt = GPT2Model.from_pretrained(str(folder)).eval()
    torch.manual_seed(1)
    apply_extensions(model, [LoRA(**options)])
    if trained:
        for adapter in adapters(model).values():
            nn.init.normal_(adapter.B.weight, std=0.3)
            if adapter.magnitude is not None:
                adapter.magnitude.data *= 1 + 0.2 * torch.rand_like(adapter.magnitude)
    return model


def hidden(model, length: int = 9) -> torch.Tensor:
    tokens = torch.arange(2 * length).view(2, length) % 50
    return model.gpt(tokens)["last_hidden_state"]


# -- one matrix --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_one_matrix_is_peft_s_in_output_and_gradient(kind):
    torch.manual_seed(0)
    base = nn.Linear(12, 20)
    theirs = nn.Sequential(nn.Linear(12, 20))
    theirs[0].load_state_dict(base.state_dict())
    flags = {"use_dora": kind.get("dora", False), "use_rslora": kind.get("rslora", False)}
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["0"], lora_dropout=0.0, **flags)
    theirs = get_peft_model(theirs, config)
    scale = LoRA(rank=4, alpha=6, **kind).scale
    ours = LoRALinear(base, 4, scale=scale, dropout=0.0, dora=kind.get("dora", False))
    base.requires_grad_(False)
    layer = theirs.base_model.model[0]
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    nn.init.normal_(ours.B.weight)
    a.data.copy_(ours.A.weight.data)
    b.data.copy_(ours.B.weight.data)
    pairs = [(ours.A.weight, a), (ours.B.weight, b)]
    if kind.get("dora"):
        length = layer.lora_magnitude_vector["default"].weight
        torch.testing.assert_close(ours.magnitude, length)  # both begin with ‖W‖
        ours.magnitude.data *= 1.3
        length.data *= 1.3
        pairs.append((ours.magnitude, length))
    x = torch.randn(3, 5, 12)
    found, expected = ours(x), theirs(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found, nn.functional.linear(x, ours.weight, ours.bias))
    (found**2).sum().backward()
    (expected**2).sum().backward()
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-4)
    assert base.weight.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_scale_is_the_paper_s(kind):
    extension = LoRA(rank=16, alpha=8, **kind)
    assert extension.scale == (2.0 if kind.get("rslora") else 0.5)
    assert LoRA(rank=3).scale == pytest.approx(2.0)


def test_dropout_is_on_the_adapter_s_input_and_only_in_training():
    torch.manual_seed(0)
    adapter = LoRALinear(nn.Linear(8, 8), 4, scale=1.0, dropout=0.5, dora=False)
    nn.init.normal_(adapter.B.weight)
    x = torch.randn(4, 8)
    assert torch.equal(adapter.eval()(x), adapter(x))
    outputs = torch.stack([adapter.train()(x) for _ in range(2000)])
    assert not torch.equal(outputs[0], outputs[1])
    torch.testing.assert_close(outputs.mean(dim=0), adapter.eval()(x), atol=0.25, rtol=0)
    nn.init.zeros_(adapter.B.weight)
    assert torch.equal(adapter.train()(x), adapter.base(x))


# -- the model ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_has_changed_at_the_start(folder, kind):
    model = adapted(folder, trained=False, targets=EVERYTHING, **kind)
    plain = SimpleNamespace(gpt=GPT2Model.from_pretrained(str(folder)).eval())
    torch.testing.assert_close(hidden(model), hidden(plain))


def test_only_the_adapters_of_the_targets_are_trained(folder):
    model = adapted(folder, rank=2, targets="value+out_dense", dora=True)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    expected = {
        f"gpt.gpt_layers.{i}.{place}.{part}"
        for i in range(2)
        for place in ("self_attention.value", "out_dense")
        for part in ("A.weight", "B.weight", "magnitude")
    }
    assert trained == expected
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sizes["gpt.gpt_layers.0.out_dense.A.weight"] == 2 * 128


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_give_the_same_outputs_and_unmerging_the_same_bits(folder, kind):
    model = adapted(folder, targets=EVERYTHING, **kind).double()
    before = hidden(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    taken = merge(model)
    assert not adapters(model) and len(taken) == 12
    torch.testing.assert_close(hidden(model), before)
    assert merge(model) == {}  # merging twice is merging once
    torch.testing.assert_close(hidden(model), before)
    unmerge(model, taken)
    assert torch.equal(hidden(model), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_merged_model_is_saved_as_any_gpt2(folder, tmp_path):
    model = adapted(folder, targets=EVERYTHING)
    expected = hidden(model)
    merge(model)
    save_gpt2(model.gpt, tmp_path)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = torch.arange(18).view(2, 9)
    found = theirs.transformer(tokens).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("targets", ["query+value", "key", "all", "attention_dense+interm_dense"])
@pytest.mark.parametrize("kind", KINDS)
def test_peft_reads_the_exported_adapters(folder, tmp_path, kind, targets):
    model = adapted(folder, rank=3, targets=targets, **kind)
    export_peft(model, tmp_path / "adapter", base=str(folder))
    base = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    tokens = torch.arange(18).view(2, 9)
    with torch.no_grad():
        found = theirs(tokens).logits
        expected = model.gpt.hidden_state_to_token(hidden(model))
        plain = theirs.get_base_model()
        assert isinstance(plain, GPT2LMHeadModel)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    with theirs.disable_adapter(), torch.no_grad():
        assert (theirs(tokens).logits - expected).abs().max() > 1e-3


# -- a run -------------------------------------------------------------------------------------


def test_a_run_stores_the_adapters_alone(tmp_path, monkeypatch):
    work_in(monkeypatch, tmp_path)
    write_course("data")
    write_model("model")
    words = ["--data_dir", "data", "--model_size", "model", "--epochs", "2", "--lr", "1e-2"]
    words += ["--dataset", "sst", "--extension", "lora:rank=4,targets=all,dora=true"]
    call_main(monkeypatch, "classifier", *words)
    stored = load_tree(run_path("runs", "*/best.safetensors"))["model"]
    assert all(
        name.startswith("sentiment_head")
        or name.split(".")[-2] in ("A", "B")
        or "magnitude" in name
        for name in stored
    )
    assert any(float(t.abs().max()) > 0 for name, t in stored.items() if name.endswith("B.weight"))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"targets": "quary"}, "no quary: join some of query, key, value"),
        ({"rank": 0}, "a rank of at least 1"),
        ({"alpha": -1.0}, "an alpha of at least 0"),
        ({"dropout": 1.0}, "a dropout in"),
    ],
)
def test_invalid_options_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        LoRA(**options)


def test_a_rank_above_the_matrix_s_is_refused(folder):
    with pytest.raises(InputError, match="rank=33: expected at most 32, query's"):
        adapted(folder, rank=33)
