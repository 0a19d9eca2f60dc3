"""Fake quantization against torch's own and by hand; integers, ranges and scales do as they say."""

import copy
from types import SimpleNamespace

import pytest
import torch
from course_files import write_model
from technique_cases import Tried
from torch import nn
from torch.nn import functional as F

from engine.checkpoint import load_trainable_state, trainable_state
from engine.errors import InputError
from engine.extension import apply_extensions
from engine.generation import generate
from engine.optimizers import make_optimizer
from engine.options import FitOptions
from extensions.integer_linear import export_integers
from extensions.lora import LoRA, adapters, merge
from extensions.qat import QAT, InputQuantizer, QuantizedForward, noted_by_all, quantized
from extensions.rounding import dequantize, fake_quantize, quantize, weight_scale
from models.gpt2 import GPT2Model

TRIED = {
    "qat": Tried(
        varied=["bits=4,activation_bits=4,momentum=0.5", "bits=16,activation_bits=4,quadapter=true"]
    )
}

TOKENS = torch.arange(18).view(3, 6) + 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("qat") / "model")


def build(folder, *extensions) -> nn.Module:
    """A model with biases that count."""
    model = nn.Module()
    model.gpt = GPT2Model.from_pretrained(str(folder))
    torch.manual_seed(3)
    for name, p in model.gpt.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(p, std=0.3)
    apply_extensions(model, extensions)
    return model


def hidden(model, tokens=TOKENS) -> torch.Tensor:
    return model.gpt(tokens)["last_hidden_state"]


def see(model, qat, *batches) -> nn.Module:
    """What a step does for the ranges, for each of these batches."""
    model.train()
    for tokens in batches or (TOKENS,):
        hidden(model, tokens)
        qat.after_step(model)
    return model.eval()


def sources(model) -> list[InputQuantizer]:
    return [m for m in model.modules() if isinstance(m, InputQuantizer)]


# -- rounding ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_weights_and_their_gradients_are_torch_s_row_by_row(bits):
    torch.manual_seed(0)
    limit = 2 ** (bits - 1) - 1
    weight = torch.randn(5, 7, requires_grad=True)
    scale = weight_scale(weight.detach(), bits)
    torch.testing.assert_close(scale[:, 0], weight.abs().amax(dim=1) / limit)
    scale = scale * torch.tensor([1.0, 0.5, 1.0, 0.2, 3.0])[:, None]  # some rows are cut off
    found = fake_quantize(weight, scale, -limit, limit)
    zeros = torch.zeros(5, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(weight, scale[:, 0], zeros, 0, -limit, limit)
    torch.testing.assert_close(found, expected)
    grad = torch.randn(5, 7)
    one, two = (torch.autograd.grad(out, weight, grad)[0] for out in (found, expected))
    assert torch.equal(one, two) and (one == 0).any() and (one == grad).any()


def test_an_input_is_torch_s_with_a_zero_point():
    source = InputQuantizer(2, bits=4, scaled=False)
    source.learn(torch.tensor([[1.0, 0.5], [2.0, 0.1]]), momentum=0.9)  # from −1 to 2
    x = torch.linspace(-3, 3, 50).view(-1, 2).requires_grad_()
    found = source(x)
    expected = torch.fake_quantize_per_tensor_affine(x, 3 / 15, 5, 0, 15)
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(out.sum(), x)[0] for out in (found, expected)]
    assert torch.equal(*grads)
    assert found.unique().numel() == 16 and 0 in found


def test_gradients_are_lsq_s_by_hand():
    v = torch.tensor([-9.0, -2.3, 0.2, 0.74, 2.6, 3.4, 8.0], requires_grad=True)
    s = torch.tensor(0.5, requires_grad=True)
    fake_quantize(v, s, -4.0, 6.0).backward(torch.ones(7))
    assert v.grad.tolist() == [0, 0, 1, 1, 1, 0, 0]  # v/s: −18 −4.6 0.4 1.48 5.2 6.8 16
    by_hand = -4 - 4 + (0 - 0.4) + (1 - 1.48) + (5 - 5.2) + 6 + 6
    torch.testing.assert_close(s.grad, torch.tensor(by_hand))
    torch.testing.assert_close(fake_quantize(v, s, -4.0, 6.0)[1:4], torch.tensor([-2.0, 0, 0.5]))


