"""DPO and its kin: the formulas and trl's numbers, pairs, batches of pairs, and whole runs."""

import json
import math
from pathlib import Path

import pytest
import torch
from children import in_child
from course_files import VERSES, call_main, work_in, write, write_course, write_model
from test_unfinished_work import at_file, ended_by, interrupt, kill
from tiny_run import run_path
from torch.nn import functional as F

import sonnet_generation
from engine.batches import IGNORED_LABEL, count_targets, split_batch
from engine.checkpoint import load_tree, save_tree
from engine.errors import InputError
from engine.records import Record
from engine.settings import Settings
from engine.trainer import Trainer
from programs.dpo import data as preference_data
from programs.dpo import dpo
from programs.dpo.batches import TextPairs, WordPairs
from programs.dpo.losses import CHOSEN, REJECTED, Objective, dpo_loss, ipo_loss, log_odds
from programs.dpo.pairs import (
    CORRUPTIONS,
    RHYMES,
    Pair,
    corrupted_pairs,
    load_pairs,
    sampled_pairs,
    save_pairs,
    yes_no_pairs,
)

# -- losses ------------------------------------------------------------------------------------

B, T, V = 3, 6, 7
# Answers' tokens [first, last) of the texts below, rejected and chosen of each pair.
SPANS = [[(2, 4), (2, 6)], [(1, 6), (1, 3)], [(3, 5), (3, 4)]]
# trl 0.11.4: DPOTrainer.get_batch_logps and dpo_loss ("sigmoid", "ipo") at beta 0.3,
# ORPOTrainer.odds_ratio_loss at 0.3, CPOTrainer.cpo_loss ("simpo") at beta 2, gamma 1, on these
# logits in float64. For IPO and DPO it was given sums, for the others means over tokens.
TRL_LOG_PROBS = [
    [-5.550121505456939, -11.219686969517923],
    [-11.261633381772164, -6.6403851174308794],
    [-3.558304168974713, -1.8385583000570864],
]
TRL = {
    "dpo": [0.4660411111177712, 1.647279160021043, 1.2481830890092864],
    "ipo": [0.005101498288481271, 41.53271169165455, 22.08602120075954],
    "orpo": [0.2127543930987305, 0.4257382460931605, 0.21879083347536268],  # λ L_OR
    "simpo": [1.3572693386001717, 3.1782814824009877, 1.4014825933133437],
}
TRL_MARGINS = {
    "dpo": [0.5214274320898077, -1.4333763348735054, -0.9098730113270336],
    "simpo": [
        -5.6098434847589616 + 5.550121505456939,
        -6.6403851174308794 + 4.504653352708866,
        -3.677116600114173 + 3.558304168974713,
    ],
}
OBJECTIVES = {
    "dpo": Objective("dpo", 0.3),
    "ipo": Objective("ipo", 0.3),
    "orpo": Objective("orpo", 0.3),
    "simpo": Objective("simpo", 2.0, 1.0),
}


def trl_logits(speed: float):
    """(2 · B, T, V), as trl was given them."""
    numbers = torch.arange(B * 2 * T * V, dtype=torch.float64)
    return 2 * torch.sin(speed * numbers).view(B * 2, T, V)


