"""Trees on disk: exact, whole or not at all, checked bit by bit, and never code."""

import os
import pickle
import zlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_run import Averager, weights

from engine import trees
from engine.errors import InputError
from engine.trees import load_tree, save_tree, tensor_checksum, tensor_digest, tree_digest


def flip_bit(path, place: int) -> None:
    """Change one bit of the byte there; negative places count from the end."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def as_first_format(path) -> None:
    """Write a file as before digests were kept: the tree alone in its header."""
    with safe_open(path, framework="pt") as file:
        metadata = {"tree": file.metadata()["tree"]}
    save_file(load_file(path), path, metadata=metadata)


def with_format(path, version: str) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() | {"format": version}
    save_file(load_file(path), path, metadata=metadata)


def test_a_tree_comes_back_with_its_types_and_bits(tmp_path):
    shared = torch.randn(6, 4)
    tree = {
        "numbers": [1, -2.5, 1e-300, float("inf"), True, None, "ü\n"],
        "by int": {0: {"step": 3}, 1: (1, (2, [3]))},
        "empty": [{}, [], ()],
        "tensors": [shared, shared.T, shared[2:4], shared[:, 1], torch.tensor(7.0)],
        "kinds": {
            dtype: torch.arange(5).to(getattr(torch, dtype))
            for dtype in ("bfloat16", "float16", "float64", "int64", "uint8", "bool")
        },
        "nothing": torch.empty(0, 3),
    }
    save_tree(tmp_path / "t.safetensors", tree)
    found = load_tree(tmp_path / "t.safetensors")

    def equal(a, b):
        if isinstance(a, torch.Tensor):
            return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        if isinstance(a, dict):
            return type(b) is dict and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
        if isinstance(a, (list, tuple)):
            pairs = zip(a, b, strict=True)
            return type(a) is type(b) and all(equal(x, y) for x, y in pairs)
        return type(a) is type(b) and a == b

    assert equal(tree, found)


def test_one_key_is_read_without_the_tensors_of_the_others(tmp_path):
    """The tensor of another key is damaged, which would be noticed if it were read."""
    path = tmp_path / "tree.safetensors"
    save_tree(path, {"task": "sst", "model": {"weight": torch.ones(3)}})
    assert load_tree(path, only="nothing") == {}
    assert torch.equal(load_tree(path, only="model")["model"]["weight"], torch.ones(3))
    flip_bit(path, -1)
    assert load_tree(path, only="task") == {"task": "sst"}


def test_a_view_of_a_large_tensor_is_stored_as_large_as_it_is(tmp_path):
    save_tree(tmp_path / "t.safetensors", {"row": torch.zeros(1000, 1000)[3]})
    assert (tmp_path / "t.safetensors").stat().st_size < 8000


def test_an_optimizer_s_state_comes_back_bit_for_bit(tmp_path):
    from optimizer import AdamW

    model = Averager()
    optimizer = AdamW(model.parameters(), lr=0.1, betas=(0.8, 0.99))
    for _ in range(3):
        model(torch.tensor([[1, 2]]), torch.ones(1, 2)).square().sum().backward()
        optimizer.step()
    save_tree(tmp_path / "o.safetensors", optimizer.state_dict())
    other = AdamW(Averager().parameters())
    other.load_state_dict(load_tree(tmp_path / "o.safetensors"))
    for mine, theirs in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert mine["step"] == theirs["step"] == 3
        assert torch.equal(mine["exp_avg_sq"], theirs["exp_avg_sq"])
    assert other.param_groups[0]["betas"] == (0.8, 0.99)


def test_a_pickle_is_never_opened(tmp_path):
    """Loading code would run the class; reading a safetensors header cannot."""
    marker = tmp_path / "marker"

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    for save in (torch.save, lambda tree, path: path.write_bytes(pickle.dumps(tree))):
        save({"model": Hostile()}, tmp_path / "best.safetensors")
        with pytest.raises(InputError, match=r"best\.safetensors: no whole checkpoint"):
            load_tree(tmp_path / "best.safetensors")
    assert not marker.exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_a_file_cut_short_is_refused(tmp_path, share):
    path = tmp_path / "best.safetensors"
    save_tree(path, {"task": "tiny", "model": weights(Averager())})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"no whole checkpoint of this project.*train again"):
        load_tree(path)


def test_writing_fails_whole_when_the_disk_is_full(tmp_path, monkeypatch):
    """The old file stays, the temporary one goes."""
    path = tmp_path / "last.safetensors"
    save_tree(path, {"step": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_tree(path, {"step": 2})
    assert load_tree(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]


# -- versions and damage -----------------------------------------------------------------------

TREE = {"task": "tiny", "lr": 0.125, "model": {"w": torch.arange(6.0), "b": torch.ones(2)}}


def test_one_flipped_bit_of_a_tensor_is_refused_wherever_it_is(tmp_path):
    path = tmp_path / "best.safetensors"
    save_tree(path, TREE)
    data = sum(tensor.nbytes for tensor in TREE["model"].values())
    for place in range(-data, 0, 5):
        save_tree(path, TREE)
        flip_bit(path, place)
        with pytest.raises(InputError, match=r"best\.safetensors: 1 of 2 tensors are damaged"):
            load_tree(path)


def test_a_changed_number_in_the_header_is_refused(tmp_path):
    path = tmp_path / "best.safetensors"
    save_tree(path, TREE)
    path.write_bytes(path.read_bytes().replace(b"0.125", b"0.525"))
    with pytest.raises(InputError, match=r"best\.safetensors: its header is damaged"):
        load_tree(path)


def test_a_file_of_the_first_format_is_read_and_said_to_be_unchecked(tmp_path, capsys):
    path = tmp_path / "best.safetensors"
    save_tree(path, TREE)
    as_first_format(path)
    assert torch.equal(load_tree(path)["model"]["w"], TREE["model"]["w"])
    said = capsys.readouterr().err
    assert said.startswith(f"note: {path}: written before") and said.count("\n") == 1


def test_a_file_of_the_second_format_is_read_and_its_damage_noticed(tmp_path, monkeypatch):
    path = tmp_path / "best.safetensors"
    monkeypatch.setattr(trees, "FORMAT", 2)
    digest = save_tree(path, TREE)
    monkeypatch.undo()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "2" and len(metadata["digests"]) == 64
    assert metadata["digests"][:32] == tensor_digest("tensor.0", TREE["model"]["w"])
    assert torch.equal(load_tree(path)["model"]["w"], TREE["model"]["w"])
    assert tree_digest(path) == digest
    flip_bit(path, -1)
    with pytest.raises(InputError, match="1 of 2 tensors are damaged"):
        load_tree(path)


def test_a_checksum_is_that_of_name_type_shape_and_bytes():
    tensor = torch.arange(4.0).reshape(2, 2)
    content = b"w torch.float32 [2, 2]" + tensor.numpy().tobytes()
    assert tensor_checksum("w", tensor) == f"{zlib.crc32(content):08x}"
    assert tensor_checksum("w", torch.ones(0)) == f"{zlib.crc32(b'w torch.float32 [0]'):08x}"


def test_a_file_of_a_newer_format_is_refused_by_its_number(tmp_path):
    path = tmp_path / "best.safetensors"
    save_tree(path, TREE)
    with_format(path, "7")
    with pytest.raises(InputError, match=r"of format 7, written by a newer version.*up to 3"):
        load_tree(path)


def test_the_digest_of_a_file_changes_with_its_content_and_not_with_its_name(tmp_path):
    digests = [
        save_tree(tmp_path / "a", TREE),
        save_tree(tmp_path / "b", TREE),
        save_tree(tmp_path / "c", TREE | {"lr": 0.5}),
        save_tree(tmp_path / "d", TREE | {"model": {"w": torch.ones(6), "b": torch.ones(2)}}),
    ]
    assert digests[0] == digests[1] and len(set(digests)) == 3
    assert digests == [tree_digest(tmp_path / name) for name in "abcd"]


@pytest.mark.parametrize(
    "tree",
    [
        *("null", "5", "[]", "{}", "{", "[" * 9999),
        *('{"dict": 3}', '{"dict": [[1]]}', '{"dict": [["a", {}]]}'),
        *('{"dict": [["a", {"tensor": 5}]]}', '{"dict": [["a", {"tensor": "none"}]]}'),
    ],
)
def test_a_header_that_is_no_tree_is_refused(tree, tmp_path):
    path = tmp_path / "best.safetensors"
    save_file({"tensor.0": torch.ones(2)}, path, metadata={"tree": tree})
    with pytest.raises(InputError, match=r"best\.safetensors: no whole checkpoint"):
        load_tree(path)


def test_a_message_about_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"last\.safetensors"):
        save_tree(tmp_path / "last.safetensors", {"step": 2})
