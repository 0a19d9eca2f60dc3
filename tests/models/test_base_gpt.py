"""Checkpoints in HuggingFace's format are read and written exactly, and what is wrong is named."""

import dataclasses
import json
import pickle
from pathlib import Path

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2LMHeadModel
from transformers import GPT2Config as TheirConfig

from config import GPT2Config
from engine.errors import InputError
from engine.hub import load_gpt2
from models.gpt2 import GPT2Model

TINY = GPT2Config(
    vocab_size=61,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=80,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.2,
    max_position_embeddings=16,
    initializer_range=0.3,
    layer_norm_eps=1e-4,
)
IDS = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(0))


def strong_model(config=TINY, seed: int = 0) -> GPT2Model:
    """Ours with biases and norms that are not at their first values."""
    torch.manual_seed(seed)
    model = GPT2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.hidden_state_to_token(model.eval()(IDS)["last_hidden_state"])


@pytest.fixture
def folder(tmp_path) -> Path:
    strong_model().save_pretrained(tmp_path, end_token=60)
    return tmp_path


def load(folder) -> GPT2Model:
    return load_gpt2(str(folder))


def change_config(folder, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), encoding="utf-8")


def change_weights(folder, change) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def test_a_round_trip_is_exact(folder):
    model, again = strong_model(), load(folder)
    assert again.config == TINY
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert all(parameter.requires_grad for parameter in again.parameters())
    assert not any(parameter.is_meta for parameter in again.parameters())


def test_transformers_reads_what_we_write(folder):
    theirs, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    config = theirs.config
    assert (config.n_inner, config.n_positions, config.layer_norm_epsilon) == (80, 16, 1e-4)
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.1, 0.1, 0.2)
    with torch.no_grad():
        found = theirs.eval()(IDS).logits
    torch.testing.assert_close(found, logits(strong_model()), rtol=0, atol=1e-4)