@pytest.mark.parametrize("bits", [8, 4])
def test_the_error_is_half_a_step_and_values_are_on_the_symmetric_grid(bits):
    torch.manual_seed(1)
    weight = torch.randn(6, 40)
    weight[2] = 0
    scale, limit = weight_scale(weight, bits), 2 ** (bits - 1) - 1
    integers = quantize(weight, scale, -limit, limit)
    assert torch.equal(integers, integers.round())
    widest = integers.abs().amax(dim=1)
    assert widest.tolist() == [limit, limit, 0, limit, limit, limit]  # −2^(b−1) is not used
    error = (dequantize(integers, scale) - weight).abs()
    assert bool((error <= scale / 2 * (1 + 1e-5)).all())


# -- ranges ------------------------------------------------------------------------------------


def test_ranges_are_running_means_of_each_step_s_extremes():
    qat, model = QAT(momentum=0.75), nn.Module()
    model.source = source = InputQuantizer(2, bits=8, scaled=False)
    steps = [[[-1.0, 5.0], [3.0, 4.0]], [[-2.0, 6.0], [7.0, 8.0]]]
    x = torch.tensor(steps[0])
    assert torch.equal(source(x), x)  # nothing is known yet
    qat.after_step(model)
    assert torch.equal(source.extremes, torch.tensor([[1.0, -4.0], [3.0, 5.0]]))
    source(torch.tensor(steps[1][:1]))
    source(torch.tensor(steps[1][1:]))  # in parts, as one
    source(torch.empty(0, 2))
    assert torch.equal(source.extremes, torch.tensor([[1.0, -4.0], [3.0, 5.0]]))
    qat.after_step(model)
    expected = 0.75 * torch.tensor([[1.0, -4.0], [3.0, 5.0]]) + 0.25 * torch.tensor(
        [[2.0, -6.0], [7.0, 8.0]]
    )
    torch.testing.assert_close(source.extremes, expected)
    torch.testing.assert_close(source.grid()["scale"], (1.25 + 5.75) * torch.tensor(1 / 255))


