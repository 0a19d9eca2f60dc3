"""GPT-2 equals transformers' on the same weights, forward and backward, and keeps its interface."""

import dataclasses
import inspect

import pytest
import torch
from torch import nn
from transformers import GPT2Config as TheirConfig
from transformers import GPT2LMHeadModel
from transformers import GPT2Model as TheirModel

from config import GPT2Config
from engine.batches import IGNORED_LABEL, is_right_padded, next_token_loss
from engine.hub import backbone
from models.base_gpt import GPTPreTrainedModel, our_names
from models.gpt2 import GPT2Model, last_positions
from modules.attention import CausalSelfAttention
from modules.gpt2_layer import GPT2Layer

TINY = GPT2Config(
    vocab_size=61,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    max_position_embeddings=16,
)
SHAPES = {
    "usual": {},
    "one head": {"n_head": 1, "n_layer": 1},
    "many heads": {"n_head": 16, "n_layer": 3},
    "narrow": {"n_inner": 40},
    "wide": {"n_inner": 96, "n_positions": 9},
    "epsilon": {"layer_norm_epsilon": 0.1},
}
RIGHT = torch.tensor([[1] * 5 + [0] * 4, [1] * 9, [1] + [0] * 8])
MASKS = {"none": torch.ones_like(RIGHT), "right": RIGHT, "left": RIGHT.flip(1)}


def their_model(shape: dict, seed: int = 0) -> GPT2LMHeadModel:
    """A tiny random GPT-2 of transformers, no parameter at its first value."""
    torch.manual_seed(seed)
    shape = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16} | shape
    config = TheirConfig(**shape, attn_implementation="eager", bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.15 * torch.randn(parameter.shape))
    return model


@pytest.fixture(scope="module", params=SHAPES)
def pair(request, tmp_path_factory):
    """Ours and theirs with the same weights, ours read from what transformers saved."""
    theirs = their_model(SHAPES[request.param])
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    return GPT2Model.from_pretrained(str(folder)).eval(), theirs


def ids(b: int = 3, t: int = 9, v: int = 61, seed: int = 0) -> torch.Tensor:
    return torch.randint(v, (b, t), generator=torch.Generator().manual_seed(seed))


def all_states(ours, input_ids, mask) -> list[torch.Tensor]:
    """The embedding, the output of each layer but the last, and the output after the last norm."""
    states = [ours.embed(input_ids)]
    hooks = [
        layer.register_forward_hook(lambda module, args, output: states.append(output))
        for layer in ours.gpt_layers
    ]
    last = ours(input_ids, mask)["last_hidden_state"]
    for hook in hooks:
        hook.remove()
    return [*states[:-1], last]


