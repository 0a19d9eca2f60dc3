"""Ensembles: of one the member, of any order the same, fitted weights the best that there are."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from course_files import call_main, predicted, work_in, write, write_course, write_model
from tiny_run import run_path

import paraphrase_detection
from engine.hub import load_tokenizer
from engine.records import read_pairs, read_sentiment
from programs.ensemble import ensemble, members
from programs.ensemble.weights import (
    POOLS,
    TOLERANCE,
    cross_fitted,
    fit_weights,
    gap,
    loss_and_gradient,
    mean_loss,
)
from programs.tasks import TASKS

# -- pools and weights -----------------------------------------------------------------------------


def answers(members: int, rows: int, *, seed: int = 0, classes: int = 3):
    """Log-probabilities (m, n, c), the later members being the better ones, and labels."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=random)
    logits = torch.randn(members, rows, classes, generator=random, dtype=torch.float64) * 2
    strength = torch.arange(1.0, members + 1, dtype=torch.float64)[:, None, None]
    logits += strength * torch.nn.functional.one_hot(labels, classes)
    return logits.log_softmax(dim=-1), labels


def loss_of(log_probs, labels, weights, pool: str) -> float:
    return float(mean_loss(POOLS[pool](log_probs, torch.as_tensor(weights)), labels))


def test_the_pools_are_the_weighted_geometric_and_the_weighted_mean():
    log_probs, _ = answers(3, 5)
    p, w = log_probs.exp().numpy(), np.array([0.2, 0.3, 0.5])
    geometric = np.prod(p ** w[:, None, None], axis=0)
    geometric /= geometric.sum(axis=-1, keepdims=True)
    mean = (w[:, None, None] * p).sum(axis=0)
    for pool, expected in (("log", geometric), ("linear", mean)):
        found = POOLS[pool](log_probs, torch.tensor(w)).exp().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_logarithmic_pool_averages_logits():
    logits = torch.randn(2, 6, 4, dtype=torch.float64)
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    found = POOLS["log"](logits.log_softmax(dim=-1), half)
    torch.testing.assert_close(found, logits.mean(dim=0).log_softmax(dim=-1))


@pytest.mark.parametrize("pool", POOLS)
def test_a_member_that_weighs_nothing_changes_nothing_and_has_a_finite_gradient(pool):
    log_probs, labels = answers(2, 50)
    log_probs[0] *= 30  # sure of itself, and often wrong
    weights = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(POOLS[pool](log_probs, weights), log_probs[1])
    assert loss_and_gradient(log_probs, labels, weights, pool)[1].isfinite().all()


def test_the_gradient_is_the_formula_s():
    log_probs, labels = answers(3, 20)
    w = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    said = log_probs.gather(2, labels.expand(3, 20)[..., None])[..., 0]  # log p_m(y_i|x_i)
    mixed = POOLS["linear"](log_probs, w).gather(1, labels[:, None])[:, 0]
    _, linear = loss_and_gradient(log_probs, labels, w, "linear")
    torch.testing.assert_close(linear, -(said - mixed).exp().mean(dim=1))
    p = POOLS["log"](log_probs, w).exp()
    _, log = loss_and_gradient(log_probs, labels, w, "log")
    torch.testing.assert_close(log, ((p * log_probs).sum(dim=-1) - said).mean(dim=1))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pool", POOLS)
def test_fitted_weights_are_the_best_on_a_fine_grid(pool, seed):
    log_probs, labels = answers(3, 60, seed=seed)
    log_probs[0] = 0.5 * log_probs[2] + 0.5 * log_probs[0]  # two that are alike
    log_probs = log_probs.log_softmax(dim=-1)
    weights = fit_weights(log_probs, labels, pool)
    assert weights.min() >= 0 and float(weights.sum()) == pytest.approx(1)
    steps = 25
    grid = [
        loss_of(log_probs, labels, np.array([i, j, steps - i - j]) / steps, pool)
        for i in range(steps + 1)
        for j in range(steps + 1 - i)
    ]
    assert loss_of(log_probs, labels, weights, pool) <= min(grid) + TOLERANCE


