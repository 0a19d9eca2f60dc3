"""GRPO: formulas in NumPy, trl's numbers, rewards by hand, samples and batches, whole runs."""

import json
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import task_checkpoints
import torch
from course_files import VERSES, WORKER, call_main, no_training, work_in, write, write_course
from course_files import write_model as write_gpt2
from tiny_run import run_path, same_bits

from engine.ahead import groups_of
from engine.batches import IGNORED_LABEL, split_batch
from engine.checkpoint import load_tree
from engine.errors import InputError
from engine.length_buckets import LengthBuckets
from engine.records import Record
from engine.sonnets import prompt_text
from engine.trainer import Trainer
from programs.grpo import grpo, hacking, rollouts
from programs.grpo.losses import advantages, clipped, grpo_loss, k3
from programs.grpo.rewards import Rewards, known_lines, parse_weights, rewards
from programs.grpo.rollouts import Job, RolloutLoader, draw, rollout, token_log_probs
from programs.tasks import TASKS

SOUNDS = pytest.mark.skipif(
    find_spec("pronouncing") is None, reason="pip install -r requirements-optional.txt"
)
EPSILON, BETA = 0.2, 0.04

# -- the objective -----------------------------------------------------------------------------


def made_up(b=4, t=6, spread=0.5) -> tuple[torch.Tensor, dict]:
    """log π (b, t) and a batch; row i has its tokens from 1 on, i + 1 of them."""
    random = torch.Generator().manual_seed(0)
    log_probs = -3 * torch.rand(b, t, generator=random)
    answers = torch.full((b, t), IGNORED_LABEL)
    for row in range(b):
        answers[row, 1 : 2 + row] = 7
    written = answers != IGNORED_LABEL
    old, reference = (
        (log_probs + spread * torch.randn(b, t, generator=random)) * written for _ in range(2)
    )
    batch = {
        "answers": answers,
        "advantages": torch.tensor([1.5, -0.5, 0.7, -1.7])[:b],
        "old": old,
        "reference": reference,
        "sent_ids": [str(row) for row in range(b)],
    }
    return (log_probs * written).requires_grad_(), batch


def numpy_loss(log_probs, batch) -> float:
    """Eq. 3 and 4 of the paper, token by token."""
    total = 0.0
    for row in range(len(log_probs)):
        terms = []
        for t in np.flatnonzero(batch["answers"][row].numpy() != IGNORED_LABEL):
            new, old, reference = (
                float(x[row, t].double()) for x in (log_probs, batch["old"], batch["reference"])
            )
            ratio, advantage = np.exp(new) / np.exp(old), float(batch["advantages"][row])
            kept = min(max(ratio, 1 - EPSILON), 1 + EPSILON)
            quotient = np.exp(reference) / np.exp(new)
            divergence = quotient - np.log(quotient) - 1
            terms.append(min(ratio * advantage, kept * advantage) - BETA * divergence)
        total -= np.mean(terms)
    return total


def test_the_loss_is_the_papers_formula_in_numpy():
    log_probs, batch = made_up()
    found = float(grpo_loss(log_probs, batch, epsilon=EPSILON, beta=BETA).detach())
    assert found == pytest.approx(numpy_loss(log_probs.detach(), batch), rel=1e-5)
    ratio = (log_probs - batch["old"]).exp()[batch["answers"] != IGNORED_LABEL]
    assert bool((ratio > 1 + EPSILON).any()) and bool((ratio < 1 - EPSILON).any())


# trl 0.17.0: GRPOTrainer._compute_loss with loss_type "grpo", epsilon 0.2 and beta 0.04, given the
# numbers of `trl_batch` in float64: the loss of each sample alone, and the gradient of their mean
# with respect to the log-probabilities. With "old", num_iterations is 2; "first" is one of 1, where
# trl takes the log-probabilities themselves for the old ones.
TRL_LOSSES = {
    "old": [-1.6584549273471232, 0.434741243888442, -0.8398088740192655, 2.2061761239788873],
    "first": [-1.4968667978284085, 0.5094420833950256, -0.6998088740192655, 1.707249981371149],
}
TRL_GRADIENTS = {
    "old": [
        [-0.0700914128, -0.0749380808, 0.0010134724, 0.000812, -0.000597597],
        [0.0353071665, -0.0028560685, 0.0000512593, 0, 0],
        [0.0009459718, 0, 0, 0, 0],
        [-0.0034144452, -0.0007605786, 0.1376841693, 0.24387836, 0],
    ],
    "first": [
        [-0.0751307235, -0.0745017376, -0.0739865276, -0.074188, -0.075597597],
        [0.0373157097, 0.0388105981, 0.041717926, 0, 0],
        [-0.1740540282, 0, 0, 0, 0],
        [0.1028355548, 0.1054894214, 0.10709349, 0.1072375037, 0],
    ],
}


