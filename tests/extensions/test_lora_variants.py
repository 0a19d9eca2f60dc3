"""LoRA+, PiSSA and PEFT's adapters, against PEFT on the same weights and against the formulas."""

import json

import pytest
import torch
from course_files import write_adapter, write_model
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2LMHeadModel

from engine.errors import InputError
from engine.extension import apply_extensions
from engine.optimizers import make_optimizer
from engine.options import FitOptions
from engine.state import load_trainable_state, trainable_state
from extensions.lora import LoRA, LoRALinear, adapters, export_peft, merge
from extensions.lora_linear import principal
from models.gpt2 import GPT2Model

TOKENS = torch.arange(18).view(2, 9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("lora") / "model", hidden_size=32)


def adapted(folder, **options) -> nn.Module:
    model = nn.Module()
    model.gpt = GPT2Model.from_pretrained(str(folder)).eval()
    torch.manual_seed(1)
    apply_extensions(model, [LoRA(**options)])
    return model


@torch.no_grad()
def logits(model) -> torch.Tensor:
    gpt = model.gpt
    return gpt.hidden_state_to_token(gpt(TOKENS)["last_hidden_state"])


def base_of(folder):
    return GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()


def peft_model(folder, **options):
    torch.manual_seed(2)
    config = {"r": 3, "lora_alpha": 5, "fan_in_fan_out": True, "init_lora_weights": False}
    return get_peft_model(base_of(folder), LoraConfig(**config | options)).eval()


# -- LoRA+ -------------------------------------------------------------------------------------


def test_lora_plus_has_the_rates_of_peft_s(folder):
    model = adapted(folder, rank=3, plus=16.0)
    run = FitOptions(epochs=1, metric="acc", lr=1e-3, weight_decay=0.1)
    ours = make_optimizer(model, run, model.extensions)
    theirs = create_loraplus_optimizer(
        peft_model(folder, target_modules=["c_attn"]), torch.optim.AdamW, lr=1e-3,
        loraplus_lr_ratio=16.0,
    )  # fmt: skip
    rates = {g["lr"] for g in theirs.param_groups if g["params"]}
    by_rate = {g["lr"]: {id(p) for p in g["params"]} for g in ours.param_groups if g["params"]}
    assert by_rate.keys() == rates == {1e-3, 16e-3}
    assert by_rate[16e-3] == {id(a.B.weight) for a in adapters(model).values()}
    assert by_rate[1e-3] == {id(a.A.weight) for a in adapters(model).values()}
    assert all(g["weight_decay"] == 0.1 for g in ours.param_groups)


def test_lora_plus_s_first_step_moves_b_that_many_times_as_far(folder):
    model = adapted(folder, plus=8.0, init="pissa")
    optimizer = LoRA(plus=8.0).make_optimizer(model, 1e-3, 0.0)
    before = [(a.A.weight.clone(), a.B.weight.clone()) for a in adapters(model).values()]
    model.gpt(TOKENS)["last_hidden_state"].square().sum().mul(1e4).backward()
    optimizer.step()
    for (a, b), adapter in zip(before, adapters(model).values(), strict=True):
        moved = [(x - y).abs().median() for x, y in ((adapter.A.weight, a), (adapter.B.weight, b))]
        assert float(moved[0]) == pytest.approx(1e-3, rel=0.02)
        assert float(moved[1]) == pytest.approx(8e-3, rel=0.02)


def test_without_lora_plus_the_run_s_own_optimizer_stays(folder):
    assert LoRA().make_optimizer(adapted(folder), 1e-3, 0.0) is None