def test_evaluation_leaves_ranges_alone(folder):
    qat = QAT()
    model = see(build(folder, qat), qat)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hidden(model, TOKENS + 20)
    qat.after_step(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    see(model, qat, TOKENS + 20)
    assert any(not torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_workers_agree_on_what_the_whole_batch_would_have_shown(monkeypatch):
    parts = [InputQuantizer(2, bits=8, scaled=False) for _ in range(3)]
    batch = torch.randn(8, 2)
    parts[0](batch[:5])
    parts[1](batch[5:])  # the third worker had no rows
    notes = [copy.deepcopy(part).taken() for part in parts]
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)

    def all_reduce(tensor, op):
        assert op == torch.distributed.ReduceOp.MAX
        tensor.copy_(torch.stack(notes).amax(dim=0).flatten().repeat(len(tensor) // 4))

    monkeypatch.setattr("torch.distributed.all_reduce", all_reduce)
    expected = torch.stack([-batch.amin(dim=0), batch.amax(dim=0)])
    for part in parts:
        assert all(torch.equal(noted, expected) for noted in noted_by_all([part, part]))


def test_under_bf16_autocast_rounding_stays_in_float32(folder):
    qat = QAT()
    model = see(build(folder, qat), qat)
    source, x = sources(model)[0], torch.randn(4, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, low = source(x), source(x.bfloat16())
        assert hidden(model).isfinite().all()
    assert torch.equal(found, source(x)) and found.dtype == low.dtype == torch.float32


# -- the model ---------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [[], [LoRA(rank=2, targets="all")]])
def test_sixteen_bits_are_the_model_itself_bit_for_bit(folder, others):
    qat = QAT(bits=16, activation_bits=16)
    models = [build(folder, *others, qat), build(folder, *others)]
    for model in models:
        for adapter in adapters(model).values():
            nn.init.ones_(adapter.B.weight)
    assert torch.equal(hidden(see(models[0], qat)), hidden(models[1].eval()))


def test_names_stay_and_every_linear_of_a_layer_is_rounded(folder):
    qat = QAT(bits=4)
    model, plain = build(folder, qat), build(folder)
    added = model.state_dict().keys() - plain.state_dict().keys()
    assert all(name.endswith("input_quantizer.extremes") for name in added) and len(added) == 8
    assert len(quantized(model)) == 12
    expected = hidden(plain.eval())
    for linear in [m for m in plain.modules() if isinstance(m, nn.Linear)]:
        scale = weight_scale(linear.weight.detach(), 4)
        linear.weight.data = (linear.weight.detach() / scale).round().clamp(-7, 7) * scale
    torch.testing.assert_close(hidden(model.eval()), hidden(plain.eval()))
    assert not torch.allclose(hidden(model), expected, atol=1e-3)


def test_the_gradient_of_a_weight_is_that_of_its_rounded_value(folder):
    qat = QAT(bits=4)
    model, plain = build(folder, qat).eval(), build(folder).eval()
    for linear in [m for m in plain.modules() if isinstance(m, nn.Linear)]:
        scale = weight_scale(linear.weight.detach(), 4)
        linear.weight.data = (linear.weight.detach() / scale).round().clamp(-7, 7) * scale
    for each in (model, plain):
        hidden(each).square().sum().backward()
    for name, p in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).grad, p.grad, rtol=1e-3, atol=1e-3)


KINDS = {
    "int8": [QAT()],
    "int4": [QAT(bits=4, activation_bits=4)],
    "weights": [QAT(bits=4, activation_bits=16)],
    "quadapter": [QAT(activation_bits=4, quadapter=True)],
    "lora": [LoRA(rank=4, targets="all"), QAT(bits=4)],
    "dora": [QAT(), LoRA(rank=4, targets="all", dora=True)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_exported_integers_do_what_the_model_did_bias_and_all(folder, kind):
    [qat] = [e for e in KINDS[kind] if isinstance(e, QAT)]
    model = build(folder, *KINDS[kind])
    for adapter in adapters(model).values():
        nn.init.normal_(adapter.B.weight, std=0.2)
    see(model, qat)
    with torch.no_grad():
        for source in sources(model):
            if source.log_alpha is not None:
                source.log_alpha.add_(0.3 * torch.randn_like(source.log_alpha))
    expected = hidden(model, TOKENS + 1)
    exported = export_integers(model)
    assert len(exported) == 12
    for linear in exported.values():
        assert linear.weight.dtype == torch.int8
        assert linear.weight.abs().amax(dim=1).eq(2 ** (qat.bits - 1) - 1).all()
    with_integers = copy.deepcopy(model)
    for source in sources(with_integers):
        source.forward = lambda x: x  # the integer linears round by themselves
    for name, linear in exported.items():
        with_integers.get_submodule(name).forward = linear
    torch.testing.assert_close(hidden(with_integers, TOKENS + 1), expected, rtol=1e-4, atol=1e-4)
    no_bias = with_integers.get_submodule("gpt.gpt_layers.1.out_dense").forward.bias
    no_bias.zero_()
    assert not torch.allclose(hidden(with_integers, TOKENS + 1), expected, atol=1e-2)


def test_cached_and_uncached_decoding_agree(folder):
    qat = QAT(bits=4)
    model = see(build(folder, qat), qat)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 5 + [0]])
    texts = [
        generate(model.gpt, TOKENS, mask, max_new_tokens=8, temperature=0, use_cache=cached)
        for cached in (True, False)
    ]
    for one, two in zip(*texts, strict=True):
        assert torch.equal(one, two)


# -- with adapters -----------------------------------------------------------------------------


@pytest.mark.parametrize("dora", [False, True])
def test_lora_is_merged_before_it_is_rounded_in_either_order(folder, dora):
    outputs = []
    for order in (1, -1):
        qat, lora = QAT(bits=4), LoRA(rank=4, targets="all", dora=dora)
        model = build(folder, *[lora, qat][::order])
        torch.manual_seed(5)
        for adapter in adapters(model).values():
            nn.init.normal_(adapter.A.weight, std=0.2)
            nn.init.normal_(adapter.B.weight, std=0.2)
        see(model, qat)
        outputs.append(hidden(model))
    assert torch.equal(*outputs)
    outputs[1].square().sum().backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad.abs().max() > 0 for p in trained.values())
    assert len(trained) == 12 * (3 if dora else 2)
    linears = merge(build(folder, lora))
    assert len(linears) == 12


def test_models_that_cannot_be_quantized_are_refused(folder):
    with pytest.raises(InputError, match="wrapped later: give --extension qat last"):
        build(folder, QAT(quadapter=True), LoRA(rank=2))
    build(folder, LoRA(rank=2), QAT(quadapter=True))
    with pytest.raises(InputError, match="given twice"):
        build(folder, QAT(), QAT())
    with pytest.raises(InputError, match="lora's dropout: give dropout=0"):
        build(folder, QAT(), LoRA(dropout=0.1))
    model = build(folder)
    model.gpt.gpt_layers[0].out_dense = nn.Identity()
    with pytest.raises(InputError, match="found a Identity"):
        apply_extensions(model, [QAT()])
    with pytest.raises(InputError, match="not trained yet: it has no integers"):
        export_integers(build(folder, QAT()))


# -- Quadapter ---------------------------------------------------------------------------------


def test_scales_of_any_size_leave_the_unrounded_model_as_it_is(folder):
    qat = QAT(bits=16, activation_bits=16, quadapter=True)
    model = see(build(folder, qat), qat)
    with torch.no_grad():
        for source in sources(model):
            if source.log_alpha is not None:
                nn.init.normal_(source.log_alpha, std=2.0)
    torch.testing.assert_close(hidden(model), hidden(build(folder).eval()), rtol=1e-4, atol=1e-4)


def test_only_the_scales_are_trained_one_behind_each_normalisation(folder):
    qat = QAT(activation_bits=4, quadapter=True)
    model = build(folder, qat)
    assert qat.freezes_backbone and not QAT().freezes_backbone
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        f"gpt.gpt_layers.{i}.{place}.input_quantizer.log_alpha"
        for i in range(2)
        for place in ("self_attention", "interm_dense")
    }
    see(model, qat)
    hidden(model).square().sum().backward()
    graded = {name for name, p in model.named_parameters() if p.grad is not None}
    assert graded == trained
    assert all(p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)


