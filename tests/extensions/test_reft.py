"""LoReFT: pyreft's formula, orthonormal directions, and edits at the positions meant, no others."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from course_files import write_model
from technique_cases import Tried
from torch import nn

from engine.checkpoint import load_trainable_state, trainable_state
from engine.errors import InputError
from engine.extension import apply_extensions
from engine.generation import CachedDecoder, generate
from extensions.reft import Edit, Positions, ReFT, ends, orthonormal_rows
from models.gpt2 import GPT2Model
from optimizer import AdamW
from sonnet_generation import SonnetGPT

TRIED = {
    "reft": Tried(
        "rank=8,first=40",
        lr="3e-2",
        varied=["rank=2,layers=0,first=2,last=1,dropout=0.1", "layers=1", "first=2,last=0"],
    )
}

TOKENS = torch.arange(20).view(2, 10) + 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("reft") / "model")


def edited(folder, kind=None, seed: int = 1, **options) -> nn.Module:
    """A model whose edits are far from the identity."""
    model = nn.Module() if kind is None else kind(SimpleNamespace(model_size=str(folder)))
    if kind is None:
        model.gpt = GPT2Model.from_pretrained(str(folder))
    torch.manual_seed(seed)
    apply_extensions(model, [ReFT(**options)])
    for edit in edits(model):
        nn.init.normal_(edit.source.weight)
        nn.init.normal_(edit.source.bias)
    return model.eval()


def edits(model) -> list[Edit]:
    return [module for module in model.modules() if isinstance(module, Edit)]


def hidden(model, tokens=TOKENS, mask=None) -> torch.Tensor:
    return model.gpt(tokens, mask)["last_hidden_state"]


def layer_outputs(model, tokens=TOKENS, mask=None) -> list[torch.Tensor]:
    """What each layer hands to the next, edits included."""
    outputs, hooks = [], []
    for layer in model.gpt.gpt_layers:
        hook = layer.register_forward_hook(lambda module, inputs, out: outputs.append(out))
        hooks.append(hook)
    model.gpt(tokens, mask)
    for hook in hooks:
        hook.remove()
    return outputs


# -- one edit ----------------------------------------------------------------------------------


def test_an_edit_is_pyreft_s():
    """There R is kept as (d, r): base + (W base + b − base R) Rᵀ, here in NumPy."""
    torch.manual_seed(0)
    edit = Edit(12, 3, dropout=0.0).double()
    nn.init.normal_(edit.source.weight)
    nn.init.normal_(edit.source.bias)
    nn.init.normal_(edit.directions)
    base = torch.randn(4, 5, 12, dtype=torch.float64)
    w, b, a, h = (
        x.detach().numpy() for x in (edit.source.weight, edit.source.bias, edit.directions, base)
    )
    rotate = np.linalg.qr(a.T)[0]  # its columns' signs cancel between R and Rᵀ, not in W h + b
    rotate = rotate * np.sign(np.sum(rotate * edit.rotation().detach().numpy().T, axis=0))
    expected = h + (h @ w.T + b - h @ rotate) @ rotate.T
    torch.testing.assert_close(edit(base), torch.from_numpy(expected))


def test_only_the_span_of_the_rows_changes_and_there_it_is_w_h_and_b():
    torch.manual_seed(0)
    edit = Edit(10, 4, dropout=0.0)
    nn.init.normal_(edit.source.weight)
    h, r = torch.randn(6, 10), edit.rotation()
    out = edit(h)
    torch.testing.assert_close(out @ r.T, edit.source(h))
    rest = torch.eye(10) - r.T @ r
    torch.testing.assert_close(out @ rest, h @ rest, rtol=1e-4, atol=1e-5)


def test_w_equal_to_r_is_the_identity_and_edits_begin_so(folder):
    edit, h = Edit(16, 5, dropout=0.0), torch.randn(3, 16)
    torch.testing.assert_close(edit.rotation(), edit.directions)
    torch.testing.assert_close(edit(h), h)
    model = nn.Module()
    model.gpt = GPT2Model.from_pretrained(str(folder)).eval()
    plain = hidden(model)
    apply_extensions(model, [ReFT(rank=3)])
    torch.testing.assert_close(hidden(model), plain)


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    matrix = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(orthonormal_rows, matrix)


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_rows_are_orthonormal_after_training_and_in_an_average(folder, weight_decay):
    model = edited(folder, rank=4)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = AdamW(trained, lr=0.1, weight_decay=weight_decay)
    before = edits(model)[0].rotation().detach()
    first = edits(model)[0].directions.detach().clone()
    for _ in range(10):
        optimizer.zero_grad()
        hidden(model)[:, -1].square().sum().backward()
        optimizer.step()
    for edit in edits(model):
        r = edit.rotation()
        torch.testing.assert_close(r @ r.T, torch.eye(4), rtol=0, atol=1e-5)
    assert not torch.allclose(edits(model)[0].rotation(), before, atol=1e-2)
    mean = orthonormal_rows(0.5 * (first + edits(model)[0].directions))
    torch.testing.assert_close(mean @ mean.T, torch.eye(4), rtol=0, atol=1e-5)


def test_dropout_is_on_the_edited_state_and_only_in_training():
    edit = Edit(50, 2, dropout=0.5)
    h = torch.ones(40, 50)
    torch.testing.assert_close(edit.eval()(h), h)
    out = edit.train()(h)
    assert 0.3 < float((out == 0).float().mean()) < 0.7
    torch.testing.assert_close(out[out != 0], torch.full_like(out[out != 0], 2.0))


def test_under_bf16_autocast_edits_stay_in_float32():
    edit, h = Edit(16, 4, dropout=0.0), torch.randn(3, 16)
    nn.init.normal_(edit.source.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = edit(h)
    assert torch.equal(found, edit(h))


# -- positions ---------------------------------------------------------------------------------


def test_first_and_last_are_counted_among_the_real_positions_of_each_row():
    real = torch.tensor(
        [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1], [1, 0, 0, 0, 0, 0]]
    ).bool()
    expected = [[1, 1, 0, 0, 0, 1], [1, 1, 0, 1, 0, 0], [0, 0, 0, 1, 1, 1], [1, 0, 0, 0, 0, 0]]
    assert ends(real, first=2, last=1).int().tolist() == expected
    assert ends(real, first=0, last=2).int().tolist()[1:3] == [
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1],
    ]
    assert not ends(real, first=0, last=0).any()


@pytest.mark.parametrize("side", ["none", "right", "left"])
def test_other_positions_are_untouched_before_the_next_layer(folder, side):
    model = edited(folder, rank=2, layers="0", first=2, last=1)
    plain = nn.Module()
    plain.gpt = GPT2Model.from_pretrained(str(folder)).eval()
    mask = torch.ones_like(TOKENS)
    if side != "none":
        mask[0, -4:] = 0
    mask = mask.flip(1) if side == "left" else mask
    places = ends(mask.bool(), first=2, last=1)
    found, expected = layer_outputs(model, TOKENS, mask), layer_outputs(plain, TOKENS, mask)
    same = (found[0] == expected[0]).all(dim=-1)
    assert torch.equal(same, ~places)
    torch.testing.assert_close(found[0][places], edits(model)[0](expected[0])[places])
    later = ~places & mask.bool()
    assert not torch.isclose(found[1], expected[1])[later].all(dim=-1).any()


def test_a_row_with_padding_is_edited_as_it_is_alone(folder):
    model = edited(folder, rank=2)
    mask = torch.ones_like(TOKENS)
    mask[1, 7:] = 0
    both, alone = hidden(model, TOKENS, mask), hidden(model, TOKENS[1:, :7])
    torch.testing.assert_close(both[1:, :7], alone, rtol=1e-4, atol=1e-5)


def test_a_call_leaves_no_state_behind_even_if_it_fails(folder):
    positions = Positions(1, 1)

    def encode(hidden_states, mask):
        assert positions.current().tolist() == [[True, False, True]] and mask is None
        raise ValueError

    with pytest.raises(ValueError):
        positions.known_while(encode, torch.zeros(1, 3, 4), None)
    assert positions.edited is None


def test_only_the_edits_of_the_chosen_layers_are_trained_and_get_a_gradient(folder):
    model = edited(folder, layers="1", first=0, last=1)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    parts = ("directions", "source.weight", "source.bias")
    assert trained == {f"gpt.gpt_layers.1.edit.{part}" for part in parts}
    model.gpt(TOKENS)["last_token"].square().sum().backward()
    graded = {name for name, p in model.named_parameters() if p.grad is not None}
    assert graded == trained
    assert all(p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)


# -- language models ---------------------------------------------------------------------------


def test_a_language_model_s_outputs_do_not_depend_on_later_tokens(folder):
    """Nor has the length of the text, as it would if its last positions were edited."""
    model, whole = edited(folder, SonnetGPT, last=2), TOKENS
    other = whole.clone()
    other[:, 6:] = 50
    one, two, short = (hidden(model, tokens) for tokens in (whole, other, whole[:, :6]))
    assert torch.equal(one[:, :6], two[:, :6])
    torch.testing.assert_close(one[:, :6], short)
    classifier = edited(folder, last=2)
    assert not torch.allclose(hidden(classifier)[:, 5], hidden(classifier, TOKENS[:, :6])[:, 5])


def test_a_language_model_s_edits_learn(folder):
    model = edited(folder, SonnetGPT, last=4)
    model(TOKENS, torch.ones_like(TOKENS))[:, :-1].square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("first", [3, 6])
def test_cached_and_uncached_decoding_agree_also_where_a_prompt_is_shorter(folder, first):
    """Prompts of 6 and 4 tokens, and three more for each."""
    model = edited(folder, SonnetGPT, first=first)
    decoder, lengths = CachedDecoder(model.gpt, 9), torch.tensor([6, 4])
    prompts = TOKENS[:, :6] * (torch.arange(6) < lengths[:, None])
    with torch.no_grad():
        decoder.read(prompts, torch.arange(6).expand(2, 6))
        for step in range(3):
            positions = (lengths + step)[:, None]
            cached = decoder.read(TOKENS.gather(1, positions), positions)[:, 0]
            for row, position in enumerate(positions[:, 0].tolist()):
                uncached = hidden(model, TOKENS[row : row + 1, : position + 1])[0, -1]
                torch.testing.assert_close(cached[row], uncached, rtol=1e-4, atol=1e-5)
    mask = (torch.arange(6) < lengths[:, None]).long()
    texts = [
        generate(model.gpt, prompts, mask, max_new_tokens=4, temperature=0, use_cache=cached)
        for cached in (True, False)
    ]
    assert all(torch.equal(*pair) for pair in zip(*texts, strict=True))


def test_last_positions_of_a_growing_text_are_refused(folder):
    with pytest.raises(InputError, match="a model that generates is edited at its first ones"):
        edited(folder, SonnetGPT, first=0)
    with pytest.raises(InputError, match="give last=0"):
        generate(edited(folder).gpt, TOKENS, max_new_tokens=2)


# -- options, checkpoints ----------------------------------------------------------------------


def test_a_checkpoint_restores_the_model_and_its_training(folder):
    model, other = edited(folder, rank=3), edited(folder, rank=3, seed=2)
    assert not torch.equal(hidden(other), hidden(model))
    load_trainable_state(other, trainable_state(model), "here")
    assert torch.equal(hidden(other), hidden(model))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rank": 0}, "expected a rank of at least 1"),
        ({"last": -1}, "counts of at least 0"),
        ({"dropout": 1.0}, r"a dropout in \[0, 1\)"),
        ({"first": 0, "last": 0}, "no position is edited$"),
        ({"rank": 33}, "expected at most 32"),
        ({"layers": "0+2"}, "different ones of 0 to 1 joined by"),
        ({"layers": "1+1"}, "different ones of 0 to 1 joined by"),
        ({"layers": ""}, "different ones of 0 to 1 joined by"),
    ],
)
def test_invalid_options_are_refused(folder, options, message):
    with pytest.raises(InputError, match=message):
        edited(folder, **options)