@pytest.mark.parametrize("pool", POOLS)
def test_fitted_weights_are_scipy_s(pool):
    optimize = pytest.importorskip("scipy.optimize")
    log_probs, labels = answers(4, 200, seed=5)
    found = optimize.minimize(
        lambda w: loss_of(log_probs, labels, w, pool),
        np.full(4, 0.25),
        bounds=[(1e-9, 1)] * 4,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-12},
    )
    weights = fit_weights(log_probs, labels, pool)
    assert loss_of(log_probs, labels, weights, pool) <= found.fun + TOLERANCE
    np.testing.assert_allclose(weights, found.x, atol=0.02)


@pytest.mark.parametrize("pool", POOLS)
def test_fitted_weights_beat_or_equal_uniform_ones_and_every_member(pool):
    for seed in range(5):
        log_probs, labels = answers(3, 30, seed=seed)
        best = loss_of(log_probs, labels, fit_weights(log_probs, labels, pool), pool)
        others = [np.full(3, 1 / 3), *np.eye(3)]
        assert best <= min(loss_of(log_probs, labels, w, pool) for w in others) + TOLERANCE


@pytest.mark.parametrize("pool", POOLS)
def test_the_loss_is_convex_and_the_gap_bounds_what_is_missing(pool):
    log_probs, labels = answers(4, 40, seed=2)
    best = loss_of(log_probs, labels, fit_weights(log_probs, labels, pool), pool)
    random = np.random.default_rng(0)
    for one, other in random.dirichlet(np.ones(4), size=(20, 2)):
        ends = [loss_of(log_probs, labels, w, pool) for w in (one, other)]
        assert loss_of(log_probs, labels, (one + other) / 2, pool) <= sum(ends) / 2
        loss, gradient = loss_and_gradient(log_probs, labels, torch.tensor(one), pool)
        assert loss - best <= gap(torch.tensor(one), gradient) + 1e-12


def test_the_weights_of_a_mixture_are_found_again():
    """Labels that are drawn from 0.7 p_1 + 0.3 p_2."""
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 20_000, 3, generator=random, dtype=torch.float64)
    log_probs = logits.log_softmax(dim=-1)
    mixture = 0.7 * log_probs[0].exp() + 0.3 * log_probs[1].exp()
    labels = torch.multinomial(mixture, 1, generator=random)[:, 0]
    weights = fit_weights(log_probs, labels, "linear")
    np.testing.assert_allclose(weights, [0.7, 0.3], atol=0.02)


@pytest.mark.parametrize("pool", POOLS)
def test_an_ensemble_of_one_or_of_equals_is_the_member(pool):
    log_probs, labels = answers(1, 40)
    assert fit_weights(log_probs, labels, pool).tolist() == [1.0]
    one = POOLS[pool](log_probs, torch.ones(1, dtype=torch.float64))
    torch.testing.assert_close(one, log_probs[0], rtol=1e-13, atol=1e-13)
    copies = log_probs.expand(3, -1, -1)
    weights = fit_weights(copies, labels, pool)
    torch.testing.assert_close(POOLS[pool](copies, weights), log_probs[0])


@pytest.mark.parametrize("pool", POOLS)
def test_members_in_another_order_get_the_same_weights(pool):
    log_probs, labels = answers(4, 50, seed=3)
    order = [2, 0, 3, 1]
    weights = fit_weights(log_probs, labels, pool)
    torch.testing.assert_close(fit_weights(log_probs[order], labels, pool), weights[order])


def test_cross_fitted_rows_did_not_choose_their_weights():
    log_probs, labels = answers(3, 41, seed=4)
    found = cross_fitted(log_probs, labels, "log")
    changed = labels.clone()
    changed[::2] = (labels[::2] + 1) % 3
    again = cross_fitted(log_probs, changed, "log")
    assert torch.equal(found[::2], again[::2]) and not torch.equal(found[1::2], again[1::2])


# -- programs --------------------------------------------------------------------------------------