def trl_batch() -> dict:
    tokens = (torch.arange(B * 2 * T) ** 2 % V).view(B, 2, T)
    answers = torch.full((B, 2, T), IGNORED_LABEL)
    for i, spans in enumerate(SPANS):
        for j, (first, last) in enumerate(spans):
            answers[i, j, first - 1 : last - 1] = tokens[i, j, first:last]
    lengths = (answers != IGNORED_LABEL).sum(dim=-1)
    batch = {"token_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return batch | {"answers": answers, "answer_lengths": lengths}


def trl_scores(objective: Objective):
    batch = trl_batch()
    reference = TextPairs.log_probs(lambda *_: trl_logits(1.3), batch)
    policy = TextPairs.log_probs(lambda *_: trl_logits(0.7), batch)
    return policy, objective.scores(policy, batch | {"reference": reference})


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_loss_is_trls_on_the_same_logits(name):
    log_probs, scores = trl_scores(OBJECTIVES[name])
    torch.testing.assert_close(log_probs.double(), torch.tensor(TRL_LOG_PROBS).double())
    expected = torch.tensor(TRL[name], dtype=torch.float64)
    if name == "orpo":
        expected = expected - scores[:, CHOSEN]
    losses = torch.stack([OBJECTIVES[name].loss(row[None]) for row in scores])
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(OBJECTIVES[name].loss(scores), losses.sum())


@pytest.mark.parametrize("name", TRL_MARGINS)
def test_the_margin_of_implicit_rewards_is_trls(name):
    _, scores = trl_scores(OBJECTIVES[name])
    margins = OBJECTIVES[name].margins(scores)
    torch.testing.assert_close(margins, torch.tensor(TRL_MARGINS[name]), rtol=1e-5, atol=1e-5)


def test_the_loss_is_log_2_where_the_policy_is_the_reference():
    log_probs = torch.tensor([[-130.0, -90.0], [-2.0, -300.0]])
    scores = Objective("dpo", 0.1).scores(log_probs, {"reference": log_probs})
    assert float(Objective("dpo", 0.1).loss(scores)) == pytest.approx(2 * math.log(2))


def test_swapping_the_answers_negates_the_margin():
    scores = torch.randn(5, 2)
    margins = [Objective("dpo", 0.1).margins(s) for s in (scores, scores.flip(1))]
    assert torch.equal(margins[0], -margins[1]) and bool(margins[0].any())


def test_dpos_gradient_weighs_a_pair_by_how_wrong_its_rewards_are():
    """−β σ(r_l − r_w) for the chosen answer: Rafailov et al. 2023, section 4."""
    chosen = torch.tensor([-3.0, 0.0, 4.0], requires_grad=True)
    rejected = torch.tensor([2.0, 0.0, -1.0])
    dpo_loss(chosen, rejected, 0.5).sum().backward()
    expected = -0.5 * torch.sigmoid(0.5 * (rejected - chosen.detach()))
    torch.testing.assert_close(chosen.grad, expected)


def test_ipo_is_at_rest_at_its_target_margin_and_dpo_never():
    target = torch.tensor([1 / (2 * 0.1)], requires_grad=True)
    assert float(torch.autograd.grad(ipo_loss(target, torch.zeros(1), 0.1).sum(), target)[0]) == 0
    assert float(torch.autograd.grad(dpo_loss(target, torch.zeros(1), 0.1).sum(), target)[0]) < 0


def test_odds_are_those_of_the_probability_and_finite_for_a_certain_answer():
    probability = torch.tensor([0.2, 0.5, 0.9])
    expected = (probability / (1 - probability)).log()
    torch.testing.assert_close(log_odds(probability.log()), expected)
    certain = torch.zeros(1, requires_grad=True)
    log_odds(certain).sum().backward()
    assert log_odds(certain).isfinite() and certain.grad.isfinite()


# -- batches of pairs --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny SonnetGPT with dropout, which eval mode leaves out."""
    folder = write_model(tmp_path_factory.mktemp("model"), dropout=0.1)
    return sonnet_generation.TASK.build_model(
        Settings({"model_size": str(folder), "extension": []})
    )


PAIRS = [
    Pair("1", "a", "the rose is red\n", "my love burns", "nights", [-30.0, -20.0]),
    Pair("2", "b", "thou bright sun\n", "winter", "winds blow\nwinds blow", [-9.0, -8.5]),
    Pair("3", "c", "sweet\n", "summer days", "", [-7.0, -40.0]),
]


def text_batch(model, pairs=PAIRS) -> dict:
    dataset = TextPairs(pairs, model.tokenizer, 512, where="a file")
    return dataset.collate([dataset[i] for i in range(len(dataset))])


@torch.no_grad()
def test_log_probabilities_are_sums_over_the_answers_tokens_and_the_end_token(model):
    found = TextPairs.log_probs(model.eval(), text_batch(model))
    for row, pair in zip(found, PAIRS, strict=True):
        for column, answer in {REJECTED: pair.rejected, CHOSEN: pair.chosen}.items():
            prompt = model.tokenizer(pair.prompt)["input_ids"]
            ids = [*model.tokenizer(answer)["input_ids"], model.tokenizer.eos_token_id]
            total = 0.0
            for i, token in enumerate(ids):
                tokens = torch.tensor([prompt + ids[:i]])
                total += float(model(tokens, torch.ones_like(tokens))[0, -1].log_softmax(0)[token])
            assert float(row[column]) == pytest.approx(total, rel=1e-5)


def test_the_prompts_tokens_and_padding_carry_no_gradient(model):
    batch = text_batch(model)
    logits = torch.randn(6, batch["token_ids"].shape[2], 11, requires_grad=True)
    labels = batch["answers"].clamp(max=10)
    TextPairs.log_probs(lambda *_: logits, batch | {"answers": labels}).sum().backward()
    taught = logits.grad.abs().sum(dim=-1).view(batch["answers"].shape) > 0
    assert torch.equal(taught, batch["answers"] != IGNORED_LABEL)
    for row, pair in enumerate(PAIRS):
        before = len(model.tokenizer(pair.prompt)["input_ids"]) - 1
        assert not taught[row, :, :before].any() and taught[row, :, before].all()


def test_a_micro_batch_holds_whole_pairs_and_the_loss_is_that_of_the_batch(model):
    batch, objective = text_batch(model), Objective("dpo", 0.1)
    model.eval()

    def loss(piece):
        scores = objective.scores(TextPairs.log_probs(model, piece), piece)
        return float(objective.loss(scores).detach())

    pieces = split_batch(batch, 2)
    assert [count_targets(piece) for piece in pieces] == [2, 1] and count_targets(batch) == 3
    assert sum(map(loss, pieces)) == pytest.approx(loss(batch), rel=1e-5)


@pytest.mark.parametrize("kind", [TextPairs, WordPairs])
def test_a_workers_empty_share_is_a_loss_of_nothing_with_a_gradient(kind):
    def uniform(token_ids, attention_mask):
        shape = (0, 2) if kind is WordPairs else (*token_ids.shape, 5)
        return torch.zeros(shape, requires_grad=True)

    batch, objective = kind.collate([]), Objective("dpo", 0.1)
    assert count_targets(batch) == 0
    loss = objective.loss(objective.scores(kind.log_probs(uniform, batch), batch))
    loss.backward()
    assert float(loss.detach()) == 0


def test_a_long_rejected_answer_is_cut_and_a_long_chosen_one_refused(model):
    long = Pair("9", "given", "my love\n", "burns", "blow " * 30)
    dataset = TextPairs([long], model.tokenizer, 16, where="a file")
    assert max(dataset.lengths) == 16
    swapped = Pair("9", "given", "my love\n", "blow " * 30, "burns")
    with pytest.raises(InputError, match=r"a file, pair 9: \d\d tokens, expected at most 16"):
        TextPairs([swapped], model.tokenizer, 16, where="a file")


def test_of_two_words_the_right_one_is_chosen_and_both_make_up_all(model):
    pairs = yes_no_pairs(["is it good?", "is it a rose?"], ["1", "2"], [1, 0])
    assert [pair.chosen for pair in pairs] == ["yes", "no"]
    dataset = WordPairs(pairs, model.tokenizer, 512, where="a file")
    logits = torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    found = WordPairs.log_probs(lambda *_: logits, dataset.collate([dataset[0], dataset[1]]))
    expected = F.logsigmoid(torch.tensor([[-1.0, 1.0], [3.0, -3.0]]))  # no, yes; yes, no
    torch.testing.assert_close(found, expected)


def test_words_that_are_no_answer_are_refused(model):
    with pytest.raises(InputError, match="pair 1: the answers 'my love burns' and 'nights'"):
        WordPairs(PAIRS, model.tokenizer, 512, where="a file")


def test_data_that_differs_in_a_reference_only_has_another_fingerprint(model):
    prints = []
    for reference in ([-1.0, -2.0], [-1.0, -2.5]):
        pair = Pair("1", "a", "my\n", "love", "burns", reference)
        prints.append(TextPairs([pair], model.tokenizer, 64, where="").fingerprint())
    assert prints[0] != prints[1]


# -- pairs -------------------------------------------------------------------------------------

SONNET = Record("1", "\n".join(f"line {i} ends on {rhyme}{i}," for i, rhyme in enumerate(RHYMES)))


def corrupted(kind: str, seed: int = 0) -> tuple[list[str], list[str]]:
    """Lines of the true and of the corrupted continuation."""
    [pair] = corrupted_pairs([SONNET], kind, seed)
    assert pair.prompt == "\n".join(SONNET.text.splitlines()[:3]) + "\n"
    return pair.chosen.splitlines(), pair.rejected.splitlines()


@pytest.mark.parametrize("seed", range(5))
def test_corruptions_do_what_their_names_say(seed):
    lines, other = corrupted("shuffled", seed)
    assert sorted(other) == sorted(lines) and other != lines
    lines, other = corrupted("truncated", seed)
    assert 1 <= len(other) < len(lines) and other == lines[: len(other)]
    lines, other = corrupted("repeated", seed)
    start = next(i for i in range(11) if other[i] == other[-1])
    assert other == lines[: start + 1] + [lines[start]] * (10 - start) and start < 10


@pytest.mark.parametrize("seed", range(5))
def test_unrhymed_lines_keep_their_beginnings_and_all_words_and_lose_every_rhyme(seed):
    lines, other = corrupted("unrhymed", seed)
    assert sorted(" ".join(other).split()) == sorted(" ".join(lines).split())
    assert [a.split()[:4] for a in other] == [a.split()[:4] for a in lines]
    rhymes = [line.split()[4][0] for line in other]
    for i, old in enumerate(RHYMES[3:]):
        partners = [j for j, rhyme in enumerate(RHYMES) if rhyme == old and j != i + 3]
        assert rhymes[i] != old
        assert all(rhymes[i] != (RHYMES[:3] + "".join(rhymes))[j] for j in partners)


def test_a_pair_depends_on_the_seed_and_its_sonnet_alone():
    others = [Record("7", SONNET.text), SONNET]
    first = corrupted_pairs([SONNET], "shuffled", seed=0)
    assert corrupted_pairs(others, "shuffled", seed=0)[1:] == first
    assert corrupted_pairs([SONNET], "shuffled", seed=1) != first


def test_what_a_corruption_or_a_sample_leaves_alone_makes_no_pair():
    same = Record("1", "\n".join(["my love burns"] * 14))
    assert corrupted_pairs([same], "shuffled", 0) == sampled_pairs([same], [same]) == []


def test_blank_lines_are_none_of_the_lines_that_are_given_or_changed():
    spaced = Record("1", "a\n\nb\nc\n\nd\n\ne")
    [pair] = sampled_pairs([spaced], [Record("1", "a\nb\nc\n\nmy\n\nown")])
    assert (pair.prompt, pair.chosen, pair.rejected) == ("a\nb\nc\n", "\nd\n\ne", "\nmy\n\nown")
    [pair] = corrupted_pairs([spaced], "truncated", seed=0)
    assert (pair.prompt, pair.chosen, pair.rejected) == ("a\nb\nc\n", "d\ne", "d")
    [pair] = sampled_pairs([Record("1", "a\nb")], [Record("1", "a\nb\nmy\nown")])
    assert (pair.prompt, pair.rejected) == ("a\nb\n", "my\nown")


def test_a_sample_stands_against_the_true_continuation():
    sample = Record("1", "a\nb\nc\nwritten\n\nby a model")
    [pair] = sampled_pairs([Record("1", "a\nb\nc\ntrue\nlines")], [sample])
    assert (pair.prompt, pair.chosen, pair.rejected) == (
        "a\nb\nc\n",
        "true\nlines",
        "written\n\nby a model",
    )


def test_pairs_come_back_from_their_file_as_they_were(tmp_path):
    pairs = [*PAIRS, Pair("4", "d", "Ünï\u2028\n", '"quoted"\n', "", [-1 / 3, -1e-7])]
    save_pairs(tmp_path / "pairs.jsonl", pairs)
    assert load_pairs(tmp_path / "pairs.jsonl") == pairs


GOOD = '{"prompt": "a", "chosen": "b", "rejected": "c"}'


@pytest.mark.parametrize(
    "line, said",
    [
        ("{", "no JSON"),
        ("[1]", "expected an object with the texts prompt, chosen, rejected"),
        ('{"prompt": "a", "chosen": "b"}', "expected an object"),
        ('{"prompt": "", "chosen": "b", "rejected": "c"}', "an empty prompt"),
        ('{"prompt": "a", "chosen": "b", "rejected": "b"}', "two equal answers"),
    ],
)
def test_a_line_that_is_no_pair_is_named(line, said, tmp_path):
    path = write(tmp_path / "pairs.jsonl", f"{GOOD}\n\n{line}\n")
    with pytest.raises(InputError, match=f"pairs.jsonl, line 3: {said}"):
        load_pairs(path)


def test_a_file_of_ones_own_needs_three_texts_only(tmp_path):
    [pair] = load_pairs(write(tmp_path / "pairs.jsonl", GOOD + "\n"))
    assert pair == Pair("1", "given", "a", "b", "c")


# -- whole runs --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with data, a model, and a checkpoint of each task: (folder, {task: file})."""
    folder, found = tmp_path_factory.mktemp("trained"), {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        work_in(monkeypatch, folder)
        write_course("data", rows=16)
        write_model("model", dropout=0.1)
        words = ["--data_dir", "data", "--model_size", "model", "--epochs", "1", "--lr", "1e-2"]
        call_main(monkeypatch, "sonnet_generation", *words, "--max_new_tokens", "1")
        call_main(monkeypatch, "paraphrase_detection", *words)
        for task in ("sonnet", "paraphrase"):
            found[task] = folder / run_path("runs", f"{task}-*/best.safetensors")
    return found


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    work_in(monkeypatch, tmp_path)
    folder = trained["sonnet"].parents[2]
    for name in ("data", "model"):
        Path(name).symlink_to(folder / name)
    return tmp_path


def start(monkeypatch, task: str, *words, checkpoint=None) -> None:
    flags = ["--task", task, "--data_dir", "data", "--model_size", "model", "--lr", "3e-3"]
    flags += ["--max_new_tokens", "4", *(["--checkpoint", checkpoint] if checkpoint else [])]
    call_main(monkeypatch, "programs.dpo.dpo", *flags, *words)


def metrics(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_in_float16_too_it_begins_at_log_2_and_gains(trained, place, monkeypatch, capsys):
    """Both sides of the ratio are computed in the precision of training."""
    monkeypatch.setattr("engine.machine_flags.has_fp16_units", lambda kind: True)
    words = ("--epochs", "2", "--lr", "1e-3", "--kinds", "shuffled", "--fp16")
    start(monkeypatch, "sonnet", *words, checkpoint=trained["sonnet"])
    assert "At the start: dev loss :: 0.693" in capsys.readouterr().out
    records = metrics(run_path("runs", "sonnet-dpo-*"))
    assert records[-1]["dev_loss"] < math.log(2) and "skipped_steps" in records[0]


def test_sonnets_begin_at_log_2_and_gain_and_the_tasks_program_takes_the_result(
    trained, place, monkeypatch, capsys
):
    start(monkeypatch, "sonnet", "--epochs", "3", "--lr", "1e-3", checkpoint=trained["sonnet"])
    said = capsys.readouterr().out
    assert "At the start: dev loss :: 0.693, dev reward acc :: 0.000, dev reward margin" in said
    assert all(f"  {kind} " in said for kind in dpo.KINDS)
    folder = run_path("runs", "sonnet-dpo-*")
    last = metrics(folder)[-1]
    assert last["dev_loss"] < 0.6 and last["dev_reward_acc"] > 0.7
    assert last["dev_reward_margin"] > 0 and last["train_acc"] > 0.7
    best = folder / "best.safetensors"
    assert f"next: python sonnet_generation.py --checkpoint {best}" in said
    words = ("--data_dir", "data", "--max_new_tokens", "2", "--checkpoint", best)
    call_main(monkeypatch, "sonnet_generation", *words)
    assert Path("predictions/generated_sonnets.txt").exists()


def test_dropout_is_off_so_that_policy_and_reference_can_be_compared(trained, place, monkeypatch):
    passes = []

    def look(model, loader, **_):
        model.train()
        batch = next(iter(loader))
        passes.extend(TextPairs.log_probs(model, batch) for _ in range(2))
        passes.append(batch["reference"])

    monkeypatch.setattr(dpo, "fit", look)
    start(monkeypatch, "sonnet", "--kinds", "shuffled", checkpoint=trained["sonnet"])
    assert torch.equal(passes[0], passes[1])
    torch.testing.assert_close(passes[0].detach(), passes[2], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("loss", dpo.BETAS)
def test_each_loss_teaches_an_answer_and_the_tasks_program_takes_the_result(
    loss, trained, place, monkeypatch, capsys
):
    prompts = [f"is {verse} a rose?" for verse in VERSES]
    save_pairs("yes.jsonl", yes_no_pairs(prompts, VERSES, [1] * len(VERSES)))
    words = ("--loss", loss, "--epochs", "4", "--pairs", "yes.jsonl", "--batch_size", "2")
    start(monkeypatch, "paraphrase", *words, checkpoint=trained["paraphrase"])
    folder = run_path("runs", f"paraphrase-{loss}-*")
    history = metrics(folder)
    assert history[-1]["train_loss"] < history[0]["train_loss"] and history[-1]["train_acc"] == 1
    words = ("--data_dir", "data", "--checkpoint", folder / "best.safetensors")
    capsys.readouterr()
    call_main(monkeypatch, "paraphrase_detection", *words)
    chosen = min(history, key=lambda record: record["dev_loss"])
    assert f"dev acc :: {chosen['dev_acc']:.3f}" in capsys.readouterr().out


def test_adapters_on_a_fine_tuned_backbone_are_loaded_with_that_backbone(
    trained, place, monkeypatch
):
    words = ("--epochs", "1", "--kinds", "shuffled", "--extension", "lora:rank=2")
    start(monkeypatch, "sonnet", *words, checkpoint=trained["sonnet"])
    best = run_path("runs", "sonnet-dpo-*/best.safetensors")
    stored = load_tree(best)["model"]
    assert all(name.endswith((".A.weight", ".B.weight")) for name in stored), list(stored)
    model, settings = sonnet_generation.TASK.load(best)
    tuned = load_tree(trained["sonnet"])["model"]
    name = "gpt.word_embedding.weight"
    assert torch.equal(model.state_dict()[name], tuned[name])
    assert settings.extension == ["lora:rank=2"]


def test_an_interrupted_run_goes_on_to_the_same_bits_with_the_references_it_had(
    trained, place, monkeypatch, capsys
):
    words = ("--epochs", "2", "--kinds", "shuffled", "truncated")
    words = (*words, "--extension", "lora:rank=2,dropout=0.3")
    start(monkeypatch, "sonnet", *words, "--runs_dir", "whole", checkpoint=trained["sonnet"])
    steps, step = [], Trainer.step

    def interrupted(trainer, group):
        step(trainer, group)
        steps.append(trainer)
        if len(steps) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "step", interrupted)
    words = (*words, "--save_minutes", "0")
    with pytest.raises(SystemExit):
        start(monkeypatch, "sonnet", *words, checkpoint=trained["sonnet"])
    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(preference_data, "with_reference", None)
    start(monkeypatch, "sonnet", *words, "--resume", checkpoint=trained["sonnet"])
    assert "resumed at epoch 1, step 1" in capsys.readouterr().out
    one, other = (
        load_tree(run_path(root, "*/best.safetensors"))["model"] for root in ("whole", "runs")
    )
    assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def outcome(root) -> dict:
    """Pairs, weights and figures of the one run in a folder, in which nothing else is."""
    folder = run_path(root)
    files = {"config.json", "metrics.jsonl", "best.safetensors", "last.safetensors"}
    files |= {"resources.json", "pairs-train.jsonl", "pairs-dev.jsonl"}
    assert {path.name for path in folder.glob("[!.]*")} == files
    return {
        "pairs": [(folder / f"pairs-{split}.jsonl").read_bytes() for split in ("train", "dev")],
        "weights": [
            t.numpy().tobytes() for t in load_tree(folder / "best.safetensors")["model"].values()
        ],
        "figures": [record | {"seconds": 0} for record in metrics(folder)],
    }


@pytest.mark.parametrize("end", [interrupt, kill])
def test_interrupted_before_training_it_goes_on_to_the_same_bits(
    end, trained, place, monkeypatch, capsys
):
    """While it samples, computes π_ref, writes the pairs; then before training has saved."""
    monkeypatch.setattr(preference_data, "PROMPTS", 4)  # 3 parts of train, 1 of dev
    monkeypatch.setattr(preference_data, "SAVES", 3)
    words = ("--epochs", "1", "--kinds", "sampled", "shuffled", "--batch_size", "4")

    def run(*more):
        start(monkeypatch, "sonnet", *words, *more, checkpoint=trained["sonnet"])

    run("--runs_dir", "whole")
    kept = "pairs-unfinished.jsonl"
    moments = [(kept, 3), (kept, 4), ("pairs-train.jsonl", 2), (kept, 1), ("last.safetensors", 1)]
    for i, (name, number) in enumerate(moments):
        with monkeypatch.context() as patch:
            at_file(patch, name, number, end)
            status = in_child(lambda i=i: run(*["--resume"][: i > 0]))
        assert ended_by(status, end), name
        assert run_path("runs", "*/").joinpath(kept).exists() == (name != "last.safetensors")
    monkeypatch.setattr(preference_data, "keep_pairs", None)
    run("--resume")
    assert "At the start: dev loss :: 0.693" in capsys.readouterr().out
    assert outcome("runs") == outcome("whole")


def test_what_was_sampled_is_not_sampled_again(trained, place, monkeypatch, capsys):
    monkeypatch.setattr(preference_data, "PROMPTS", 4)
    words = ("--kinds", "sampled", "--pairs_only")
    with pytest.raises(SystemExit), monkeypatch.context() as patch:
        at_file(patch, "pairs-unfinished.jsonl", 3, interrupt)
        start(patch, "sonnet", *words, checkpoint=trained["sonnet"])
    complete, sampled = preference_data.complete, []
    monkeypatch.setattr(
        preference_data, "complete", lambda *a: (sampled.extend(a[1]), complete(*a))[1]
    )
    start(monkeypatch, "sonnet", *words, "--resume", checkpoint=trained["sonnet"])
    assert "resumed: 8 texts and pairs of log-probabilities" in capsys.readouterr().out
    assert len(sampled) == 4 + 4  # the last of train, and dev
    start(monkeypatch, "sonnet", *words, "--resume", checkpoint=trained["sonnet"])
    assert len(sampled) == 8


@pytest.mark.parametrize("what", ["model", "data"])
def test_another_model_or_data_does_not_go_on_with_these_samples(
    what, trained, place, monkeypatch, capsys
):
    write("own.txt", Path("data/sonnets.txt").read_text(encoding="utf-8"))
    words = ("--kinds", "sampled", "--sonnet_path", "own.txt")
    with pytest.raises(SystemExit), monkeypatch.context() as patch:
        at_file(patch, "pairs-unfinished.jsonl", 2, interrupt)
        start(patch, "sonnet", *words)
    if what == "data":
        write("own.txt", Path("data/sonnets.txt").read_text(encoding="utf-8") + "my love\n")
    else:
        Path("model").unlink()
        write_model("model", dropout=0.1, seed=1)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        start(monkeypatch, "sonnet", *words, "--resume")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert f"pairs-unfinished.jsonl: of a run that differs from this one in {what}: give" in error


@pytest.mark.parametrize("name", ["tokenizer", "train rows", "dev rows"])
def test_a_run_that_was_trained_on_something_else_does_not_go_on(name, place, monkeypatch, capsys):
    words = ("--epochs", "2", "--kinds", "shuffled", "--save_minutes", "0")
    evaluate, count = dpo.evaluate, iter(range(9))

    def stopped(*arguments):
        if next(count) == 2:  # after the start's and the first epoch's
            raise KeyboardInterrupt
        return evaluate(*arguments)

    with pytest.raises(SystemExit), monkeypatch.context() as patch:
        patch.setattr(dpo, "evaluate", stopped)
        start(patch, "sonnet", *words)
    last = run_path("runs", "*/last.safetensors")
    tree = load_tree(last)
    assert tree["inputs"].keys() == {"tokenizer", "train rows", "dev rows"}
    save_tree(last, tree | {"inputs": tree["inputs"] | {name: "0" * 32}})
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        start(monkeypatch, "sonnet", *words, "--resume")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and f"have changed since it was written: {name}: put" in error


def test_pairs_are_tokenized_once(trained, place, monkeypatch):
    made, build = [], TextPairs.__init__
    monkeypatch.setattr(
        TextPairs, "__init__", lambda self, *a, **how: (made.append(how), build(self, *a, **how))[1]
    )
    start(monkeypatch, "sonnet", "--kinds", "shuffled", "--epochs", "1")
    assert [Path(how["where"]).name for how in made] == ["pairs-train.jsonl", "pairs-dev.jsonl"]


def test_pairs_can_be_built_looked_at_and_trained_on_later(place, monkeypatch, capsys):
    words = ("--kinds", "repeated", "--epochs", "1")
    monkeypatch.setattr(dpo, "fit", None)
    start(monkeypatch, "sonnet", *words, "--pairs_only")
    path = run_path("runs", "*/pairs-train.jsonl")
    assert str(path) in capsys.readouterr().out.splitlines()[-1]
    saved = load_pairs(path)
    assert len(saved) == 12 and all(len(pair.reference) == 2 for pair in saved)
    seen = []
    monkeypatch.setattr(dpo, "fit", lambda model, loader, **_: seen.extend(loader.dataset.pairs))
    start(monkeypatch, "sonnet", *words, "--pairs", path, "--runs_dir", "others")
    assert seen == saved


@pytest.mark.parametrize(
    "words, said",
    [
        (("--beta", "0"), "--beta 0.0: expected a number above 0"),
        (("--gamma", "-1"), "--gamma -1.0: expected at least 0"),
        (("--extension", "smart"), "--extension smart: it acts on a task's loss"),
        (("--pairs", "none.jsonl"), "none.jsonl: no such file: expected pairs"),
        (("--pairs", "bad.jsonl"), "bad.jsonl, line 1: no JSON"),
        (("--task", "paraphrase", "--pairs", "texts.jsonl"), "pairs-train.jsonl, pair 1: the ans"),
        (("--checkpoint", "other.safetensors"), "a checkpoint of task 'sst', expected 'sonnet'"),
        (("--resume",), "--resume: no runs/sonnet-dpo-model-"),
        (("--sonnet_path", "short.txt"), "sonnet 1: 1 lines after the prompt's 3"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(words, said, place, monkeypatch, capsys):
    write("bad.jsonl", "not json\n")
    write("texts.jsonl", GOOD + "\n")
    lines = "\n".join(VERSES[:4])
    write("short.txt", f"1\n{lines}\n\n2\n{lines}\n")
    save_tree("other.safetensors", {"task": "sst", "settings": {}, "model": {}})
    monkeypatch.setattr(dpo, "fit", None)
    with pytest.raises(SystemExit) as stop:
        start(monkeypatch, "sonnet", "--kinds", *CORRUPTIONS, *words)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and said in error, error


def test_adapters_are_not_put_on_adapters(trained, place, monkeypatch, capsys):
    words = ("--epochs", "1", "--kinds", "shuffled", "--extension", "lora:rank=2")
    start(monkeypatch, "sonnet", *words)
    best = run_path("runs", "sonnet-dpo-*/best.safetensors")
    start(monkeypatch, "sonnet", *words[:4], "--runs_dir", "more", checkpoint=best)
    assert load_tree(run_path("more", "*/best.safetensors"))["settings"]["extension"] == [words[5]]
    with pytest.raises(SystemExit):
        start(monkeypatch, "sonnet", *words, checkpoint=best)
    assert "whose parameters are trained on: leave it out" in capsys.readouterr().err