# -- PiSSA -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [{}, {"rslora": True}])
def test_one_matrix_is_peft_s_from_the_start_on(kind):
    torch.manual_seed(0)
    base = nn.Linear(12, 20)
    theirs = nn.Sequential(nn.Linear(12, 20))
    theirs[0].load_state_dict(base.state_dict())
    flags = {"use_rslora": kind.get("rslora", False), "init_lora_weights": "pissa"}
    theirs = get_peft_model(theirs, LoraConfig(r=4, lora_alpha=6, target_modules=["0"], **flags))
    layer = theirs.base_model.model[0]
    scale = LoRA(rank=4, alpha=6, **kind).scale
    ours = LoRALinear(base.requires_grad_(False), 4, scale=scale, dropout=0.0, dora=False)
    ours.begin_at(*principal(base.weight, 4, scale))
    residual = base.weight - scale * ours.B0 @ ours.A0
    torch.testing.assert_close(residual, layer.base_layer.weight.detach())
    pairs = [(ours.A.weight, layer.lora_A["default"].weight)]
    pairs += [(ours.B.weight, layer.lora_B["default"].weight)]
    x = torch.randn(3, 5, 12)
    torch.testing.assert_close(ours(x), base(x))
    for mine, other in pairs:
        torch.testing.assert_close(mine, other)
        change = torch.randn_like(mine)
        mine.data += change
        other.data += change
    found, expected = ours(x), theirs(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    (found**2).sum().backward()
    (expected**2).sum().backward()
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-3)


def test_the_factors_are_the_best_of_their_rank_and_share_the_singular_values():
    torch.manual_seed(0)
    weight = torch.randn(9, 14, dtype=torch.float64)
    a, b = principal(weight, 3, 0.5)
    values = torch.linalg.svdvals(weight)
    torch.testing.assert_close(torch.linalg.matrix_norm(weight - 0.5 * b @ a, 2), values[3])
    torch.testing.assert_close(a.norm(dim=1), (values[:3] / 0.5).sqrt())
    torch.testing.assert_close(b.norm(dim=0), (values[:3] / 0.5).sqrt())


@pytest.mark.parametrize("options", [{}, {"dora": True}, {"rslora": True, "alpha": 3.0}], ids=str)
def test_pissa_begins_at_the_base_model_and_merges_and_exports(folder, options, tmp_path):
    model = adapted(folder, init="pissa", targets="all", **options)
    with torch.no_grad():
        torch.testing.assert_close(logits(model), base_of(folder)(TOKENS).logits, atol=1e-4, rtol=0)
        for adapter in adapters(model).values():
            adapter.A.weight += 0.3 * torch.randn_like(adapter.A.weight)
    expected = logits(model)
    export_peft(model, tmp_path / "adapter", base=str(folder))
    theirs = PeftModel.from_pretrained(base_of(folder), tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(TOKENS).logits, expected, atol=1e-4, rtol=0)
        assert (expected - base_of(folder)(TOKENS).logits).abs().max() > 1e-2
    merge(model)
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=0)


def test_a_checkpoint_has_what_the_residual_is_made_of(folder, monkeypatch):
    """So it predicts the same bits where the singular vectors come out otherwise."""
    model = adapted(folder, init="pissa")
    for adapter in adapters(model).values():
        adapter.A.weight.data *= 1.5
    state = {name: tensor.clone() for name, tensor in trainable_state(model).items()}
    monkeypatch.setattr("extensions.lora.principal", lambda w, r, s: (w[:r] * 2, w[:, :r] * 3))
    again = adapted(folder, init="pissa")
    assert not torch.equal(logits(again), logits(model))
    load_trainable_state(again, state, "a file")
    assert torch.equal(logits(again), logits(model))


# -- PEFT's adapters ---------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [["c_attn"], ["c_proj"], ["c_attn", "c_proj", "c_fc"]])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
        {"rank_pattern": {"attn.c_proj": 5}, "alpha_pattern": {"mlp.c_proj": 7, "h.1.*c_attn": 9}},
        {"layers_to_transform": [1], "layers_pattern": "h"},
    ],
    ids=str,
)
def test_an_adapter_that_peft_wrote_gives_peft_s_outputs(folder, tmp_path, targets, options):
    theirs = peft_model(folder, target_modules=targets, **options)
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = adapted(folder, adapter=str(tmp_path / "adapter"))
    with torch.no_grad():
        expected = theirs(TOKENS).logits
        torch.testing.assert_close(logits(ours), expected, atol=1e-4, rtol=0)
        assert (expected - base_of(folder)(TOKENS).logits).abs().max() > 1e-2
    export_peft(ours, tmp_path / "again", base=str(folder))
    read_back = PeftModel.from_pretrained(base_of(folder), tmp_path / "again").eval()
    with torch.no_grad():
        torch.testing.assert_close(read_back(TOKENS).logits, expected, atol=1e-4, rtol=0)