TRAINING = {
    "sst": ["classifier", "--dataset", "sst", "--fine-tune-mode", "full-model"],
    "paraphrase": ["paraphrase_detection"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data, and short runs: sst/1 and sst/2 are seeds, sst/small is another size, sst/lora LoRA."""
    folder = tmp_path_factory.mktemp("place")
    write_course(folder / "data", rows=60)
    write_model(folder / "model")
    write_model(folder / "small", hidden_size=16, vocab_size=350, seed=1)
    variants = {"1": ["--seed", "1"], "2": ["--seed", "2"]}
    others = {"small": ["--model_size", "small"], "lora": ["--extension", "lora:rank=2"]}
    with pytest.MonkeyPatch.context() as monkeypatch:
        work_in(monkeypatch, folder)
        for task, words in TRAINING.items():
            for name, flags in (variants | (others if task == "sst" else {})).items():
                common = ["--data_dir", "data", "--model_size", "model", "--epochs", "2"]
                where = ["--runs_dir", f"{task}/{name}", "--lr", "1e-2"]
                call_main(monkeypatch, *words, *common, *where, *flags)
    return folder


def best(task: str, name: str) -> str:
    return str(run_path(f"{task}/{name}", "*/best.safetensors"))


def run(monkeypatch, capsys, *words) -> str:
    monkeypatch.setattr(sys, "argv", ["ensemble", *map(str, words)])
    ensemble.main()
    return capsys.readouterr().out


def together(monkeypatch, capsys, task: str, names, *words) -> tuple[str, dict[str, bytes]]:
    """What is said, and the bytes of both prediction files."""
    members = [word for name in names for word in ("--checkpoint", best(task, name))]
    outputs = {split: Path(f"out/{split}.csv") for split in ("dev", "test")}
    for path in outputs.values():
        path.unlink(missing_ok=True)
    flags = [f"--{split}_out={path}" for split, path in outputs.items()]
    said = run(monkeypatch, capsys, "--task", task, *members, *flags, *words)
    return said, {split: path.read_bytes() for split, path in outputs.items() if path.exists()}


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize("weights", ["uniform", "fitted"])
@pytest.mark.parametrize("pool", POOLS)
def test_one_checkpoint_predicts_what_the_task_does_with_it(
    pool, weights, here, monkeypatch, capsys
):
    flags = {"sst": ["dev_out", "test_out"], "paraphrase": ["para_dev_out", "para_test_out"]}
    for task, [program, *words] in TRAINING.items():
        outputs = [word for flag in flags[task] for word in (f"--{flag}", f"alone/{flag}")]
        common = ["--data_dir", "data", "--checkpoint", best(task, "1")]
        call_main(monkeypatch, program, *words, *common, *outputs)
        options = ["--pool", pool, "--weights", weights]
        _, found = together(monkeypatch, capsys, task, ["1"], *options)
        assert found == {
            split: Path(f"alone/{flag}").read_bytes()
            for split, flag in zip(("dev", "test"), flags[task], strict=True)
        }


def test_predictions_are_those_of_the_averaged_logits(here, monkeypatch, capsys):
    """Of other sizes, tokenizers and techniques: each sees the rows as its own task shows them."""
    names = ["1", "small", "lora"]
    _, found = together(monkeypatch, capsys, "sst", names)
    records = read_sentiment("data/ids-sst-dev.csv", 5)
    total = 0
    for name in names:
        model, settings = TASKS["sst"].load(best("sst", name))
        tokenizer = load_tokenizer(settings.model_size)
        model.eval()
        with torch.no_grad():
            rows = [tokenizer(record.text, return_tensors="pt") for record in records]
            total += torch.cat([model(r["input_ids"], r["attention_mask"]) for r in rows])
    expected = {r.sent_id: str(c) for r, c in zip(records, total.argmax(-1).tolist(), strict=True)}
    assert predicted("out/dev.csv") == expected and found["test"]


@pytest.mark.parametrize("weights", ["uniform", "fitted"])
def test_the_order_of_the_checkpoints_changes_no_byte(weights, here, monkeypatch, capsys):
    words = ["--weights", weights, "--runs_dir", "order"]
    one = together(monkeypatch, capsys, "sst", ["1", "2", "small"], *words)
    other = together(monkeypatch, capsys, "sst", ["small", "2", "1"], *words)
    assert one == other


def figures(said: str, name: str) -> dict[str, float]:
    lines = said.splitlines()
    [header] = [line for line in lines if line.endswith("dev_acc")]
    [line] = [line for line in lines if line.startswith(f"{name}  ")]
    return dict(zip(header.split(), map(float, line[len(name) :].split()[-3:]), strict=True))


def test_the_report_has_each_member_s_figures(here, monkeypatch, capsys):
    said, _ = together(monkeypatch, capsys, "sst", ["1", "2", "lora"], "--weights", "fitted")
    gold = {r.sent_id: str(r.label) for r in read_sentiment("data/ids-sst-dev.csv", 5)}
    right = np.mean([gold[i] == value for i, value in predicted("out/dev.csv").items()])
    fitted = figures(said, "together, fitted weights")
    assert fitted["dev_acc"] == pytest.approx(right, abs=6e-4)
    members = [
        figures(said, best("sst", name).removesuffix("/best.safetensors"))
        for name in ("1", "2", "lora")
    ]
    assert sum(member["fitted_weight"] for member in members) == pytest.approx(1, abs=2e-3)
    uniform = figures(said, "together, uniform weights")
    assert fitted["dev_loss"] <= min(m["dev_loss"] for m in [*members, uniform]) + 1e-3
    assert "together, fitted on other rows" in said and "next: python -m programs.signif" in said
    assert "the weights know dev's labels" in said


def test_with_both_orders_the_questions_order_changes_nothing(here, monkeypatch, capsys):
    """The same pairs in files whose questions are swapped."""
    for split in ("dev", "test-student"):
        lines = Path(f"data/quora-{split}.csv").read_text(encoding="utf-8").splitlines()
        rows = [line.split("\t") for line in lines]
        swapped = [[row[0], row[1], row[3], row[2], *row[4:]] for row in rows[1:] if len(row) > 3]
        text = "\n".join("\t".join(row) for row in [rows[0], *swapped])
        write(f"swapped/quora-{split}.csv", text)
    results = [
        together(monkeypatch, capsys, "paraphrase", ["1", "2"], "--data_dir", data, *words)
        for words in (["--both_orders"], [])
        for data in ("data", "swapped")
    ]
    (said, both), (_, both_swapped), (_, plain), _ = results
    assert both == both_swapped and both.keys() == plain.keys()
    assert said.count(", swapped  ") == 2 and "incomplete rows are left out: line" in said
    rows = read_pairs("data/quora-dev.csv", labelled=True).records
    model, settings = TASKS["paraphrase"].load(best("paraphrase", "1"))
    tokenizer, wrong = load_tokenizer(settings.model_size), 0.0
    for row in rows:
        prompt = paraphrase_detection.cloze_prompt(row.sentence2, row.sentence1)
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            logits = model.eval()(inputs["input_ids"], inputs["attention_mask"])
        wrong -= float(logits.log_softmax(dim=-1)[0, row.label])
    name = best("paraphrase", "1").removesuffix("/best.safetensors")
    loss, swapped = (figures(said, key)["dev_loss"] for key in (name, f"{name}, swapped"))
    assert swapped == pytest.approx(wrong / len(rows), abs=1e-3) and swapped != loss


def test_what_a_member_said_is_not_computed_twice(here, monkeypatch, capsys):
    words = ["--runs_dir", "kept"]
    first = together(monkeypatch, capsys, "sst", ["1"], *words)
    calls, compute = [], members.log_probabilities

    def noted(model, dataset, *how):
        calls.append(len(dataset))
        return compute(model, dataset, *how)

    monkeypatch.setattr(members, "log_probabilities", noted)
    assert together(monkeypatch, capsys, "sst", ["1"], *words) == first and calls == []
    together(monkeypatch, capsys, "sst", ["1", "2"], *words)
    assert len(calls) == 2  # the other one's dev and test
    text = Path("data/ids-sst-dev.csv").read_text(encoding="utf-8").replace("The", "A")
    together(monkeypatch, capsys, "sst", ["1"], *words, "--dev", write("other-dev.csv", text))
    assert len(calls) == 3  # other rows


def test_the_test_file_can_be_left_alone(here, monkeypatch, capsys):
    words = ["--dev_only", "--test", "no-such-file.csv"]
    _, found = together(monkeypatch, capsys, "sst", ["1", "2"], *words)
    assert found.keys() == {"dev"}


# -- votes -----------------------------------------------------------------------------------------

VOTES = {  # by file: classes of rows a to d
    "one": [0, 1, 2, 4],
    "two": [3, 1, 1, 3],
    "three": [3, 0, 1, 2],
    "four": [0, 2, 0, 3],
    "five": [1, 2, 0, 2],
}


@pytest.fixture
def votes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, (name, classes) in enumerate(VOTES.items()):
        rows = [f"{sent_id}, {value} \n" for sent_id, value in zip("abcd", classes, strict=True)]
        rows = rows[i % 4 :] + rows[: i % 4]  # each file has an order of its own
        write(f"{name}.csv", "id, Predicted_Sentiment \n" + "".join(rows))


def test_the_majority_wins_and_the_first_file_settles_ties(votes, monkeypatch, capsys):
    files = [f"{name}.csv" for name in VOTES]
    said = run(monkeypatch, capsys, "--vote", *files, "--out", "vote.csv")
    assert predicted("vote.csv") == {"a": "0", "b": "1", "c": "1", "d": "3"}
    assert "5 files is in vote.csv\nnext: python -m programs.significance" in said
    run(monkeypatch, capsys, "--vote", *files[::-1], "--out", "vote.csv")
    assert predicted("vote.csv") == {"a": "0", "b": "2", "c": "0", "d": "2"}


def test_the_vote_of_one_or_of_three_equal_files_is_the_file(votes, monkeypatch, capsys):
    for name in ("copy", "again"):
        write(f"{name}.csv", Path("two.csv").read_text(encoding="utf-8"))
    for files in (["two.csv"], ["two.csv", "copy.csv", "again.csv"]):
        run(monkeypatch, capsys, "--vote", *files, "--out", "vote.csv")
        assert Path("vote.csv").read_bytes() == Path("two.csv").read_bytes()


def test_answers_by_tokens_are_written_as_tokens(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for i, answers in enumerate((("8505", "3919"), ("8505", "8505"), ("3919", "8505"))):
        rows = "".join(f"{i}, {value} \n" for i, value in zip("ab", answers, strict=True))
        write(f"{i}.csv", "id, Predicted_Is_Paraphrase \n" + rows)
    run(monkeypatch, capsys, "--vote", "0.csv", "1.csv", "2.csv", "--out", "vote.csv")
    assert predicted("vote.csv") == {"a": "8505", "b": "8505"}


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "expected either --checkpoint FILE (several times) or --vote FILES --out"),
        (["--vote", "one.csv"], "expected either"),
        (["--vote", "one.csv", "--out", "o", "--checkpoint", "x"], "expected either"),
        (["--vote", "one.csv", "one.csv", "--out", "o"], "one.csv: stands twice"),
        (["--vote", "one.csv", "none.csv", "--out", "o"], "none.csv: no such file"),
        (["--vote", "one.csv", "part.csv", "--out", "o"], "part.csv: 3 ids differ from those of"),
        (["--vote", "one.csv", "para.csv", "--out", "o"], "para.csv, line 1: found 'id, Predict"),
        (["--checkpoint", "x"], "--checkpoint: name the task, too: --task sst or"),
        (["--task", "sst", "--checkpoint", "x"], "x: no such checkpoint"),
        (["--task", "sst", "--both_orders", "--checkpoint", "x"], "no two questions to swap"),
        (["--task", "sst", "--checkpoint", "x", "--batch_size", "0"], "--batch_size 0: expected"),
    ],
)
def test_calls_that_make_no_sense_are_refused(
    words, said, votes, data, monkeypatch, capsys, refused
):
    write("part.csv", "id, Predicted_Sentiment \na, 1 \n")
    write("para.csv", "id, Predicted_Is_Paraphrase \na, 8505 \n")
    with refused(said):
        run(monkeypatch, capsys, *words, "--data_dir", data)
    assert not Path("o").exists()


def test_a_checkpoint_of_another_task_is_refused(here, monkeypatch, capsys, refused):
    words = ["--task", "sst", "--checkpoint", best("paraphrase", "1")]
    with refused("a checkpoint of task 'paraphrase', expected 'sst'"):
        run(monkeypatch, capsys, *words)