def trl_batch() -> tuple[torch.Tensor, dict]:
    """log π (4, 5) and a batch, by formula; samples of 5, 3, 1 and 4 tokens."""
    numbers = torch.arange(1, 21, dtype=torch.float64).view(4, 5)
    written = torch.arange(5) < torch.tensor([[5], [3], [1], [4]])
    batch = {
        "answers": torch.where(written, 7, IGNORED_LABEL),
        "advantages": torch.tensor([1.5, -0.5, 0.7, -1.7], dtype=torch.float64),
        "old": 0.5 * torch.sin(0.9 * numbers) - 2,
        "reference": 0.4 * torch.sin(1.3 * numbers) - 2,
    }
    return (0.5 * torch.sin(0.7 * numbers) - 2).requires_grad_(), batch


@pytest.mark.parametrize("update", TRL_LOSSES)
def test_the_loss_and_its_gradient_are_trls(update):
    log_probs, batch = trl_batch()
    if update == "first":
        del batch["old"]
    options = {"epsilon": EPSILON, "beta": BETA}
    for row, expected in enumerate(TRL_LOSSES[update]):
        alone = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        found = grpo_loss(log_probs[row : row + 1], alone, **options)
        assert float(found.detach()) == pytest.approx(expected, rel=1e-12)
    mean = grpo_loss(log_probs, batch, **options) / 4
    [gradient] = torch.autograd.grad(mean, log_probs)
    expected = torch.tensor(TRL_GRADIENTS[update], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected, atol=1e-9, rtol=0)