def compare(ours, theirs, input_ids, mask) -> None:
    real = mask.bool()
    expected = theirs(input_ids, attention_mask=mask, output_hidden_states=True)
    found = all_states(ours, input_ids, mask)
    assert len(found) == len(expected.hidden_states) == ours.config.num_hidden_layers + 1
    for a, b in zip(found, expected.hidden_states, strict=True):
        torch.testing.assert_close(a[real], b[real], rtol=0, atol=1e-4)
    logits = ours.hidden_state_to_token(found[-1])
    torch.testing.assert_close(logits[real], expected.logits[real], rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("padding", MASKS)
def test_hidden_states_and_logits_equal_those_of_transformers(pair, padding):
    compare(*pair, ids(), MASKS[padding])


@pytest.mark.parametrize("padding", MASKS)
def test_loss_and_every_gradient_equal_those_of_transformers(pair, padding):
    ours, theirs = pair
    mask, input_ids = MASKS[padding], ids()
    labels = input_ids.masked_fill(mask == 0, IGNORED_LABEL)
    labels[:, 1:][mask[:, :-1] == 0] = IGNORED_LABEL  # padding is not to predict a token
    theirs.zero_grad()
    expected = theirs(input_ids, attention_mask=mask, labels=labels).loss
    expected.backward()

    ours.zero_grad()
    hidden_states = ours(input_ids, mask)["last_hidden_state"]
    logits = ours.hidden_state_to_token(hidden_states[:, :-1])
    loss = next_token_loss(logits, labels[:, 1:])
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    found = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for name, parameter in theirs.transformer.named_parameters():
        joined = torch.cat([found.pop(our_name) for our_name in our_names(name)])
        joined = joined.t() if ".c_" in name else joined
        torch.testing.assert_close(joined, parameter.grad, rtol=0, atol=1e-4, msg=name)
        if not name.endswith("wpe.weight"):
            assert parameter.grad.abs().max() > 1e-3, f"{name}: too small to compare"
    assert found == {}


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("shape", [(768, 12, 12), (1024, 24, 16)], ids=["gpt2", "gpt2-medium"])
def test_full_size_models_equal_those_of_transformers(shape, tmp_path):
    d, layers, heads = shape
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(TheirConfig(n_embd=d, n_layer=layers, n_head=heads)).eval()
    theirs.save_pretrained(tmp_path)
    ours = GPT2Model.from_pretrained(str(tmp_path), d=d, l=layers, num_heads=heads).eval()
    for mask in MASKS.values():
        compare(ours, theirs, ids(v=50257), mask)


@torch.no_grad()
@pytest.mark.parametrize("padding", MASKS)
def test_last_token_is_that_of_the_last_real_position(pair, padding):
    ours, _ = pair
    output = ours(ids(), MASKS[padding])
    for row, real in enumerate(MASKS[padding]):
        last = max(position for position in range(9) if real[position])
        assert torch.equal(output["last_token"][row], output["last_hidden_state"][row, last])


@torch.no_grad()
def test_tokens_at_padding_do_not_change_outputs_at_real_positions(pair):
    ours, _ = pair
    for mask in MASKS.values():
        changed = torch.where(mask == 1, ids(), ids(seed=1))
        before, after = (ours(x, mask)["last_hidden_state"] for x in (ids(), changed))
        assert torch.equal(before[mask == 1], after[mask == 1]) and after.isfinite().all()


@torch.no_grad()
def test_without_a_mask_every_token_is_real(pair):
    ours, _ = pair
    masked, plain = ours(ids(), MASKS["none"]), ours(ids())
    assert plain.keys() == {"last_hidden_state", "last_token"}
    assert all(torch.equal(plain[name], masked[name]) for name in plain)


def test_the_output_layer_is_the_embedding():
    model, hidden_states = GPT2Model(TINY), torch.randn(2, 5, 32)
    logits = model.hidden_state_to_token(hidden_states)
    torch.testing.assert_close(logits, hidden_states @ model.word_embedding.weight.T)
    nn.init.zeros_(model.word_embedding.weight)
    assert not model.hidden_state_to_token(hidden_states[:, -1]).any()


def test_next_token_loss_ignores_its_label_and_sums_or_averages():
    logits, labels = torch.randn(2, 4, 61), ids(2, 4)
    labels[0, 1:] = IGNORED_LABEL
    picked = logits.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    by_hand = -picked[labels != IGNORED_LABEL]
    assert IGNORED_LABEL == -100 and len(by_hand) == 5
    torch.testing.assert_close(next_token_loss(logits, labels), by_hand.mean())
    torch.testing.assert_close(next_token_loss(logits, labels, reduction="sum"), by_hand.sum())


def test_token_0_learns():
    model = GPT2Model(TINY)
    assert model.word_embedding.padding_idx is None
    output = model(torch.zeros(1, 3, dtype=torch.long))["last_hidden_state"]
    (output * torch.randn(output.shape)).sum().backward()
    assert model.word_embedding.weight.grad[0].abs().max() > 1e-3


def test_there_are_as_many_parameters_as_in_transformers():
    theirs = TheirModel(TheirConfig(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=16))
    ours = sum(parameter.numel() for parameter in GPT2Model(TINY).parameters())
    assert ours == sum(parameter.numel() for parameter in theirs.parameters())


def test_positions_count_from_0():
    model = GPT2Model(TINY).eval()
    expected = model.word_embedding(ids()) + model.pos_embedding.weight[:9]
    torch.testing.assert_close(model.embed(ids()), expected)


def test_embeddings_are_dropped_in_training_mode_only():
    model = GPT2Model(dataclasses.replace(TINY, hidden_dropout_prob=0.5))
    assert 0.3 < (model.train().embed(ids()) == 0).float().mean() < 0.7
    assert (model.eval().embed(ids()) != 0).all()


def test_a_text_longer_than_the_positions_is_refused_with_both_numbers():
    model = GPT2Model(TINY)
    assert model(ids(1, 16))["last_hidden_state"].shape == (1, 16, 32)
    with pytest.raises(ValueError, match=r"17 tokens.*16 positions"):
        model(ids(1, 17))


@pytest.mark.parametrize(
    "rows, right, last",
    [
        ([[1, 1, 1]], True, [2]),
        ([[1, 1, 0], [1, 0, 0]], True, [1, 0]),
        ([[1, 1, 0], [0, 1, 1]], False, [1, 2]),
        ([[0, 0, 1], [0, 1, 1]], False, [2, 2]),
        ([[1, 0, 1, 0]], False, [2]),
        ([[1]], True, [0]),
    ],
)
def test_padding_is_recognised_and_the_last_token_found(rows, right, last):
    mask = torch.tensor(rows)
    assert is_right_padded(mask) is right
    assert last_positions(mask).tolist() == last
    assert is_right_padded(mask.bool()) is right


# -- interface and first weights ---------------------------------------------------------------


def parameters_of(function) -> str:
    return str(inspect.signature(function)).split(" ->")[0]


def test_names_and_signatures_are_those_of_the_course():
    model = GPT2Model(TINY)
    parts = "word_embedding pos_embedding embed_dropout gpt_layers final_layer_norm"
    assert [name for name, _ in model.named_children()] == parts.split()
    parts = (
        "self_attention attention_dense attention_layer_norm attention_dropout "
        "interm_dense interm_af out_dense out_layer_norm out_dropout"
    )
    assert [name for name, _ in model.gpt_layers[0].named_children()] == parts.split()
    attention = model.gpt_layers[0].self_attention
    assert [name for name, _ in attention.named_children()] == ["query", "key", "value", "dropout"]
    assert isinstance(model, GPTPreTrainedModel) and model.dtype == torch.float32

    assert parameters_of(CausalSelfAttention) == parameters_of(GPT2Layer) == "(config)"
    assert parameters_of(CausalSelfAttention.transform) == "(self, x, linear)"
    asked = "(self, key, query, value, attention_mask)"
    assert parameters_of(CausalSelfAttention.attention) == asked
    for module in (CausalSelfAttention, GPT2Layer, GPT2Model):
        first, second, *others = list(inspect.signature(module.forward).parameters.values())[1:]
        assert first.name in ("hidden_states", "input_ids") and second.name == "attention_mask"
        assert all(other.default is not other.empty for other in others)
    assert parameters_of(GPT2Layer.add) == "(self, input, output, dense_layer, dropout)"
    assert parameters_of(GPT2Model.encode) == "(self, hidden_states, attention_mask)"
    assert parameters_of(GPT2Model.hidden_state_to_token) == "(self, hidden_state)"
    found = inspect.signature(GPT2Model.from_pretrained).parameters
    defaults = {name: parameter.default for name, parameter in found.items()}
    assert defaults == {"model": "gpt2", "d": 768, "l": 12, "num_heads": 12}


def test_embed_then_encode_then_norm_is_forward():
    model = GPT2Model(TINY).eval()
    hidden_states = model.encode(model.embed(ids()), MASKS["left"])
    expected = model(ids(), MASKS["left"])["last_hidden_state"]
    assert torch.equal(model.final_layer_norm(hidden_states), expected)


def test_the_same_seed_gives_the_same_first_weights():
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(GPT2Model(TINY).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["word_embedding.weight"], states[2]["word_embedding.weight"])


def test_first_weights_are_gpt2s():
    torch.manual_seed(0)
    config = dataclasses.replace(
        TINY, vocab_size=400, hidden_size=128, intermediate_size=512, initializer_range=0.05
    )
    for name, parameter in GPT2Model(config).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            std = 0.05 / 2 if "dense" in name and "interm" not in name else 0.05  # √(2 · 2 layers)
            assert parameter.std().item() == pytest.approx(std, rel=0.06), name
            assert abs(parameter.mean().item()) < 0.1 * std, name


def test_the_backbone_is_built_by_its_shape_alone_when_nothing_is_to_be_loaded():
    class Settings:
        pretrained, gpt_config, model_size = False, dataclasses.asdict(TINY), "no/such-model"

    assert backbone(Settings).config == TINY
