"""Whatever stands in a file that others wrote, only an InputError comes out: hundreds of seeds."""

import gzip
import json
import lzma
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from course_files import pairs_text, sentiment_text, sonnets_text, write_model
from fuzz import damaged, damaged_json
from tiny_run import Averager, no_picture, run, stopped_run

from data import download
from engine.checkpoint import load_model
from engine.corpus import TokenBlocks, check_tokens, documents, write_tokens
from engine.errors import InputError
from engine.hub import load_gpt2, load_tokenizer
from engine.prediction_files import origin, read_predictions, write_predictions
from engine.records import read_pairs, read_sentiment, read_sonnets
from engine.stages import read_making
from engine.trees import load_tree, save_tree

COUNT = 300
pytestmark = pytest.mark.slow


def check(path, forms, action) -> None:
    """`action` reads the file in each of these forms: well, or with an InputError of one line."""
    path, refused = Path(path), 0
    for content in forms:
        path.write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                action()
        except InputError as error:
            refused += 1
            assert str(error).isprintable() and len(str(error)) < 1500, f"{error!r}"
    assert refused > COUNT / 20, "the damage is noticed at all"


# -- tables and texts --------------------------------------------------------------------------

READERS = {
    "sentiment": (sentiment_text(5, 8, labelled=True), lambda path: read_sentiment(path, 5)),
    "pairs": (pairs_text(8, labelled=True), lambda path: read_pairs(path, labelled=True)),
    "sonnets": (sonnets_text([1, 2, 3], lines=3), read_sonnets),
}


@pytest.mark.parametrize("name", READERS)
def test_data_files(name, tmp_path):
    text, read = READERS[name]
    path = tmp_path / "data.csv"
    check(path, damaged(text.encode(), COUNT), lambda: read(path))


def test_prediction_files(tmp_path):
    path = tmp_path / "p.csv"
    write_predictions(
        path, "Predicted_Sentiment", [f"id{i}" for i in range(9)], [i % 5 for i in range(9)]
    )
    check(path, damaged(path.read_bytes(), COUNT), lambda: read_predictions(path))


@pytest.mark.parametrize(
    "suffix, pack", [(".txt", bytes), (".gz", gzip.compress), (".xz", lzma.compress)]
)
def test_texts_to_pre_train_on(suffix, pack, tmp_path):
    path = tmp_path / f"text{suffix}"
    content = pack("ein Vers\n<|endoftext|>\nüber Rosen\n".encode() * 40)
    check(path, damaged(content, COUNT), lambda: list(documents([path])))


# -- JSON --------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [damaged, damaged_json])
def test_the_listing_of_the_course_s_files(damage, tmp_path):
    path = tmp_path / "listing.json"
    entry = b'{"name": "quora-%d.csv", "sha": "' + b"0f" * 20 + b'", "size": 12}'
    content = b"[%s, %s]" % (entry % 1, entry % 2)
    check(path, damage(content, COUNT), lambda: download.listing(path))


@pytest.mark.parametrize("damage", [damaged, damaged_json])
@pytest.mark.parametrize("name", ["training.json", "metrics.jsonl"])
def test_what_a_pre_trained_folder_says_of_its_making(name, damage, tmp_path):
    (tmp_path / "training.json").write_bytes(b'{"steps": 5, "flags": {"lr": 0.1}}')
    (tmp_path / "metrics.jsonl").write_bytes(b'{"epoch": 0, "tokens": 5, "bits_per_byte": 1.5}')
    path = tmp_path / name
    check(path, damage(path.read_bytes(), COUNT), lambda: read_making(str(tmp_path)))


@pytest.mark.parametrize("damage", [damaged, damaged_json])
def test_the_record_of_a_run_s_predictions(damage, tmp_path):
    path, predictions = tmp_path / "predictions.json", tmp_path / "p.csv"
    predictions.write_bytes(b"x")
    content = (
        b'{"p.csv": {"made_by": "runs/a", "model_size": "gpt2", "dev": {"acc": 0.5}, "limit": 3'
    )
    content += (
        b', "extension": ["lora"], "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db0225'
    )
    content += b'8717921a4881"}}'
    check(path, damage(content, COUNT), lambda: origin(predictions, tmp_path))