def test_an_advantage_is_the_distance_from_the_groups_mean_in_standard_deviations():
    drawn = torch.rand(5, 8, generator=torch.Generator().manual_seed(1))
    found = advantages(drawn)
    groups = drawn.double().numpy()
    expected = (groups - groups.mean(1, keepdims=True)) / groups.std(1, keepdims=True)
    torch.testing.assert_close(found, torch.from_numpy(expected).float())
    torch.testing.assert_close(found.sum(dim=1), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(advantages(0.01 * drawn + 0.3), found, atol=1e-5, rtol=1e-4)


def test_a_group_of_equal_rewards_teaches_nothing_even_if_sums_were_rounded():
    nearly = 0.1 + 0.2, 0.3, 0.3
    found = advantages(torch.tensor([[0.7, 0.7, 0.7], nearly], dtype=torch.float64))
    assert torch.equal(found, torch.zeros(2, 3))
    assert advantages(torch.zeros(0, 4)).shape == (0, 4)


@pytest.mark.parametrize("with_old", [True, False])
def test_the_first_steps_gradient_is_the_policy_gradient(with_old):
    """∇ of −Σ_i Â_i mean_t log π, as ρ is 1 there: by autograd."""
    log_probs, batch = made_up()
    batch.pop("old")
    if with_old:
        batch["old"] = log_probs.detach().clone()
    loss = grpo_loss(log_probs, batch, epsilon=EPSILON, beta=0)
    [found] = torch.autograd.grad(loss, log_probs)
    written = batch["answers"] != IGNORED_LABEL
    means = (log_probs * written).sum(dim=1) / written.sum(dim=1)
    [expected] = torch.autograd.grad(-(batch["advantages"] * means).sum(), log_probs)
    torch.testing.assert_close(found, expected)
    assert bool(expected.any())


@pytest.mark.parametrize(
    "ratio, advantage, moves",
    [(1.3, 1, False), (0.7, -1, False), (1.3, -1, True), (0.7, 1, True), (1.1, 1, True)],
)
def test_the_clip_stops_a_token_that_has_gone_far_enough_and_never_its_way_back(
    ratio, advantage, moves
):
    log_probs = torch.tensor([[ratio]]).log().requires_grad_()
    value = clipped(log_probs, torch.zeros(1, 1), torch.tensor([float(advantage)]), EPSILON)
    [gradient] = torch.autograd.grad(value.sum(), log_probs)
    assert bool(gradient.any()) == moves
    if moves:
        assert float(gradient) == pytest.approx(ratio * advantage)


def test_k3_is_never_negative_zero_where_they_agree_and_the_divergence_on_average():
    policy, reference = torch.randn(2, 50, generator=torch.Generator().manual_seed(2)).log_softmax(
        dim=-1
    )
    estimate = k3(policy, reference)
    assert bool((estimate >= 0).all()) and torch.equal(k3(policy, policy), torch.zeros(50))
    divergence = torch.nn.functional.kl_div(reference, policy, log_target=True, reduction="sum")
    torch.testing.assert_close((policy.exp() * estimate).sum(), divergence)


def test_the_kl_alone_draws_the_policy_to_the_reference():
    log_probs, batch = made_up()
    batch |= {"advantages": torch.zeros(4), "old": log_probs.detach()}
    [gradient] = torch.autograd.grad(
        grpo_loss(log_probs, batch, epsilon=EPSILON, beta=1.0), log_probs
    )
    written = batch["answers"] != IGNORED_LABEL
    apart = (log_probs.detach() - batch["reference"])[written]
    assert torch.equal(gradient[written].sign(), apart.sign())  # descent goes towards it
    assert not gradient[~written].any()


@pytest.mark.parametrize("filling", [-100.0, 1e30])
def test_what_stands_beside_the_samples_tokens_does_not_matter(filling):
    """A recorded step's tensors are padded with IGNORED_LABEL."""
    log_probs, batch = made_up()
    expected = grpo_loss(log_probs, batch, epsilon=EPSILON, beta=BETA)
    beside = batch["answers"] == IGNORED_LABEL
    filled = {name: batch[name].masked_fill(beside, filling) for name in ("old", "reference")}
    found = grpo_loss(log_probs, batch | filled, epsilon=EPSILON, beta=BETA)
    gradients = [torch.autograd.grad(loss, log_probs)[0] for loss in (found, expected)]
    assert torch.equal(found, expected) and torch.equal(*gradients)


def test_pieces_of_a_batch_have_its_loss_together():
    log_probs, batch = made_up()
    batch = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    pieces = split_batch(batch | {"log_probs": log_probs.detach()}, 3)
    losses = [grpo_loss(p["log_probs"], p, epsilon=EPSILON, beta=BETA) for p in pieces]
    whole = grpo_loss(log_probs.detach(), batch, epsilon=EPSILON, beta=BETA)
    torch.testing.assert_close(sum(losses), whole)


# -- rewards -----------------------------------------------------------------------------------

ENDS = ("day", "me", "say", "tree", "night", "low", "light", "grow")
ENDS += ("hand", "bed", "land", "red", "king", "sing")
GOOD = "\n".join(f"and I have never seen the thing of {end}" for end in ENDS)


def given_3(text: str, known=frozenset()) -> Rewards:
    return rewards(text, 3, known)


@SOUNDS
def test_a_sonnet_in_form_gets_all_but_the_repetition_of_its_words():
    found = given_3(GOOD)
    assert (found.lines, found.rhyme, found.syllables, found.new) == (1, 1, 1, 1)
    words = "\n".join(GOOD.splitlines()[3:]).split()
    pairs = list(pairwise(words))
    expected = (len(set(words)) / len(words) + len(set(pairs)) / len(pairs)) / 2
    assert found.distinct == pytest.approx(expected) and expected < 0.6


@SOUNDS
def test_each_reward_sees_what_is_wrong_and_the_others_do_not():
    lines = GOOD.splitlines()
    assert given_3("\n".join(lines[:13])).lines == pytest.approx(13 / 14)
    assert given_3("\n".join(lines * 3)).lines == 0
    spoilt = [*lines[:12], lines[12].replace("king", "cold"), lines[13]]
    assert given_3("\n".join(spoilt)).rhyme == pytest.approx(5 / 6)
    longer = [*lines[:13], lines[13] + " a sing"]  # 12 syllables
    found = given_3("\n".join(longer))
    assert found.syllables == pytest.approx((10 + 0.6) / 11) and found.rhyme == 1
    known = known_lines([Record("1", f"{lines[5].upper()}!\nanother")])
    assert given_3(GOOD, known).new == pytest.approx(10 / 11)


@SOUNDS
def test_what_the_prompt_decides_is_not_rewarded():
    lines = GOOD.splitlines()
    unrhymed = [lines[0], lines[1], "a first line without its partner", *lines[3:]]
    assert given_3("\n".join(unrhymed)).rhyme == 1
    repeats = [*lines[:13], lines[0]]
    assert given_3("\n".join(repeats)).new == pytest.approx(10 / 11)


@SOUNDS
@pytest.mark.parametrize("text", ["\n".join(GOOD.splitlines()[:3]), "\n \n", ""])
def test_nothing_written_gets_nothing(text):
    assert given_3(text) == Rewards(0, 0, 0, 0, 0)


@SOUNDS
def test_one_line_over_and_over_does_not_rhyme_and_is_not_distinct():
    lines = GOOD.splitlines()
    found = given_3("\n".join([*lines[:3], *[lines[4]] * 11]))
    assert found.rhyme == pytest.approx(0 / 6) and found.distinct < 0.1


def test_weights_are_of_a_mean_and_those_not_named_are_1():
    weights = parse_weights("rhyme=3,new=0")
    assert weights == Rewards(1, 3, 1, 0, 1)
    assert Rewards(1, 0.5, 0, 0.2, 0).total(weights) == pytest.approx(2.5 / 6)
    for wrong in (
        "rhyme=-1",
        "rhyme=nan",
        "rhyme=inf",
        "lines=0,rhyme=0,syllables=0,new=0,distinct=0",
    ):
        with pytest.raises(InputError, match="--weights"):
            parse_weights(wrong)


# -- what is not rewarded ----------------------------------------------------------------------

CALM = {"dev_reward": 0.5} | {f"dev_{name}": 0.5 for name in grpo.NAMES}
CALM |= dict.fromkeys(hacking.WATCHED, 10.0)


@pytest.mark.parametrize(
    "name, value",
    [("dev_loss", 10.1), ("dev_chrf", 8.0), ("dev_tokens", 7.0), ("dev_tokens", 13.0)],
)
def test_a_reward_that_rises_while_something_else_gets_worse_is_warned_of(name, value):
    risen = CALM | {"dev_reward": 0.6, name: value}
    said = hacking.warning(CALM, risen)
    assert said.startswith("warning: the reward rose by 0.100") and f"10.000 -> {value:.3f}" in said
    assert [name] == hacking.worsened(CALM, risen)
    [line] = [line for line in hacking.table(CALM, risen).splitlines() if line.endswith("worse")]
    assert hacking.WATCHED[name].what in line


@pytest.mark.parametrize(
    "change",
    [
        {"dev_reward": 0.6, "dev_loss": 9.0, "dev_chrf": 12.0, "dev_tokens": 11.0},
        {"dev_reward": 0.6, "dev_loss": 10.01},
    ],
)
def test_nothing_is_warned_of_where_nothing_is_wrong(change):
    assert hacking.warning(CALM, CALM | change) == ""


@pytest.mark.parametrize("change", [{}, {"dev_reward": 0.4, "dev_loss": 12.0}])
def test_a_reward_that_does_not_rise_is_said_as_such(change):
    assert "the reward did not rise" in hacking.warning(CALM, CALM | change)


def test_grams_go_from_line_to_line_and_are_of_four_words():
    found = hacking.word_grams([Record("1", "The rose,\nis RED now"), Record("2", "a b c")])
    assert found == {("the", "rose", "is", "red"), ("rose", "is", "red", "now")}


# -- samples -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A folder with data, a model and a checkpoint of the sonnet task and of another one."""
    folder = tmp_path_factory.mktemp("originals")
    with pytest.MonkeyPatch.context() as monkeypatch:
        work_in(monkeypatch, folder)
        write_course("data", rows=16)
        write_gpt2("model", dropout=0.1)
        for kind in ("sonnet", "sst"):
            built = task_checkpoints.build(kind, "model")
            task_checkpoints.save(f"{kind}.safetensors", kind, *built)
    return folder


@pytest.fixture
def place(originals, tmp_path, monkeypatch):
    task_checkpoints.work_beside(monkeypatch, originals, tmp_path)
    return tmp_path


SONNETS = [Record(str(i), "\n".join([*VERSES[i : i + 3], "my love burns"])) for i in range(3)]


@pytest.fixture
def job(place) -> Job:
    words = ["--checkpoint", "sonnet.safetensors", "--max_new_tokens", "12", "--group_size", "4"]
    args = grpo.get_args(words)
    model, reference = (TASKS["sonnet"].load("sonnet.safetensors")[0].eval() for _ in range(2))
    return Job(args, model, reference, Rewards(), frozenset(), WORKER)


@pytest.fixture
def lengths_alone(monkeypatch):
    """No dictionary is needed: the reward is of a sample's length."""
    monkeypatch.setattr(rollouts, "rewards", lambda text, *_: Rewards(len(text) / 100, 0, 0, 0, 0))


def test_samples_go_on_from_their_prompts_and_learn_what_was_drawn_alone(job, lengths_alone):
    samples = draw(job, SONNETS, 4, "a seed")
    assert [sonnet.sent_id for sonnet in samples.sonnets] == list("000011112222")
    batch, tokenizer = samples.batch, job.model.tokenizer
    for row, sonnet in enumerate(samples.sonnets):
        prompt = prompt_text(SONNETS[int(sonnet.sent_id)])
        ids = batch["token_ids"][row][batch["attention_mask"][row].bool()].tolist()
        start = len(tokenizer(prompt)["input_ids"])
        assert tokenizer.decode(ids[:start]) == prompt
        written = batch["answers"][row] != IGNORED_LABEL
        assert batch["answers"][row][written].tolist() == ids[start:]
        assert written.nonzero()[0] == start - 1 and 1 <= len(ids) - start <= 12
        ended = tokenizer.eos_token_id in ids[start:]
        assert len(ids) - start == 12 or ended


def test_draws_follow_from_the_seed_alone(job, lengths_alone):
    torch.manual_seed(1)
    first = draw(job, SONNETS, 2, "a seed").sonnets
    torch.manual_seed(2)
    assert draw(job, SONNETS, 2, "a seed").sonnets == first
    assert draw(job, SONNETS, 2, "another seed").sonnets != first


@torch.no_grad()
def test_log_probabilities_are_those_of_the_distribution_that_was_drawn_from(
    job, lengths_alone, monkeypatch
):
    """Of every token as one forward pass of what is before it tells."""
    batch = draw(job, SONNETS[:1], 2, "a seed").batch
    found = token_log_probs(job.model, batch)
    for row in range(2):
        for t in (batch["answers"][row] != IGNORED_LABEL).nonzero()[:, 0].tolist():
            before = batch["token_ids"][row : row + 1, : t + 1]
            logits = job.model(before, torch.ones_like(before))[0, -1]
            expected = logits.log_softmax(dim=0)[batch["answers"][row, t]]
            torch.testing.assert_close(found[row, t], expected, rtol=1e-4, atol=1e-5)
    assert not found[batch["answers"] == IGNORED_LABEL].any()
    monkeypatch.setattr(rollouts, "ROWS", 1)
    torch.testing.assert_close(rollouts.known_log_probs(job, job.model, batch), found)


def test_a_rollouts_advantages_are_of_each_prompts_group(job, lengths_alone):
    batch = rollout(job, SONNETS, "a seed")
    groups = batch["advantages"].view(3, 4)
    torch.testing.assert_close(groups, advantages(batch["rewards"].view(3, 4)))
    assert bool(groups.any()) and "old" not in batch
    torch.testing.assert_close(batch["reference"], token_log_probs(job.model, batch).detach())
    assert len(split_batch(batch, 5)) == 3 and not job.model.training


def test_a_workers_empty_share_has_no_rows(job, lengths_alone):
    batch = rollout(job, [], "a seed")
    assert batch["advantages"].shape == (0,) and len(batch["sent_ids"]) == 0
    log_probs = batch["reference"].requires_grad_()
    assert float(grpo_loss(log_probs, batch, epsilon=EPSILON, beta=BETA).detach()) == 0


def loader_of(drawn: list, kept=None) -> RolloutLoader:
    """Of five prompts, two at once, each batch for three updates."""

    def make(numbers, seed):
        drawn.append(seed)
        return {"numbers": numbers, "seed": seed}

    sampler = LengthBuckets([1, 2, 3, 4, 5], 2, seed=9)
    return RolloutLoader(range(5), sampler, 3, make, kept)


def test_a_batch_is_drawn_when_its_first_update_comes_and_serves_for_all_of_them():
    """On an accelerator, too, where a thread puts other batches together ahead."""
    drawn, seen = [], []
    loader = loader_of(drawn)
    with groups_of(loader, 1, 0, torch.device("cuda")) as groups:
        for [batch] in groups:
            seen.append(batch["seed"])
            assert len(drawn) == 1 + (len(seen) - 1) // 3
    assert len(seen) == len(loader) == 9
    assert seen == [f"9 0 {number} 0" for number in (0, 0, 0, 1, 1, 1, 2, 2, 2)]
    loader.batch_sampler.set_epoch(1)
    assert next(iter(loader))["seed"] == "9 1 0 0"


def test_after_an_interruption_the_kept_batch_goes_on():
    drawn = []
    loader = loader_of(drawn, kept=lambda: "kept")
    assert list(loader.batches(4))[:2] == ["kept", "kept"] and drawn == ["9 0 2 0"]
    assert [batch["seed"] for batch in loader.batches(6)] == ["9 0 2 0"] * 3


# -- whole runs --------------------------------------------------------------------------------


def start(monkeypatch, *words) -> None:
    flags = ["--data_dir", "data", "--checkpoint", "sonnet.safetensors", "--max_new_tokens", "8"]
    flags += ["--group_size", "4", "--batch_size", "4", "--dev_samples", "1", "--lr", "1e-3"]
    call_main(monkeypatch, "programs.grpo.grpo", *flags, *words)


def metrics(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
@SOUNDS
def test_a_model_learns_what_is_rewarded_and_is_caught_at_it(place, monkeypatch, capsys):
    """The share of words that are "red": nothing that a sonnet is better for."""

    def redness(text, given, known) -> Rewards:
        words = " ".join(text.splitlines()[given:]).split()
        return Rewards(*[sum("red" in word for word in words) / max(len(words), 1)] * 5)

    monkeypatch.setattr(rollouts, "rewards", redness)
    start(monkeypatch, "--epochs", "8", "--lr", "1e-2", "--group_size", "16", "--beta", "0.001")
    said = capsys.readouterr().out
    records = metrics(run_path("runs", "sonnet-grpo-*"))
    assert records[0]["train_acc"] < 0.1 and records[-1]["train_acc"] > 0.5
    assert records[-1]["dev_kl"] > 1 and "At the start: dev reward :: 0.0" in said
    assert "warning: the reward rose by" in said and "distinct-2 over all samples" in said


@SOUNDS
def test_the_tasks_program_and_decoding_take_the_result(place, monkeypatch, capsys):
    start(monkeypatch, "--epochs", "2")
    said = capsys.readouterr().out
    folder = run_path("runs", "sonnet-grpo-model-*")
    best = folder / "best.safetensors"
    assert f"next: python sonnet_generation.py --checkpoint {best}" in said
    assert "dev kl :: 0.000" in said and "\nbefore, reward 0." in said and "\nafter, reward" in said
    records = metrics(folder)
    figures = {"dev_reward", *hacking.WATCHED, *(f"dev_{name}" for name in grpo.NAMES)}
    assert len(records) == 2 and figures < records[0].keys() and records[0]["dev_kl"] > 0
    kept = load_tree(best)
    best_epoch = max(records, key=lambda record: record["dev_reward"])
    assert kept["metrics"]["epoch"] == best_epoch["epoch"]
    assert kept["settings"]["start"] == "sonnet.safetensors"
    began = load_tree("sonnet.safetensors")["model"]
    assert began.keys() == kept["model"].keys() and not same_bits(began, kept["model"])
    words = ("--data_dir", "data", "--max_new_tokens", "2", "--checkpoint", best)
    call_main(monkeypatch, "sonnet_generation", *words)
    call_main(monkeypatch, "programs.decoding.decoding", *words, "--strategy", "min_p")
    assert Path("predictions/generated_sonnets.txt").exists()


@pytest.mark.slow
@SOUNDS
def test_the_same_seed_gives_the_same_bits_and_another_one_does_not(place, monkeypatch):
    weights = []
    for root, seed in (("a", 1), ("b", 1), ("c", 2)):
        start(monkeypatch, "--epochs", "1", "--runs_dir", root, "--seed", seed)
        weights.append(load_tree(run_path(root, "*/best.safetensors"))["model"])
    assert same_bits(weights[0], weights[1]) and not same_bits(weights[0], weights[2])


@pytest.mark.slow
@SOUNDS
@pytest.mark.parametrize("more", [(), ("--extension", "lora:rank=2,dropout=0.3")])
def test_interrupted_between_two_updates_it_goes_on_to_the_same_bits(
    more, place, monkeypatch, capsys
):
    words = ("--epochs", "2", "--updates", "2", *more)
    start(monkeypatch, *words, "--runs_dir", "whole")
    steps, step = [], Trainer.step

    def interrupted(trainer, group):
        step(trainer, group)
        steps.append(trainer)
        if len(steps) == 4:
            raise KeyboardInterrupt

    words = (*words, "--save_minutes", "0")
    with pytest.raises(SystemExit), monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        start(patch, *words)
    capsys.readouterr()
    start(monkeypatch, *words, "--resume")
    said = capsys.readouterr().out
    assert "resumed at epoch 0, step 3" in said and "dev kl :: 0.000" in said
    trees = [load_tree(run_path(root, "*/best.safetensors")) for root in ("whole", "runs")]
    assert same_bits(*(tree["model"] for tree in trees))
    records = [metrics(run_path(root)) for root in ("whole", "runs")]
    whole, resumed = ([record | {"seconds": 0} for record in each] for each in records)
    assert whole == resumed


@pytest.mark.parametrize(
    "words, said",
    [
        (("--checkpoint", "none.safetensors"), "none.safetensors"),
        (("--checkpoint", "sst.safetensors"), "a checkpoint of task 'sst', expected 'sonnet'"),
        (("--group_size", "1"), "--group_size 1: expected at least 2"),
        (("--updates", "0"), "--updates 0: expected at least 1"),
        (("--beta", "-1"), "--beta -1.0: expected at least 0"),
        (("--epsilon", "2"), "--epsilon 2.0: expected from 0 to 1"),
        (("--accumulate", "2"), "--accumulate 2: a step is on one batch of samples"),
        (("--weights", "metre=1"), "--weights: option 'metre=1', expected some of: lines=1.0"),
        (("--extension", "smart"), "--extension smart: it acts on a task's loss"),
        (("--held_out_sonnet_path", "none.txt"), "none.txt: no such file"),
        (("--sonnet_path", "empty.txt"), "empty.txt: the file is empty"),
        (("--resume",), "--resume: no runs/sonnet-grpo-model-"),
    ],
)
@SOUNDS
def test_what_is_wrong_is_said_in_one_line(words, said, place, monkeypatch, capsys):
    write("empty.txt", "")
    monkeypatch.setattr(grpo, "fit", no_training)
    with pytest.raises(SystemExit) as stop:
        start(monkeypatch, *words)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and said in error, error


@pytest.mark.parametrize(
    "hidden, words, said",
    [
        ([], (), "the following arguments are required: --checkpoint: see --help"),
        (["pronouncing"], ("--checkpoint", "x"), "sonnets needs pronouncing: pip install pronou"),
    ],
)
def test_without_a_checkpoint_or_the_dictionary_nothing_begins(
    hidden, words, said, place, monkeypatch, capsys
):
    for name in hidden:
        monkeypatch.setitem(sys.modules, name, None)
    grpo.dictionary.cache_clear()
    with pytest.raises(SystemExit) as stop:
        call_main(monkeypatch, "programs.grpo.grpo", *words)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and said in error, error
