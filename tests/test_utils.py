"""Seeds, tokenizers, masks, and files that appear whole or not at all; errors are one line."""

import errno
import fcntl
import os
import random
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from course_files import write_model

from config import SIZES
from engine import hub
from engine.errors import InputError, command
from engine.files import atomic_path, atomic_write, check_writable, remove_leftovers
from engine.hub import checkpoint_folder, load_tokenizer
from engine.parallel import seed_everything
from utils import get_extended_attention_mask, model_size_to_params


def test_a_seed_decides_the_numbers_of_python_numpy_and_torch():
    def draw(*seed):
        seed_everything(*seed)
        return [random.random(), float(np.random.rand()), torch.rand(3).tolist()]

    assert draw() == draw(11711)
    for first, second in zip(draw(1), draw(2), strict=True):
        assert first != second
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark


def test_size_names_give_the_arguments_of_from_pretrained():
    assert model_size_to_params("gpt2") == {"d": 768, "l": 12, "num_heads": 12}
    assert model_size_to_params("gpt2-medium") == {"d": 1024, "l": 24, "num_heads": 16}
    assert model_size_to_params("gpt2-large") == {"d": 1280, "l": 36, "num_heads": 20}
    assert model_size_to_params("gpt2-xl") == {"d": 1600, "l": 48, "num_heads": 25}
    assert model_size_to_params("some/folder") == model_size_to_params("gpt2-mini") == {}
    assert len(SIZES) == 4


# -- folders and tokenizers --------------------------------------------------------------------


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(original, tmp_path) -> Path:
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_folder_is_itself_and_a_missing_one_is_said(folder, monkeypatch):
    assert checkpoint_folder(str(folder)) == folder
    for name in ("./nowhere", "/no/where", "~/nowhere", "../nowhere"):
        with pytest.raises(InputError, match=rf"^{name}: no such folder"):
            checkpoint_folder(name)
    monkeypatch.setitem(hub.BUNDLED, "gpt2-mini", folder / "gone")
    with pytest.raises(InputError, match=r"gpt2-mini: .*gone is missing: give one of gpt2, "):
        checkpoint_folder("gpt2-mini")
    monkeypatch.setitem(hub.BUNDLED, "gpt2-mini", folder)
    assert checkpoint_folder("gpt2-mini") == folder