# -- token files -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    return folder


@pytest.mark.parametrize(
    "name, damage", [("t.bin", damaged), ("t.json", damaged), ("t.json", damaged_json)]
)
def test_token_files(name, damage, model, tmp_path):
    tokenizer, tokens = load_tokenizer(str(model)), tmp_path / "t.bin"
    write_tokens(tokens, tokenizer, ["the film was good"] * 20)

    def read():
        check_tokens(tokens, len(tokenizer))
        list(TokenBlocks(tokens, 4))

    path = tmp_path / name
    check(path, damage(path.read_bytes(), COUNT), read)


# -- HuggingFace's folders ---------------------------------------------------------------------


@pytest.mark.parametrize("damage", [damaged, damaged_json])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_s_folder(name, damage, model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")

    def read():
        load_tokenizer(str(folder))(["Yes, the film was góod"])

    check(folder / name, damage(Path(folder / name).read_bytes(), COUNT), read)


@pytest.mark.parametrize(
    "name, damage",
    [("config.json", damaged), ("config.json", damaged_json), ("model.safetensors", damaged)],
)
def test_a_model_s_folder(name, damage, model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    path = Path(folder / name)
    check(path, damage(path.read_bytes(), COUNT // 2), lambda: load_gpt2(str(folder)))


@pytest.mark.parametrize("damage", [damaged, damaged_json])
def test_the_index_of_a_model_in_shards(damage, model, tmp_path):
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    names = [
        f"transformer.{name}" for name in ("wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias")
    ]
    path = folder / "model.safetensors.index.json"
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-1.safetensors")}
    content = json.dumps(index).encode()
    check(path, damage(content, COUNT // 2), lambda: load_gpt2(str(folder)))


def test_weights_in_a_pickle(model, tmp_path):
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    tensors = {f"transformer.{n}": p for n, p in load_gpt2(str(folder)).named_parameters()}
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save(tensors, path)
    check(path, damaged(path.read_bytes(), COUNT // 2), lambda: load_gpt2(str(folder)))


# -- this project's checkpoints ----------------------------------------------------------------


def test_the_best_file_of_a_run(tmp_path):
    path = tmp_path / "best.safetensors"
    tree = {
        "task": "tiny",
        "settings": {"lr": 0.1},
        "metrics": {},
        "model": Averager().state_dict(),
    }
    save_tree(path, tree)
    content = path.read_bytes()

    def read():
        load_model(path, "tiny", lambda settings, pretrained: Averager())

    check(path, damaged(content, COUNT), read)


def test_the_state_of_a_run(tmp_path):
    path = stopped_run(tmp_path)
    folder = path.parent
    kept = {p: p.read_bytes() for p in folder.iterdir() if p.suffix == ".safetensors"}

    def resume():
        for other in kept.keys() - {path}:
            other.write_bytes(kept[other])
        run(Averager(), tmp_path, epochs=2, resume=True)

    check(path, damaged(kept[path], COUNT // 2), resume)


def test_trees_whose_values_are_others(tmp_path, monkeypatch):
    """A version of the project may have written anything: the digests are right."""
    monkeypatch.setattr("engine.checkpoint.plot_curves", no_picture)
    path = stopped_run(tmp_path)
    tree = load_tree(path)
    best = path.with_name("best.safetensors").read_bytes()
    plain = {
        key: value for key, value in tree.items() if key not in ("model", "optimizer", "random")
    }
    refused = 0
    for form in damaged_json(json.dumps(plain).encode(), COUNT // 2):
        try:
            other = json.loads(form)
        except RecursionError:
            continue
        save_tree(path, {**tree, **other} if isinstance(other, dict) else {"all": other})
        path.with_name("best.safetensors").write_bytes(best)
        try:
            run(Averager(), tmp_path, epochs=2, resume=True, evaluate=lambda model: {"dev": 9.0})
        except InputError:
            refused += 1
    assert refused > COUNT / 8 and load_tree(path)
