"""A report's figures against other formulas, its attention against the lesson's, and its page."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from course_files import call_main, work_in, write, write_course, write_model
from sklearn.metrics import confusion_matrix

from engine.errors import InputError
from engine.fast.gpt2 import accelerate
from engine.records import read_sonnets
from models.gpt2 import GPT2Model
from programs.report import report, statistics
from programs.report.attention import attention_weights, picture
from programs.report.charts import curves
from programs.report.comparison import compared
from programs.report.outputs import POEMS, load, poems
from programs.report.runs import read_runs

EPOCH = '{"epoch": 0, "train_loss": 1.0, "dev_acc": 0.5}\n'
HISTORY = {"config.json": '{"task": "sst"}', "metrics.jsonl": EPOCH}
HOSTILE = '<script>alert("x")</script> ]]> & </svg>'
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

# -- figures ---------------------------------------------------------------------------------------


def answers(n: int = 400, classes: int = 4):
    random = np.random.default_rng(0)
    logits = random.normal(size=(n, classes)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.where(
        random.random(n) < 0.6, logits.argmax(axis=1), random.integers(classes, size=n)
    )
    return labels, probabilities


def test_the_confusion_matrix_is_scikit_learn_s():
    labels, probabilities = answers()
    predicted = probabilities.argmax(axis=1)
    found = statistics.confusion(labels, predicted, 4)
    assert np.array_equal(found, confusion_matrix(labels, predicted, labels=range(4)))


def test_the_calibration_error_is_equation_3_row_by_row():
    labels, probabilities = answers()
    bins, found = statistics.calibration(labels, probabilities)
    gaps = {}
    for label, row in zip(labels, probabilities, strict=True):
        place = min(int(row.max() * statistics.BINS), statistics.BINS - 1)
        gaps.setdefault(place, []).append((row.argmax() == label) - row.max())
    assert found == pytest.approx(sum(abs(sum(gap)) for gap in gaps.values()) / len(labels))
    assert [b.n for b in bins] == [len(gaps[place]) for place in sorted(gaps)]
    assert all(b.low <= b.confidence <= b.high for b in bins)
    assert all(b.interval[0] <= b.accuracy <= b.interval[1] for b in bins)


def test_a_model_that_is_always_sure_and_right_is_calibrated():
    certain = np.eye(3)[[0, 1, 2, 2]]
    bins, error = statistics.calibration(np.array([0, 1, 2, 2]), certain)
    assert error == 0 and [b.n for b in bins] == [4]


def test_every_row_has_one_label_and_one_length():
    labels, probabilities = answers()
    predicted = probabilities.argmax(axis=1)
    lengths = np.random.default_rng(1).integers(3, 40, size=len(labels))
    for shares in (
        statistics.by_label(labels, predicted, "abcd"),
        statistics.by_length(lengths, predicted == labels),
        statistics.by_length(np.full(len(labels), 7), predicted == labels),
    ):
        assert sum(share.n for share in shares) == len(labels)
        assert sum(share.right for share in shares) == (predicted == labels).sum()
    names = [share.name for share in statistics.by_length(lengths, predicted == labels)]
    ends = [int(end) for name in names for end in name.split("–")]
    assert ends == sorted(ends) and ends[0] == lengths.min() and ends[-1] == lengths.max()


def test_the_surest_mistakes_come_first_and_are_mistakes():
    labels, probabilities = answers()
    rows = statistics.most_confidently_wrong(labels, probabilities, 20)
    confidence = probabilities.max(axis=1)[rows]
    assert len(rows) == 20 and (np.diff(confidence) <= 0).all()
    assert (probabilities.argmax(axis=1)[rows] != labels[rows]).all()


def test_a_chart_takes_its_colours_from_the_page_and_needs_no_other_file():
    history = pd.DataFrame({"epoch": [0], "train_loss": [1.0], "dev_loss": [2.0], "dev_acc": [0.5]})
    loss, metric = curves("x", history, "dev_acc", best_epoch=0)
    for chart in (loss, metric):
        assert "var(--accent)" in chart and "#030303" not in chart
        assert "best epoch" in chart and chart.startswith("<svg")
    assert "train loss" in loss and "dev loss" in loss and "dev acc" in metric


# -- attention -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [False, True])
def test_attention_is_the_softmax_of_every_layer_and_leaves_the_model_as_it_was(fast, tmp_path):
    model = torch.nn.Module()
    model.gpt = GPT2Model.from_pretrained(str(write_model(tmp_path / "m"))).eval()
    model.reads_last_token_only = True
    if fast:
        accelerate(model)
    gpt, tokens = model.gpt, [3, 5, 7, 9, 11, 13]
    before = gpt(torch.tensor([tokens]))["last_token"]
    weights = attention_weights(gpt, tokens)
    assert weights.shape == (2, 4, 6, 6)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, 6))
    assert torch.equal(weights, weights.tril())
    layer = gpt.gpt_layers[0]
    attention = layer.self_attention
    normalized = layer.attention_layer_norm(gpt.embed(torch.tensor([tokens])))
    query, key = (attention.transform(normalized, m) for m in (attention.query, attention.key))
    scores = query @ key.mT / query.shape[-1] ** 0.5
    hidden = torch.ones(6, 6, dtype=torch.bool).triu(1)
    expected = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
    torch.testing.assert_close(weights[0], expected[0], atol=1e-5, rtol=1e-4)
    assert torch.equal(gpt(torch.tensor([tokens]))["last_token"], before)


def test_a_picture_is_a_png_with_a_pixel_a_weight():
    import base64
    import io

    from matplotlib.image import imread

    uri = picture(np.array([[1.0, 0.0], [0.25, 0.75]]))
    pixels = imread(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))
    np.testing.assert_allclose(pixels[..., 3], [[1, 0], [0.5, 0.866]], atol=0.01)


# -- the page --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of every task, one with a hostile text in its dev rows, one of LoRA, two seeds."""
    folder = tmp_path_factory.mktemp("report")
    write_course(folder / "data", rows=20)
    dev = folder / "data/ids-sst-dev.csv"
    lines = dev.read_text(encoding="utf-8").splitlines()
    cells = lines[1].split("\t")
    cells[-2] = f"good {HOSTILE}"
    write(dev, "\n".join([lines[0], "\t".join(cells), *lines[2:]]) + "\n")
    write_model(folder / "model")
    flags = ["--data_dir", "data", "--model_size", "model", "--epochs", "1"]
    full = ["--fine-tune-mode", "full-model"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        work_in(monkeypatch, folder)
        sst = ["classifier", "--dataset", "sst", *flags]
        for seed in ("1", "2"):
            call_main(monkeypatch, *sst, *full, "--seed", seed, "--runs_dir", "runs/full")
        call_main(monkeypatch, *sst, "--runs_dir", "runs/frozen")
        lora = ["--extension", "lora:rank=2", "--runs_dir", "runs/lora"]
        call_main(monkeypatch, *sst, *full, *lora)
        call_main(monkeypatch, "paraphrase_detection", *flags, "--runs_dir", "runs/pairs")
        short = ["--max_new_tokens", "20", "--runs_dir", "runs/sonnets"]
        call_main(monkeypatch, "sonnet_generation", *flags, *short)
    return folder


def page_of(monkeypatch, folder, *words) -> str:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["report", *map(str, words), "--out", "page.html"])
    report.main()
    return Path("page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["frozen", "lora", "pairs", "sonnets"])
def test_one_run_is_shown_whole(name, runs, monkeypatch, capsys):
    [run] = (runs / "runs" / name).iterdir()
    page = page_of(monkeypatch, runs, run)
    assert len(page) < 3e6 and "next: open page.html" in capsys.readouterr().out
    assert page.count("<img") == 2 * 4 and "How it learned" in page
    assert ("What it writes" if name == "sonnets" else "Surest mistakes") in page
    assert "a test" in page and "python " in page  # commit and command
    assert not re.search(r'(src|href)="(?!data:|#)', page)


@pytest.mark.parametrize("there", [True, False])
def test_the_sonnets_are_those_that_the_run_wrote(there, runs, monkeypatch):
    monkeypatch.chdir(runs)
    path = Path("predictions/generated_sonnets_dev.txt")
    text = path.read_text(encoding="utf-8")
    of_file = [(sonnet.sent_id, sonnet.text) for sonnet in read_sonnets(path)]
    [run] = read_runs((runs / "runs/sonnets").iterdir())
    if not there:  # another run's
        write(path, text.replace("\n\n", "\nanother\n\n"))
    shown = [(number, own) for number, own, _ in poems(run, load(run))]
    write(path, text)
    assert shown == of_file[:POEMS] and len(of_file) > POEMS


def test_text_from_data_is_escaped_wherever_it_stands(runs, monkeypatch):
    page = page_of(monkeypatch, runs, *(runs / "runs/frozen").iterdir(), "--sentence", HOSTILE)
    assert "<script" not in page and "&lt;script&gt;" in page


def test_seeds_are_one_method_and_methods_are_compared(runs, monkeypatch):
    found = [*(runs / "runs/full").iterdir(), *(runs / "runs/lora").iterdir()]
    monkeypatch.chdir(runs)
    groups = compared(read_runs(found))
    assert sorted(len(group.runs) for group in groups) == [1, 2]
    [two] = [group for group in groups if len(group.runs) == 2]
    assert two.deviation == pytest.approx(np.std(two.figures, ddof=1))
    assert any("lora:rank=2" in group.name for group in groups)
    page = page_of(monkeypatch, runs, *found)
    assert "Which is better" in page and "McNemar" in page and page.count("<section id=") == 3


def test_a_run_without_its_best_epoch_says_so(runs, monkeypatch, tmp_path):
    [run] = (runs / "runs/frozen").iterdir()
    shutil.copytree(run, tmp_path / "lone")
    (tmp_path / "lone/best.safetensors").unlink()
    page = page_of(monkeypatch, runs, tmp_path / "lone")
    assert "There is no best.safetensors" in page and "How it learned" in page


def test_a_pre_training_run_shows_its_curves(monkeypatch, tmp_path):
    run = tmp_path / "pretrain-x"
    write(run / "config.json", json.dumps({"task": "pretrain", "size": "gpt2-mini", "seed": 1}))
    record = {"epoch": 0, "train_loss": 5.0, "val_loss": 4.5, "seconds": 3.0}
    write(run / "metrics.jsonl", json.dumps(record) + "\n")
    page = page_of(monkeypatch, tmp_path, run)
    assert "val loss" in page and "has no task" in page and "not recorded" in page


@pytest.mark.parametrize(
    "made, said",
    [
        ({}, "no config.json: expected the folder of a run"),
        ({"config.json": "{"}, "expected the flags of a run"),
        ({"config.json": '{"task": "chess"}'}, "task 'chess': expected one of sst"),
        ({"config.json": '{"task": "sst"}'}, "no epoch of this run is finished yet"),
        ({"config.json": '{"task": "sst"}', "metrics.jsonl": "{}\n"}, "metrics.jsonl, line 1"),
        (HISTORY | {"metrics.jsonl": '{"epoch": 0}\n'}, "no dev_acc"),
        (HISTORY | {"metrics.jsonl": b'{"epoch": 0}\n\xff\n'}, "metrics.jsonl, line 1: no dev_acc"),
        (HISTORY | {"metrics.jsonl": b"\xff\n"}, "metrics.jsonl, line 1: '"),
        (HISTORY | {"metrics.jsonl": EPOCH.replace("0.5", "NaN")}, "line 1: dev_acc nan: expected"),
        (HISTORY | {"metrics.jsonl": EPOCH.replace("0.5", '"x"')}, "line 1: dev_acc 'x': expected"),
        (HISTORY | {"metrics.jsonl": EPOCH.replace("1.0", "[]")}, "line 1: train_loss []: "),
        (HISTORY | {"resources.json": '{"peak_mb": 3'}, "resources.json: '{"),
        (HISTORY | {"resources.json": "[1]"}, "resources.json: '[1]': expected what training took"),
        (HISTORY | {"resources.json": '{"peak_mb": "3"}'}, "resources.json: peak_mb '3': expected"),
        ({"config.json": b"\xff"}, "config.json: "),
    ],
)
def test_what_is_no_run_is_refused(made, said, tmp_path, monkeypatch, refused):
    (tmp_path / "run").mkdir()
    for name, data in made.items():
        (tmp_path / "run" / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    with refused(said):
        page_of(monkeypatch, tmp_path, "run")
    assert not Path("page.html").exists()


def test_a_run_without_a_finished_epoch_is_left_out_of_a_comparison(
    runs, monkeypatch, tmp_path, capsys, refused
):
    found = [*(runs / "runs/full").iterdir()]
    shutil.copytree(found[0], tmp_path / "young")
    (tmp_path / "young/metrics.jsonl").unlink()
    monkeypatch.chdir(runs)
    assert [run.path for run in read_runs([found[0], tmp_path / "young", found[1]])] == found
    assert "left out: " in (said := capsys.readouterr().err) and "young/metrics.jsonl: no" in said
    with pytest.raises(InputError, match="no epoch of this run is finished yet"):
        read_runs([tmp_path / "young"])


def test_a_run_given_twice_is_refused(runs, monkeypatch, refused):
    [run] = (runs / "runs/frozen").iterdir()
    with refused("a run is given twice"):
        page_of(monkeypatch, runs, run, run)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width, scheme", [(390, "dark"), (1280, "light")])
def test_the_page_fits_a_phone_and_a_laptop_and_says_nothing_to_the_console(
    width, scheme, runs, monkeypatch
):
    sync_api = pytest.importorskip("playwright.sync_api")
    [run], [sonnets] = ((runs / "runs" / name).iterdir() for name in ("frozen", "sonnets"))
    page_of(monkeypatch, runs, run, sonnets, "--sentence", f"good {HOSTILE}")
    said = []
    with sync_api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = chromium.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme
        )
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.goto((runs / "page.html").as_uri())
        page.evaluate("document.querySelectorAll('details').forEach((d) => d.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.scripts.length") == 0
        assert len(page.pdf()) > 10_000
        chromium.close()
    assert said == []
