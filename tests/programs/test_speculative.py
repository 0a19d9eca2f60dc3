"""Speculative decoding: the target's own distribution, whatever the draft is."""

import sys
from pathlib import Path

import pytest
import torch
from course_files import work_in, write_course, write_model
from scipy.stats import chisquare
from task_checkpoints import build, save

from engine.generation import generate
from programs.decoding import decoding
from programs.decoding.named import Speculative
from programs.decoding.speculative import distribution, verify
from programs.decoding.strategies import Job

NEVER = 399  # an end token outside the vocabulary
IDS = torch.tensor([[7, 11, 260, 13, 40], [300, 9, 9, 0, 0], [5, 0, 0, 0, 0]])
MASK = (IDS != 0).long()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    write_course(folder / "data")
    write_model(folder / "model", positions=96)
    write_model(folder / "other", vocab_size=350, positions=96)
    write_model(folder / "short", positions=48)
    with pytest.MonkeyPatch.context() as monkeypatch:
        work_in(monkeypatch, folder)
        for name in ("model", "other", "short"):
            save(f"{name}.safetensors", "sonnet", *build("sonnet", name))
        save("sst.safetensors", "sst", *build("sst", "model"))
        window = ["sliding_window:window=8"]
        save("window.safetensors", "sonnet", *build("sonnet", "model", window))
    return folder