def test_query_key_and_value_share_the_a_of_c_attn(folder, tmp_path):
    """As many numbers are trained as PEFT trains, and its gradient is that of the one matrix."""
    theirs = peft_model(folder, target_modules=["c_attn"])
    theirs.save_pretrained(tmp_path / "adapter")
    ours = adapted(folder, adapter=str(tmp_path / "adapter"))
    trained = [p for p in ours.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == theirs.get_nb_trainable_parameters()[0]
    ours.gpt(TOKENS)["last_hidden_state"].square().sum().backward()
    hidden = theirs(TOKENS, output_hidden_states=True).hidden_states[-1]
    hidden.square().sum().backward()
    fused = theirs.base_model.model.transformer.h[0].attn.c_attn
    attention = ours.gpt.gpt_layers[0].self_attention
    linears = [attention.query, attention.key, attention.value]
    expected = fused.lora_A["default"].weight.grad
    assert all(linear.A.weight.grad is linears[0].A.weight.grad for linear in linears)
    torch.testing.assert_close(linears[0].A.weight.grad, expected, rtol=1e-3, atol=1e-3)
    found = torch.cat([linear.B.weight.grad for linear in linears])
    expected = fused.lora_B["default"].weight.grad
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_loaded_adapter_is_written_as_it_was_read(folder, tmp_path):
    """The A that three linears share is one A in c_attn's, and the rank stays."""
    source = write_adapter(tmp_path / "adapter")
    export_peft(adapted(folder, adapter=str(source)), tmp_path / "again", base=str(folder))
    before, after = (
        load_file(place / "adapter_model.safetensors") for place in (source, tmp_path / "again")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def rewritten(tmp_path, config: dict, renamed: dict):
    """An adapter with another config and other names of tensors; None: without that tensor."""
    source = write_adapter(tmp_path / "adapter")
    path = source / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | config), encoding="utf-8")
    tensors = load_file(source / "adapter_model.safetensors")
    for before, now in renamed.items():
        tensor = tensors.pop(before)
        if now:
            tensors[now] = tensor
    save_file(tensors, source / "adapter_model.safetensors")
    return source


A = "base_model.model.transformer.h.0.attn.c_proj.lora_A.weight"


@pytest.mark.parametrize(
    "config, renamed, said",
    [
        ({"peft_type": "IA3"}, {}, "peft_type is 'IA3', expected 'LORA'"),
        ({"init_lora_weights": "olora"}, {}, "'olora', which changes the base weights"),
        ({"layer_replication": [[0, 2]]}, {}, "layer_replication"),
        ({"lora_alpha": None}, {}, "lora_alpha and alpha_pattern are"),
        ({}, {A: "base_model.model.transformer.wte.lora_embedding_A"}, "wte.lora_embedding_A: it"),
        ({}, {A: "base_model.model.score.weight"}, "model.score.weight: it has no place here"),
        ({}, {A: A.replace("h.0", "h.7")}, "h.0.attn.c_proj: found B .32, 3., expected A"),
        ({}, {A: None}, "h.0.attn.c_proj: found B .32, 3., expected A"),
    ],
)
def test_what_cannot_be_mapped_is_refused_by_name(folder, tmp_path, config, renamed, said):
    source = rewritten(tmp_path, config, renamed)
    with pytest.raises(InputError, match=said):
        adapted(folder, adapter=str(source))


def test_an_adapter_of_another_model_or_none_at_all_is_refused(folder, tmp_path):
    wide = write_adapter(tmp_path / "wide", hidden=48)
    with pytest.raises(InputError, match=r"found A \(2, 48\), .*expected A \(2, 32\)"):
        adapted(folder, adapter=str(wide))
    with pytest.raises(InputError, match="expected a folder with adapter_config"):
        adapted(folder, adapter=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"init": "olora"}, "init=olora, .*expected zero or pissa"),
        ({"plus": -1.0}, "plus=-1.0: expected"),
        ({"adapter": "there", "rank": 4, "dora": True}, "its own config says rank, dora"),
    ],
)
def test_invalid_options_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        LoRA(**options)
