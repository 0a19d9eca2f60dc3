"""FLOPs and bytes of a job: against counts by hand and against torch's own counter."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import counts
from benchmarks.jobs import JOBS, Settings, Workload
from config import SIZES, GPT2Config
from engine.fast.gpt2 import accelerate
from models.gpt2 import GPT2Model
from modules.attention import CausalSelfAttention, causal_attention

TINY = GPT2Config(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=40,
    max_position_embeddings=32,
)


def test_flops_of_one_row_by_hand():
    d, inner, t = 16, 40, 3
    linears = 2 * t * (4 * d * d + 2 * d * inner)
    attention = 2 * 2 * d * (1 + 2 + 3)  # Q Kᵀ and weights V, for the 1, 2 and 3 keys seen
    assert counts.forward_flops(TINY, [t]) == 2 * (linears + attention)
    assert counts.output_flops(TINY, 4, 50) == 4 * 2 * d * 50


def test_flops_are_those_of_torch_s_counter(monkeypatch):
    monkeypatch.setattr(CausalSelfAttention, "attend", staticmethod(causal_attention))
    model, b, t = GPT2Model(TINY), 3, 7
    with FlopCounterMode(display=False) as counter:
        hidden = model(torch.randint(50, (b, t)))["last_hidden_state"]
        logits = model.hidden_state_to_token(hidden)
    forward = counts.forward_flops(TINY, [t] * b, causal=False)
    forward += counts.output_flops(TINY, b * t, 50)
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        logits.sum().backward()
    assert counter.get_total_flops() == 2 * forward  # a step is three forwards


def test_flops_of_the_last_tokens_alone_are_those_of_torch_s_counter(monkeypatch):
    monkeypatch.setattr("engine.fast.gpt2.fused_causal_attention", causal_attention)
    model, b, t = GPT2Model(TINY), 3, 7
    fast = accelerate(SimpleNamespace(gpt=model, reads_last_token_only=True)).gpt
    with FlopCounterMode(display=False) as counter:
        fast(torch.randint(50, (b, t)))
    forward = counts.forward_flops(TINY, [t] * b, causal=False, last_only=True)
    assert counter.get_total_flops() == forward
    whole, causal = (counts.forward_flops(SIZES["gpt2"], [23], last_only=o) for o in (False, True))
    assert 0.92 < causal / whole < 0.94


def test_parameters_are_the_model_s():
    assert counts.parameters(TINY) == sum(p.numel() for p in GPT2Model(TINY).parameters())
    assert counts.parameters(SIZES["gpt2"]) == 124_439_808  # Radford et al.'s, as it is loaded


def test_a_layer_of_gpt2_needs_24_d_squared_flops_a_token():
    config = SIZES["gpt2"]
    assert 2 * counts.matrix_weights(config) == 12 * 24 * 768**2


@pytest.fixture(scope="module")
def settings(model_folder, data):
    return Settings(str(model_folder), str(data), batches=2, new_tokens=5)


def test_the_optimizer_s_step_moves_seven_floats_a_parameter(settings):
    work = Workload(JOBS["step"], settings)
    [phase] = counts.phases(work)
    model = GPT2Model(work.config)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
    gradients = [p.grad for p in model.parameters()]
    written = [*model.parameters(), *moments]
    moved = sum(t.nbytes for t in [*written, *gradients, *written])
    assert phase.bytes == moved == 28 * counts.parameters(work.config) and phase.flops == 0


def test_training_is_three_forwards_over_real_tokens_then_the_optimizer(settings):
    work = Workload(JOBS["sst-8"], settings)
    both, optimizer = counts.phases(work)
    lengths = [len(ids) for ids in work.tokens(work.rows)]
    d, rows = work.config.hidden_size, 16
    forward = counts.forward_flops(work.config, lengths, last_only=True)
    assert both.flops == 3 * (forward + rows * 2 * d * 5)
    assert both.bytes == 2 * 3 * 4 * (counts.matrix_weights(work.config) + 5 * d)
    assert optimizer.bytes == 2 * 28 * (counts.parameters(work.config) + 5 * d)


def test_language_models_pay_for_every_position(settings):
    both, _ = counts.phases(Workload(JOBS["sonnets-8"], settings))
    work = Workload(JOBS["sonnets-8"], settings)
    lengths = [len(ids) for ids in work.tokens(work.rows)]
    head = 2 * work.config.hidden_size * work.config.vocab_size * sum(lengths)
    assert both.flops == 3 * (counts.forward_flops(work.config, lengths) + head)


def test_a_frozen_network_reads_each_row_once_for_ten_epochs(settings):
    work = Workload(JOBS["head"], settings)
    [once] = counts.phases(work)
    lengths = [len(ids) for ids in work.tokens([*work.rows, *work.dev])]
    extra = once.flops - counts.forward_flops(work.config, lengths, last_only=True)
    assert extra == 16 * 2 * work.config.hidden_size * 5


def test_decoding_reads_each_token_once_and_the_weights_once_a_step():
    d, v, layers, prompts, new = 16, 50, 2, [3, 5], 4
    first, later = counts.decoding(TINY, prompts, new)
    assert first.flops == counts.forward_flops(TINY, prompts) + 2 * 2 * d * v
    whole = counts.forward_flops(TINY, [n + new - 1 for n in prompts]) + new * 2 * 2 * d * v
    assert first.flops + later.flops == whole
    weights = 4 * (counts.matrix_weights(TINY) + d * v)
    keys = (4 + 5 + 6) + (6 + 7 + 8)
    assert later.bytes == 3 * weights + 4 * 2 * layers * d * keys


def test_the_limit_is_the_slower_of_arithmetic_and_traffic_phase_by_phase():
    phases = [counts.Phase(flops=100, bytes=10), counts.Phase(flops=1, bytes=30)]
    assert counts.limit_seconds(phases, rate=10, bandwidth=5) == 10 + 6