def with_outlier(d: int = 16) -> SimpleNamespace:
    """A linear, and inputs whose channel 3 is a hundred times as large as the others."""
    torch.manual_seed(0)
    x = torch.randn(200, d)
    x[:, 3] *= 100
    linear = nn.Linear(d, 8).requires_grad_(False)
    linear.weight[:, 3] /= 10
    model = nn.Module()
    model.source = InputQuantizer(d, bits=4, scaled=True)
    linear.forward = QuantizedForward(linear, model.source, bits=8)
    model.linear = linear
    return SimpleNamespace(model=model, x=x, exact=F.linear(x, linear.weight, linear.bias))


def test_calibrated_scales_spread_inputs_and_weights_alike_and_cut_the_error():
    case = with_outlier()
    source, linear = case.model.source, case.model.linear

    def error() -> float:
        return (linear(source(case.x)) - case.exact).square().mean().item()

    source(case.x)
    QAT().after_step(case.model)
    inputs = source.extremes.amax(dim=0) * source.alpha
    weights = linear.weight.abs().amax(dim=0) / source.alpha
    torch.testing.assert_close(inputs, weights)
    calibrated = error()
    before = source.log_alpha.clone()
    QAT().after_step(case.model)
    assert torch.equal(source.log_alpha, before)  # only once
    with torch.no_grad():
        source.log_alpha.zero_()
    assert calibrated < 0.3 * error()


def test_learnt_scales_cut_the_error_too():
    """From α = 1: the range passes its gradient on to the outlier's scale."""
    case = with_outlier()
    source, linear = case.model.source, case.model.linear
    source(case.x)
    QAT().after_step(case.model)
    source.eval()
    with torch.no_grad():
        source.log_alpha.zero_()
    optimizer, errors = torch.optim.Adam([source.log_alpha], lr=0.05), []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (linear(source(case.x)) - case.exact).square().mean()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert errors[-1] < 0.3 * errors[0]
    assert source.alpha.argmin() == 3


@pytest.mark.parametrize("options", [{"bits": 4}, {"activation_bits": 4, "quadapter": True}])
def test_a_checkpoint_restores_the_model_and_its_training(folder, options):
    qat = QAT(**options)
    model = build(folder, qat)
    optimizer = make_optimizer(model, FitOptions(1, 0.05, "dev"), [qat])
    model.train()
    for step in range(3):
        optimizer.zero_grad()
        hidden(model, TOKENS + step).square().sum().backward()
        optimizer.step()
        qat.after_step(model)
    other = build(folder, QAT(**options))
    load_trainable_state(other, trainable_state(model), "here")
    assert torch.equal(hidden(other.eval()), hidden(model.eval()))
    for each in (model, other):
        see(each, qat, TOKENS + 9)
    assert torch.equal(hidden(other), hidden(model))


@pytest.mark.parametrize(
    "options", [{"bits": 1}, {"activation_bits": 12}, {"momentum": 1.0}, {"bits": 0}]
)
def test_invalid_options_are_refused(options):
    with pytest.raises(InputError, match=r"qat: .*expected"):
        QAT(**options)