def write_theirs(folder, theirs, kind: str) -> None:
    if kind == "pytorch_model.bin":
        theirs.config.save_pretrained(folder)
        torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    elif kind == "pickled shards":
        theirs.config.save_pretrained(folder)
        write_pickled_shards(folder, theirs.state_dict())
        AutoModelForCausalLM.from_pretrained(folder)
    elif kind == "shards":
        theirs.save_pretrained(folder, max_shard_size="20KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 1
    elif kind == "without prefix":
        theirs.transformer.save_pretrained(folder)
    else:
        theirs.save_pretrained(folder)


def write_pickled_shards(folder, state: dict) -> None:
    split = split_torch_state_dict_into_shards(
        state, filename_pattern="pytorch_model{suffix}.bin", max_shard_size="20KB"
    )
    assert len(split.filename_to_tensors) > 1
    for name, keys in split.filename_to_tensors.items():
        torch.save({key: state[key].clone() for key in keys}, folder / name)
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")


@pytest.mark.parametrize(
    "kind",
    ["model.safetensors", "shards", "pytorch_model.bin", "pickled shards", "without prefix"],
)
@pytest.mark.parametrize("inner", [None, 72])
def test_every_file_format_of_transformers_is_read(kind, inner, tmp_path):
    torch.manual_seed(0)
    config = TheirConfig(
        vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=16, n_inner=inner
    )
    theirs = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        expected = theirs(IDS).logits
    write_theirs(tmp_path, theirs, kind)
    ours = load(tmp_path)
    assert ours.config.intermediate_size == (inner or 128)
    torch.testing.assert_close(logits(ours), expected, rtol=0, atol=1e-4)


def test_old_checkpoints_with_masks_and_a_tied_head_are_read(folder):
    def add(state):
        state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
        state["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
        state["lm_head.weight"] = state["transformer.wte.weight"].clone()

    change_weights(folder, add)
    assert torch.equal(logits(load(folder)), logits(strong_model()))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_a_model_keeps_no_file_in_memory(folder):
    model = GPT2Model.from_pretrained(str(folder))
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    assert str(folder / "model.safetensors") not in maps
    assert all(parameter.is_contiguous() for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_another_precision_become_float32(folder, dtype):
    change_weights(folder, lambda state: state.update({k: v.to(dtype) for k, v in state.items()}))
    model = load(folder)
    assert model.dtype == torch.float32
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, strong_model().state_dict()[name].to(dtype).float()), name


WTE, C_FC = "transformer.wte.weight", "transformer.h.1.mlp.c_fc.weight"
DAMAGE = {
    "an embedding of another vocabulary": (
        lambda state: state.update({WTE: torch.zeros(60, 32)}),
        ["wte.weight has another shape"],
    ),
    "a linear that is transposed": (
        lambda state: state.update({C_FC: state[C_FC].T.contiguous()}),
        ["h.1.mlp.c_fc.weight has another shape"],
    ),
    "a joined matrix of another width": (
        lambda state: state.update({"transformer.h.0.attn.c_attn.weight": torch.zeros(32, 95)}),
        ["h.0.attn.c_attn.weight has another shape"],
    ),
    "a missing tensor": (
        lambda state: state.pop(C_FC),
        ["1 tensors do not fit", "h.1.mlp.c_fc.weight is missing"],
    ),
    "a tensor that is not known": (
        lambda state: state.update({"transformer.h.0.adapter.weight": torch.zeros(2)}),
        ["1 tensors do not fit", "h.0.adapter.weight is unknown"],
    ),
    "an axis too many": (
        lambda state: state.update({C_FC: torch.zeros(2, 3, 4)}),
        ["h.1.mlp.c_fc.weight has another shape"],
    ),
    "a layer too many": (
        lambda state: state.update({C_FC.replace("1", "2"): torch.zeros(2)}),
        ["h.2.mlp.c_fc.weight is unknown"],
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_tensors_that_do_not_fit_are_named(folder, name):
    change, said = DAMAGE[name]
    change_weights(folder, change)
    with pytest.raises(InputError) as caught:
        load(folder)
    for part in [str(folder), *said]:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_many_missing_tensors_are_counted_and_a_few_named(folder):
    change_weights(folder, dict.clear)
    with pytest.raises(InputError, match=r"28 tensors do not fit config.json, .* is missing"):
        load(folder)


@pytest.mark.parametrize(
    "values, said",
    [
        ({"activation_function": "gelu"}, "activation_function.*'gelu'.*'gelu_new'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx.*True"),
        ({"scale_attn_weights": False}, "scale_attn_weights.*False"),
        ({"add_cross_attention": True}, "add_cross_attention.*True"),
        ({"model_type": "bert"}, "model_type.*'bert'.*'gpt2'"),
        ({"embd_pdrop": 0.3}, "embd_pdrop.*0.3.*0.1"),
        ({"n_head": 5}, "32.*5"),
        ({"n_layer": 3}, "h.2.* is missing"),
        ({"vocab_size": 62}, "wte.weight has another shape"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"n_head": 0}, "n_head is 0"),
        ({"n_layer": "two"}, "n_layer"),
    ],
)
def test_a_config_that_is_not_built_is_refused(folder, values, said):
    change_config(folder, **values)
    with pytest.raises(InputError, match=said):
        load(folder)


def test_a_config_that_is_no_object_is_refused(folder):
    (folder / "config.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(InputError, match=str(folder)):
        load(folder)


@pytest.mark.parametrize("name", ["d", "l", "num_heads"])
def test_the_shape_that_is_asked_for_is_checked(folder, name):
    right = {"d": 32, "l": 2, "num_heads": 4}
    assert GPT2Model.from_pretrained(str(folder), **right).config == TINY
    field = {"d": "hidden_size", "l": "num_hidden_layers", "num_heads": "num_attention_heads"}
    with pytest.raises(InputError, match=f"{field[name]} is {right[name]}, expected 8"):
        load_gpt2(str(folder), **right | {name: 8})


def test_the_end_of_text_is_written_by_default_gpt2_s(folder, tmp_path):
    assert json.loads((folder / "config.json").read_text("utf-8"))["eos_token_id"] == 60
    config = dataclasses.replace(TINY, vocab_size=50257, hidden_size=4)
    GPT2Model(config).save_pretrained(tmp_path / "large")
    written = json.loads((tmp_path / "large" / "config.json").read_text("utf-8"))
    assert written["eos_token_id"] == written["bos_token_id"] == 50256


# -- files that are not what they should be ----------------------------------------------------


class Hostile:
    """A pickle of it, read carelessly, makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def dump(content, path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("save", [torch.save, dump])
def test_a_pickle_that_wants_to_run_code_is_refused(folder, tmp_path, save):
    marker = tmp_path / "marker"
    (folder / "model.safetensors").unlink()
    save({"wte.weight": Hostile(marker)}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="of more than weights, which is refused"):
        load(folder)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Hostile(marker)))
    assert marker.exists(), "the pickle was harmless"


def test_a_pickle_of_something_else_is_refused(folder):
    (folder / "model.safetensors").unlink()
    torch.save([torch.zeros(3)], folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="copy the checkpoint again"):
        load(folder)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_truncated_weights_are_refused(folder, name, share):
    path = folder / "model.safetensors"
    if name != path.name:
        torch.save(load_file(path), folder / name)
        path.unlink()
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=f"^{folder / name}: .*copy the checkpoint again"):
        load(folder)


BROKEN = ["{", "[]", '{"weight_map": {"a": "gone.bin"}}', '{"weight_map": {"a": "../gone.bin"}}']


@pytest.mark.parametrize("index", BROKEN)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_broken_index_of_shards_is_refused(folder, name, index):
    (folder / "model.safetensors").unlink()
    (folder / f"{name}.index.json").write_text(index, encoding="utf-8")
    with pytest.raises(InputError, match=f"{folder}.*copy"):
        load(folder)


def test_a_folder_without_weights_or_config_says_so(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no file named .*model\.safetensors"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json: not found"):
        load(folder)
