"""Downloading: hashes, resuming, what is kept and what is replaced, on a server of our own."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data import download
from data.download import Blob, blob_of
from engine.files import ROOT
from engine.records import data_file

SPLITS = ("train", "dev", "test")
COURSE = ROOT.parent / "shared" / "data"
CONTENTS = {
    "ids-sst-dev.csv": b"\tid\tsentence\tsentiment\n0\ta1\tfine\t3\n" * 50,
    "sonnets.txt": b"Sonnets\n\n1\n\nFrom fairest creatures\n" * 5000,
    "TRUE_sonnets_held_out_dev.txt": b"132\n\nThine eyes I love\n",
    "quora-train.csv": b"\tid\tsentence1\tsentence2\n" * 30,
    "quora-dev.csv": b"\tid\tsentence1\tsentence2\n" * 3,
    "quora-test-student.csv": b"\tid\tsentence1\tsentence2\n" * 2,
}
QUORA = [name for name in CONTENTS if name.startswith("quora")]
SONNETS = CONTENTS["sonnets.txt"]


def blob(content: bytes) -> Blob:
    return Blob(hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest(), len(content))


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`; notes each request's path and Range, and cuts it at `server.cut`."""

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        name = self.path.removeprefix("/data/")
        if self.path.startswith("/list"):
            body = json.dumps(server.listing).encode()
        elif name in server.files:
            body = server.files[name]
        else:
            return self.send_error(404)
        ranged = self.headers.get("Range") and server.knows_ranges
        start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) if ranged else 0
        self.send_response(206 if ranged else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if not server.pause:
            return self.wfile.write(body[start : server.cut])
        for byte in body[start:]:
            self.wfile.write(bytes([byte]))
            time.sleep(server.pause)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def blobs():
    return {name: blob(content) for name, content in CONTENTS.items()}


@pytest.fixture
def server(monkeypatch, blobs):
    """The course's repository on this machine, with small files; the program is pointed at it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.requests, server.cut, server.knows_ranges = dict(CONTENTS), [], None, True
    server.pause = 0  # seconds after each byte
    server.listing = [{"name": n, "sha": blobs[n].sha, "size": blobs[n].size} for n in QUORA]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    where = f"http://127.0.0.1:{server.server_port}"
    files = {name: blobs[name] for name in CONTENTS if name not in QUORA}
    monkeypatch.setattr(download, "RAW_URL", f"{where}/data")
    monkeypatch.setattr(download, "LIST_URL", f"{where}/list?ref=7570cfa")
    monkeypatch.setattr(download, "FILES", files)
    monkeypatch.setattr(download, "NAMES", list(CONTENTS))
    monkeypatch.setenv("no_proxy", "*")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def call(tmp_path, capsys):
    """Run the program on tmp_path/data: returns its exit code, and all that it printed."""

    def call(*arguments):
        code = 0
        try:
            download.main(["--data_dir", str(tmp_path / "data"), *map(str, arguments)])
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def write_all(folder: Path, *but: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in CONTENTS.items():
        if name not in but:
            (folder / name).write_bytes(content)
    return folder


def paths(server) -> list[str]:
    return [path for path, _ in server.requests]


@pytest.mark.parametrize(
    ("content", "sha"),
    [
        (b"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
        (b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a"),
    ],
)
def test_the_hash_is_the_one_that_git_hash_object_prints(tmp_path, content, sha):
    (tmp_path / "file").write_bytes(content)
    assert blob_of(tmp_path / "file") == Blob(sha, len(content))


def test_all_files_are_brought_and_nothing_else_is_left(server, call, data):
    code, output = call()
    assert code == 0 and "\nnext: python classifier.py" in output, output
    assert {p.name: p.read_bytes() for p in data.iterdir() if p.name[0] != "."} == CONTENTS
    assert not list(data.glob("*.part"))


def test_a_second_call_asks_nothing_and_touches_nothing(server, call, data):
    call()
    server.requests.clear()
    before = {path: path.stat().st_mtime_ns for path in data.iterdir()}
    code, output = call("--force")
    assert code == 0 and server.requests == []
    assert before == {path: path.stat().st_mtime_ns for path in data.iterdir()}
    (line,) = [line for line in output.splitlines() if "right already" in line]
    assert all(name in line for name in CONTENTS)


def test_an_interrupted_download_goes_on_where_it_ended(server, call, data):
    server.cut = 100_000
    code, output = call()
    assert code == 2 and "100,000 of 175,000 bytes" in output and "sonnets.txt.part" in output
    assert (data / "sonnets.txt.part").stat().st_size == 100_000
    assert not (data / "sonnets.txt").exists()
    assert (data / "quora-dev.csv").exists(), "the other files came all the same"
    server.cut = None
    server.requests.clear()
    assert call()[0] == 0
    assert server.requests == [("/data/sonnets.txt", "bytes=100000-")]
    assert (data / "sonnets.txt").read_bytes() == SONNETS
    assert not (data / "sonnets.txt.part").exists()


def test_a_server_without_ranges_makes_it_start_again(server, call, data):
    (data / "sonnets.txt.part").write_bytes(b"x" * 70_000)
    server.knows_ranges = False
    assert call()[0] == 0
    assert ("/data/sonnets.txt", "bytes=70000-") in server.requests
    assert (data / "sonnets.txt").read_bytes() == SONNETS


def test_a_part_that_is_whole_is_only_checked(server, call, data):
    (data / "sonnets.txt.part").write_bytes(SONNETS)
    assert call()[0] == 0
    assert "/data/sonnets.txt" not in paths(server)
    assert (data / "sonnets.txt").read_bytes() == SONNETS


def test_a_part_that_is_too_long_is_thrown_away(server, call, data):
    (data / "sonnets.txt.part").write_bytes(SONNETS + b"more")
    assert call()[0] == 0
    assert ("/data/sonnets.txt", None) in server.requests
    assert (data / "sonnets.txt").read_bytes() == SONNETS


@pytest.mark.parametrize("damaged", [b"<html>sign in</html>" * 9000, SONNETS[:-1] + b"!"])
def test_a_damaged_file_is_refused_and_its_part_deleted(server, call, data, blobs, damaged):
    server.files["sonnets.txt"] = damaged
    code, output = call()
    assert code == 2 and "sonnets.txt.part is deleted" in output
    assert f"expected 175,000 bytes with git hash {blobs['sonnets.txt'].sha}" in output
    assert not list(data.glob("sonnets.txt*"))
    assert (data / "ids-sst-dev.csv").exists() and (data / "quora-train.csv").exists()


def test_a_damaged_part_is_deleted_and_the_next_call_starts_afresh(server, call, data):
    (data / "sonnets.txt.part").write_bytes(b"x" * 70_000)
    assert call()[0] == 2 and not (data / "sonnets.txt.part").exists()
    assert call()[0] == 0 and (data / "sonnets.txt").read_bytes() == SONNETS


def test_a_wrong_file_is_named_and_kept_and_only_force_replaces_it(server, call, data, blobs):
    (data / "sonnets.txt").write_bytes(b"my own notes")
    code, output = call()
    assert code == 2 and "--force" in output
    assert f"found 12 bytes with git hash {blob(b'my own notes').sha}" in output
    assert f"expected 175,000 bytes with git hash {blobs['sonnets.txt'].sha}" in output
    assert (data / "sonnets.txt").read_bytes() == b"my own notes"
    assert (data / "quora-dev.csv").exists(), "the other files came all the same"
    assert call("--force")[0] == 0
    assert (data / "sonnets.txt").read_bytes() == SONNETS


def test_a_file_that_the_repository_lacks_is_named_and_stops_nothing(server, call, data):
    del server.files["TRUE_sonnets_held_out_dev.txt"]
    server.listing = [entry for entry in server.listing if entry["name"] != "quora-train.csv"]
    code, output = call()
    assert code == 0, "scores of dev sonnets and Quora are extras"
    assert "TRUE_sonnets_held_out_dev.txt: the server has no such file" in output
    assert "quora-train.csv not brought" in output
    assert (data / "quora-dev.csv").exists() and (data / "sonnets.txt").exists()
    del server.files["ids-sst-dev.csv"]
    (data / "ids-sst-dev.csv").unlink()
    assert call()[0] == 2, "part 1 needs its data"


def test_a_listing_that_is_none_stops_only_quora(server, call, data):
    server.listing = {"message": "API rate limit exceeded"}
    code, output = call()
    assert code == 2 and "rate limit" in output
    assert (data / "sonnets.txt").exists() and not (data / "quora-dev.csv").exists()


def test_the_smaller_quora_split_is_right_without_network_but_only_whole(
    server, call, data, blobs, monkeypatch
):
    monkeypatch.setattr(download, "SMALL_QUORA", {name: blobs[name] for name in QUORA})
    server.pause = 0  # seconds after each byte
    server.listing = [{"name": n, "sha": "0" * 40, "size": 1} for n in QUORA]
    write_all(data)
    assert call()[0] == 0 and server.requests == []
    (data / "quora-dev.csv").unlink()
    code, output = call()
    assert code == 2 and "quora-train.csv: found 720 bytes" in output
    assert (data / "quora-train.csv").read_bytes() == CONTENTS["quora-train.csv"]


def test_force_replaces_the_smaller_quora_split_by_the_course_s(
    server, call, data, blobs, monkeypatch
):
    small = {name: b"\tid\tsentence1\tsentence2\n" for name in QUORA}
    monkeypatch.setattr(download, "SMALL_QUORA", {n: blob(small[n]) for n in QUORA})
    write_all(data)
    for name in QUORA:
        (data / name).write_bytes(small[name])
    assert call()[0] == 0 and server.requests == []
    assert call("--force")[0] == 0
    assert {name: (data / name).read_bytes() for name in CONTENTS} == CONTENTS


def test_without_network_the_ways_out_are_named_on_one_line(server, call, data, monkeypatch):
    monkeypatch.setattr(download, "RAW_URL", "http://127.0.0.1:9/data")
    code, output = call()
    assert code == 2 and len(output.strip().splitlines()) == 1
    for word in ("127.0.0.1:9", "connect", "--from DIR", "--data_dir data/sample"):
        assert word in output
    assert list(data.iterdir()) == []


def test_without_network_unknown_quora_files_are_kept_and_said_to_be_unchecked(
    server, call, data, monkeypatch
):
    monkeypatch.setattr(download, "LIST_URL", "http://127.0.0.1:9/list")
    write_all(data)
    code, output = call()
    assert code == 0 and output.count("kept unchecked") == 3
    assert call("--force")[0] == 2


def test_from_a_folder_the_files_are_copied_without_any_request(server, call, data, tmp_path):
    code, output = call("--from", write_all(tmp_path / "usb"))
    assert code == 0 and server.requests == []
    assert {path.name: path.read_bytes() for path in data.iterdir()} == CONTENTS
    assert output.count("its hash is not a known one, taken as it is") == len(QUORA)
    assert "brought" not in call("--from", tmp_path / "usb")[1]


def test_from_a_folder_that_lacks_files_the_others_are_copied(server, call, data, tmp_path):
    code, output = call("--from", write_all(tmp_path / "usb", "quora-dev.csv"))
    assert code == 0 and f"{tmp_path}/usb/quora-dev.csv: no such file" in output
    (data / "sonnets.txt").unlink()
    (tmp_path / "usb" / "sonnets.txt").unlink()
    code, output = call("--from", tmp_path / "usb")
    assert code == 2 and f"{tmp_path}/usb/sonnets.txt: no such file" in output
    assert len(list(data.iterdir())) == len(CONTENTS) - 2


def test_from_a_folder_a_file_of_the_wrong_hash_is_refused(server, call, data, tmp_path):
    (write_all(tmp_path / "usb") / "sonnets.txt").write_bytes(SONNETS.replace(b"\n", b"\r\n"))
    code, output = call("--from", tmp_path / "usb")
    assert code == 2 and f"{tmp_path}/usb/sonnets.txt: found 200,000 bytes" in output
    assert not list(data.glob("*sonnets.txt*"))
    assert (data / "quora-dev.csv").exists()


def test_a_folder_that_does_not_exist_is_named(server, call, tmp_path):
    code, output = call("--from", tmp_path / "nowhere")
    assert code == 2 and f"{tmp_path}/nowhere: no such folder" in output


def test_the_program_starts_anywhere_and_loads_no_torch(tmp_path):
    program = ROOT / "data" / "download.py"
    code = (
        f"import runpy, sys; sys.argv = ['download.py', '--help']\n"
        f"try: runpy.run_path({str(program)!r}, run_name='__main__')\n"
        f"finally: assert 'torch' not in sys.modules and 'tqdm' not in sys.modules"
    )
    where = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": ""}}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **where)
    assert run.returncode == 0, run.stderr
    assert "--from" in run.stdout


@pytest.mark.skipif(not COURSE.is_dir(), reason="needs the course's files in ../shared/data")
def test_the_course_s_files_have_the_pinned_hashes(call, data):
    code, output = call("--from", COURSE)
    assert code == 0, output
    assert "not a known one" not in output
    pinned = {**download.FILES, **download.SMALL_QUORA}
    assert {path.name: blob_of(path) for path in data.iterdir()} == pinned
    assert "brought" not in call()[1]


def test_the_files_are_those_that_the_tasks_read():
    tasks = {"sst": SPLITS, "cfimdb": SPLITS, "paraphrase": SPLITS, "sonnet": (*SPLITS, "gold")}
    read = {data_file(task, split) for task, splits in tasks.items() for split in splits}
    assert read == set(download.NAMES)


# -- servers that mean no good -----------------------------------------------------------------


@pytest.mark.parametrize("size", [None, "12", -1, 1.5, True, 10**12, [], {}])
def test_a_listing_with_a_wrong_size_is_refused_and_not_kept(size, server, call, data):
    server.listing[0]["size"] = size
    code, said = call()
    assert code == 2 and "Traceback" not in said
    assert "expected a name, a git hash and a size" in said
    assert not list(data.glob(".listing*"))


@pytest.mark.parametrize("listing", [None, 5, "text", [None], [[]], {"message": "rate limit"}])
def test_what_is_no_listing_is_refused_and_not_kept(listing, server, call, data):
    server.listing = listing
    code, said = call()
    assert code == 2 and "is no listing of files" in said and not list(data.glob(".listing*"))


def test_a_kept_listing_that_is_damaged_is_named(server, call, data):
    path = data / download.LISTING
    path.write_text('[{"name": "quora-dev.csv", "sha": 5, "size": 3}]', encoding="utf-8")
    code, said = call()
    assert code == 2 and f"{path}: delete it" in said


def test_an_endless_listing_is_cut_off(server, call, monkeypatch):
    monkeypatch.setattr("engine.web.LARGEST_ANSWER", 1000)
    server.listing = ["x" * 5000]
    code, said = call()
    assert code == 2 and "bytes and no end, expected 1,000 at most" in said


def test_a_server_that_is_too_slow_is_left_and_the_next_call_goes_on(
    server, call, data, monkeypatch
):
    """One byte now and then keeps a connection alive for ever."""
    monkeypatch.setattr("engine.web.PATIENCE", 0.2)
    monkeypatch.setattr("engine.web.SLOWEST", 1e9)
    server.pause = 0.005
    code, said = call()
    part = data / "sonnets.txt.part"
    assert code == 2 and f"too slow, after {part.stat().st_size:,} of {len(SONNETS):,}" in said
    assert 0 < part.stat().st_size < len(SONNETS)
    server.pause = 0
    monkeypatch.setattr("engine.web.PATIENCE", 60)
    call()
    assert (data / "sonnets.txt").read_bytes() == SONNETS