@pytest.mark.parametrize("name", ["gpt2", "nobody/no-such-model", "a b", "x" * 200])
def test_a_name_that_nothing_has_gives_one_message(name, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("engine.hub.hub_resolves", lambda: False)
    with pytest.raises(
        InputError, match=rf"^{name}: neither a folder nor in the HuggingFace cache"
    ):
        checkpoint_folder(name)


def test_the_tokenizer_pads_on_the_right_with_the_end_of_text(folder):
    tokenizer = load_tokenizer(str(folder))
    batch = tokenizer(["good film", "the plot is awful"], padding=True)
    short, mask = batch["input_ids"][0], batch["attention_mask"][0]
    assert tokenizer.pad_token == tokenizer.eos_token == "<|endoftext|>"
    assert mask[0] == 1 and mask[-1] == 0 and short[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(short, skip_special_tokens=True) == "good film"


def test_the_tokenizer_brings_any_text_back(folder):
    tokenizer = load_tokenizer(str(folder))
    for text in ("", " two  spaces ", "naïve café — ‘quoted’ 🙂", "line\nline\t", "the the"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_missing_tokenizer_file_is_said_with_the_folder(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"^{folder}: no tokenizer\.json, nor vocab\.json"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "1.0"}'])
def test_a_broken_tokenizer_is_one_line_with_the_folder(folder, content):
    (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=rf"^{folder}: the tokenizer cannot be read") as caught:
        load_tokenizer(str(folder))
    assert "\n" not in str(caught.value)


def test_a_vocabulary_and_merges_will_do(tmp_path, original):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(original)
    tokenizer.backend_tokenizer.model.save(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"vocab.json", "merges.txt"}
    shutil.copy(original / "config.json", tmp_path)
    text = "the film was superb, is it not?"
    assert load_tokenizer(str(tmp_path))(text)["input_ids"] == tokenizer(text)["input_ids"]


# -- masks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", [torch.long, torch.bool, torch.float32])
def test_the_mask_is_0_at_real_tokens_and_the_lowest_number_at_padding(dtype, kind):
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    found = get_extended_attention_mask(mask.to(kind), dtype)
    assert found.shape == (2, 1, 1, 3) and found.dtype == dtype
    lowest = torch.finfo(dtype).min
    assert found[:, 0, 0].tolist() == [[0, 0, lowest], [lowest, 0, 0]]
    assert found.isfinite().all()


# -- files -------------------------------------------------------------------------------------


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole_with_its_folders(tmp_path):
    path = tmp_path / "new" / "deep" / "file.txt"
    with atomic_write(path) as file:
        file.write("é")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == "é".encode() and names(path.parent) == ["file.txt"]
    with atomic_write(path, "wb") as file:
        file.write(b"\xff\n")
    assert path.read_bytes() == b"\xff\n"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [b"old", None])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error, old):
    path = tmp_path / "file.txt"
    if old:
        path.write_bytes(old)
    for write in (atomic_write, atomic_path):
        with pytest.raises(error), write(path) as target:
            if write is atomic_write:
                target.write("half")
            else:
                target.write_bytes(b"half")
            raise error
        assert (path.read_bytes() if old else None) == old
        assert names(tmp_path) == (["file.txt"] if old else [])


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_an_error_of_the_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    path = tmp_path / "file.txt"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space"), atomic_write(path) as file:
        file.write("new")
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file.txt"]


def test_bytes_are_on_the_disk_before_the_name_points_to_them(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: calls.append(stat.S_ISDIR(os.fstat(fd).st_mode)) or fsync(fd)
    )
    monkeypatch.setattr(os, "replace", lambda *args: calls.append("replace") or replace(*args))
    with atomic_write(tmp_path / "file.txt") as file:
        file.write("x")
    assert calls == [False, "replace", True]


@pytest.mark.parametrize("refused", ["open", "fsync"])
def test_a_system_that_syncs_no_folders_and_only_writable_files_is_served(
    tmp_path, monkeypatch, refused
):
    """As Windows and some network drives."""
    real_open, real_fsync, synced = os.open, os.fsync, []

    def open_files_only(path, flags, *mode, **at):
        if refused == "open" and os.path.isdir(path):
            raise PermissionError(13, "Permission denied")
        return real_open(path, flags, *mode, **at)

    def fsync_what_is_writable(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            raise OSError(errno.EINVAL if is_folder else errno.EBADF, "refused")
        synced.append(descriptor)
        real_fsync(descriptor)

    monkeypatch.setattr(os, "open", open_files_only)
    monkeypatch.setattr(os, "fsync", fsync_what_is_writable)
    with atomic_write(tmp_path / "file.txt") as file:
        file.write("x")
    assert names(tmp_path) == ["file.txt"] and len(synced) == 1


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_follows_the_umask_and_the_umask_stays(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with atomic_write(tmp_path / "file.txt") as file:
            file.write("x")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == mode


def test_leftovers_of_a_killed_run_go_and_other_files_stay(tmp_path):
    keep = [".hidden", "file.tmp", "out.csv"]
    for name in [*keep, ".out.csv.abc.tmp", ".best.safetensors.x1.tmp"]:
        (tmp_path / name).write_bytes(b"x")
    remove_leftovers(tmp_path, "out.csv")
    assert names(tmp_path) == sorted([*keep, ".best.safetensors.x1.tmp"])
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted(keep)
    remove_leftovers(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["out.csv", "a[1].csv", "*.csv"])
def test_leftovers_are_those_that_atomic_path_makes(tmp_path, name, monkeypatch):
    monkeypatch.setattr("engine.files.is_alive", lambda process: False)
    with atomic_path(tmp_path / name) as temporary:
        temporary.write_bytes(b"x")
    temporary.write_bytes(b"as if killed")
    remove_leftovers(tmp_path, "another.csv")
    assert len(names(tmp_path)) == 2
    remove_leftovers(tmp_path, name)
    assert names(tmp_path) == [name]


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path):
    (tmp_path / "out.csv").write_bytes(b"old")
    check_writable(tmp_path / "out.csv")
    check_writable(tmp_path / "new" / "out.csv")
    assert names(tmp_path) == ["new", "out.csv"] and names(tmp_path / "new") == []
    assert (tmp_path / "out.csv").read_bytes() == b"old"


def test_a_place_that_cannot_be_written_is_said_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"x")
    for path in (tmp_path / "file" / "out.csv", tmp_path / "file" / "deep" / "out.csv"):
        with pytest.raises(InputError, match=r"(: a file|cannot be written).*choose another"):
            check_writable(path)
    with pytest.raises(InputError, match=str(tmp_path)):
        check_writable(tmp_path)

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", denied)
    with pytest.raises(InputError, match=r"cannot be written.*Permission denied"):
        check_writable(tmp_path / "out.csv")


# -- programs ----------------------------------------------------------------------------------


def exit_of(error, capsys) -> dict:
    @command
    def main():
        """A program."""
        raise error

    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    assert not captured.out and main.__doc__ == "A program."
    return {"code": stop.value.code, "error": captured.err}


def test_what_people_can_mend_is_one_line_and_exit_code_2(capsys):
    assert exit_of(InputError("a.csv: line 3"), capsys) == {
        "code": 2,
        "error": "error: a.csv: line 3\n",
    }
    found = exit_of(OSError(28, "No space left on device", "out.csv"), capsys)
    assert found["code"] == 2 and found["error"].count("\n") == 1
    assert found["error"].startswith("error: out.csv: No space left on device: ")
    assert exit_of(OSError("strange"), capsys)["error"].startswith("error: strange: ")


def test_an_interrupt_is_one_line_and_exit_code_130(capsys):
    found = exit_of(KeyboardInterrupt(), capsys)
    assert found["code"] == 130 and found["error"].count("\n") == 1
    assert found["error"].startswith("interrupted")


def test_mistakes_of_the_program_keep_their_traceback_and_results_come_back(capsys):
    @command
    def main(first, *, second):
        return first / second

    assert main(1, second=2) == 0.5
    with pytest.raises(ZeroDivisionError):
        main(1, second=0)
    assert exit_of(SystemExit(5), capsys) == {"code": 5, "error": ""}