@pytest.fixture(scope="module")
def models(place):
    """(target, draft): alike, so that some drafted tokens are accepted and others not."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        work_in(monkeypatch, place)
        target, draft = (build("sonnet", "model")[0].eval() for _ in range(2))
    torch.manual_seed(3)
    with torch.no_grad():
        for model, much in ((target, 0.3), (draft, 0.05)):
            for parameter in model.gpt.gpt_layers.parameters():
                parameter.add_(much * torch.randn_like(parameter))
        draft.gpt.load_state_dict(
            {
                name: tensor + 0.1 * torch.randn_like(tensor)
                for name, tensor in target.gpt.state_dict().items()
            }
        )
    return target, draft


def continued(target, draft, *, most=12, end=NEVER, seed=0, **options):
    """(texts, tally) of the three prompts."""

    class To(Job):
        pass

    To.end = end
    strategy = Speculative(**options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        texts = strategy(To(target, IDS, MASK, most=most, generator=generator, draft=draft))
    return [text.tolist() for text in texts], strategy.tally


# -- algorithm 1 -----------------------------------------------------------------------------------


def test_the_first_token_and_the_one_after_it_have_the_target_s_distribution():
    """A chi-square test on a vocabulary of four: tokens 1 and 2 of 40,000 draws, γ = 2."""
    rows, random = 40_000, torch.Generator().manual_seed(0)
    p = [[0.4, 0.3, 0.2, 0.1], [0.1, 0.0, 0.6, 0.3], [0.25, 0.25, 0.25, 0.25]]
    q = [[0.1, 0.2, 0.3, 0.4], [0.5, 0.2, 0.2, 0.1]]
    p, q = (torch.tensor(x, dtype=torch.float64) for x in (p, q))
    drafted = torch.stack(
        [torch.multinomial(x.expand(rows, -1), 1, generator=random)[:, 0] for x in q], 1
    )
    many = (x.expand(rows, *x.shape) for x in (p, q))
    accepted, following = verify(*many, drafted, random)
    texts = torch.cat([drafted, torch.zeros(rows, 1, dtype=torch.long)], dim=1)
    texts.scatter_(1, accepted[:, None], following[:, None])
    first = texts[:, 0].bincount(minlength=4)
    assert chisquare(first, (rows * p[0]).numpy()).pvalue > 0.01
    second = texts[accepted >= 1, 1].bincount(minlength=4)
    assert second[1] == 0  # p is 0 there
    kept = [0, 2, 3]
    assert chisquare(second[kept], (second.sum() * p[1, kept]).numpy()).pvalue > 0.01
    third = texts[accepted == 2, 2].bincount(minlength=4)
    assert chisquare(third, (third.sum() * p[2]).numpy()).pvalue > 0.01
    share = torch.minimum(p[0], q[0]).sum()  # Leviathan et al. 2023, theorem 3.5
    assert float((accepted >= 1).double().mean()) == pytest.approx(float(share), abs=0.01)
    assert chisquare(first, (rows * q[0]).numpy()).pvalue < 1e-6  # of the draft it is not


def test_where_the_draft_is_the_target_everything_is_accepted():
    p = torch.softmax(3 * torch.randn(50, 4, 7), dim=-1)
    drafted = torch.stack([torch.multinomial(p[:, j], 1)[:, 0] for j in range(3)], dim=1)
    accepted, _ = verify(p, p[:, :3], drafted)
    assert accepted.tolist() == [3] * 50


def test_the_distribution_is_that_of_sampling_and_greedy_is_certain():
    logits = torch.tensor([[[2.0, 1.0, 0.0, -1.0]]])
    found = distribution(logits, temperature=2.0, top_k=3, top_p=1.0)
    expected = torch.tensor([1.0, 0.5, 0.0]).softmax(dim=-1)
    torch.testing.assert_close(found[0, 0, :3], expected)
    assert found[0, 0, 3] == 0
    assert distribution(logits, temperature=0, top_k=0, top_p=0.9)[0, 0].tolist() == [1, 0, 0, 0]


# -- texts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1, 4, 20])
def test_greedy_texts_are_those_of_plain_greedy_decoding(models, gamma):
    target, draft = models
    options = {"max_new_tokens": 12, "temperature": 0, "end_token": NEVER}
    expected = [text.tolist() for text in generate(target.gpt, IDS, MASK, **options)]
    found, tally = continued(target, draft, gamma=gamma, temperature=0.0)
    assert found == expected
    assert 0 < tally.accepted < tally.proposed and tally.added == 36
    end = expected[0][9]
    options["end_token"] = end
    expected = [text.tolist() for text in generate(target.gpt, IDS, MASK, **options)]
    assert continued(target, draft, gamma=gamma, temperature=0.0, end=end)[0] == expected


def test_a_draft_that_is_the_target_saves_passes_and_loses_no_token(models):
    target, _ = models
    texts, tally = continued(target, target, most=15, gamma=4)
    assert tally.accepted == tally.proposed == 36 and tally.passes == 3  # 5 tokens a pass
    assert [len(text) for text in texts] == [20, 18, 16]


def test_sampled_texts_end_where_they_may_and_the_seed_decides(models):
    target, draft = models
    texts, tally = continued(target, draft, most=200, seed=1)
    assert [len(text) for text in texts] == [96, 96, 96]  # positions
    assert texts == continued(target, draft, most=200, seed=1)[0]
    assert texts != continued(target, draft, most=200, seed=2)[0]
    assert 0 < tally.accepted < tally.proposed


def test_what_is_forgotten_leaves_no_trace(models):
    """Each token is drawn from what the target says of the text before it: top_k 1 is greedy."""
    target, draft = models
    texts, _ = continued(target, draft, most=30, temperature=3.0, top_k=1, top_p=1.0)
    for text, given in zip(texts, MASK.sum(dim=1).tolist(), strict=True):
        ids = torch.tensor([text])
        with torch.no_grad():
            logits = target(ids, torch.ones_like(ids))[0]
        assert logits.argmax(dim=-1)[given - 1 : -1].tolist() == text[given:]


# -- the program -----------------------------------------------------------------------------------

CALL = ["--checkpoint", "model.safetensors", "--limit", "2", "--max_new_tokens", "8"]


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    work_in(monkeypatch, tmp_path)
    for path in place.iterdir():
        Path(path.name).symlink_to(path)


def test_the_program_says_how_many_tokens_were_accepted(here, monkeypatch, capsys):
    words = [*CALL, "--strategy", "speculative:gamma=3", "--draft", "model.safetensors"]
    monkeypatch.setattr(sys, "argv", ["decoding", *words])
    decoding.main()
    said = capsys.readouterr().out
    assert "speculative:gamma=3: " in said and "drafted tokens are accepted (1.000)" in said
    assert "forward passes of the target" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--strategy", "speculative"], "expected both, or none"),
        (["--draft", "model.safetensors"], "expected both, or none"),
        (["--strategy", "speculative", "--draft", "none"], "none: no such checkpoint"),
        (["--strategy", "speculative", "--draft", "sst.safetensors"], "a checkpoint of task 'sst'"),
        (["--strategy", "speculative", "--draft", "other.safetensors"], "its tokenizer, of"),
        (["--strategy", "speculative", "--draft", "short.safetensors"], "it has 48 positions"),
        (["--strategy", "speculative:gamma=0", "--draft", "x"], "gamma=0, expected"),
        (
            ["--checkpoint", "window.safetensors", "--strategy", "speculative", "--draft",
             "model.safetensors"],
            "the model must have dense attention",
        ),
    ],
)  # fmt: skip
def test_calls_that_make_no_sense_are_refused(words, said, here, monkeypatch, refused):
    monkeypatch.setattr(sys, "argv", ["decoding", *CALL, *words])
    with refused(said):
        decoding.main()
