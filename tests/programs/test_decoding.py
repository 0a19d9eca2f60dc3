"""Decoding against transformers, slow searches without caches, and the form that it guarantees."""

import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from children import in_child
from course_files import call_main, work_in, write, write_model
from task_checkpoints import build, save
from test_unfinished_work import at_file, ended_by, interrupt, kill
from torch.nn import functional as F
from transformers import (
    GPT2LMHeadModel,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TypicalLogitsWarper,
)

from config import GPT2Config
from engine.errors import InputError
from engine.files import ROOT
from engine.generation import generate
from engine.hub import save_gpt2
from engine.prediction_files import write_sonnets
from engine.records import Record, read_sonnets
from engine.sonnets import verses
from models.gpt2 import GPT2Model
from programs.decoding import decoding, sonnet_form, sonnet_writer
from programs.decoding.decoding import complete, get_args
from programs.decoding.named import STRATEGIES, load_strategy
from programs.decoding.rows import Rows
from programs.decoding.rules import contrastive_scores, keep_min_p, keep_typical, repeat_less
from programs.decoding.search import beam_search
from programs.decoding.strategies import Job
from sonnet_generation import SonnetGPT

DECODING = "programs.decoding.decoding"
V, NEVER = 369, 399  # the vocabulary, and an end token outside it
IDS = torch.tensor([[7, 11, 260, 13, 40], [300, 9, 9, 0, 0], [5, 0, 0, 0, 0]])
MASK = (IDS != 0).long()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("decoding") / "model", positions=1024)


@pytest.fixture(scope="module")
def model(folder):
    """Random weights, wider than usual, so that texts differ and do not repeat one token."""
    model = SonnetGPT(SimpleNamespace(model_size=str(folder))).eval()
    assert model.gpt.config.vocab_size == V
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.gpt.gpt_layers.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.3)
        model.gpt.word_embedding.weight.mul_(20)
    return model


@pytest.fixture(scope="module")
def theirs(model, folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("theirs")
    save_gpt2(model.gpt, path)
    return GPT2LMHeadModel.from_pretrained(path, dtype=torch.float32).eval()


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def alone():
    return [IDS[i : i + 1, : MASK[i].sum()] for i in range(len(IDS))]


def run(model, flag: str, ids=IDS, mask=MASK, most=12, end=NEVER, seed=0) -> list[list[int]]:
    class To(Job):
        pass

    To.end = end
    job = To(model, ids, mask, most=most, generator=torch.Generator().manual_seed(seed))
    return [text.tolist() for text in load_strategy(flag)(job)]


def logits_of(rows=6, v=50, seed=0):
    return 3 * torch.randn(rows, v, generator=torch.Generator().manual_seed(seed))


def log_p_of(model, text: list[int], given: int) -> float:
    """log p of what follows the given tokens, by one pass without a cache."""
    ids = torch.tensor([text])
    log_p = model.gpt.hidden_state_to_token(model.gpt(ids)["last_hidden_state"]).log_softmax(-1)
    return float(log_p[0, :-1].gather(1, ids[0, 1:, None])[given - 1 :].sum())


# -- rules -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_the_repetition_penalty_is_transformers(penalty):
    logits, tokens = logits_of(), torch.randint(50, (6, 9))
    seen = torch.zeros(6, 50, dtype=torch.bool).scatter(1, tokens, True)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(tokens, logits.clone())
    assert torch.equal(repeat_less(logits, seen, penalty), expected)
    assert not torch.equal(expected, logits)


@pytest.mark.parametrize("p", [0.0, 0.02, 0.3, 1.0])
def test_min_p_is_transformers(p):
    kept = keep_min_p(logits_of(), p)
    assert torch.equal(kept, MinPLogitsWarper(p)(None, logits_of()))
    assert int(kept.isfinite().sum(dim=1).min()) >= 1


@pytest.mark.parametrize("mass", [0.05, 0.3, 0.9, 0.999])
def test_typical_is_transformers(mass):
    for seed in range(5):
        logits = logits_of(seed=seed)
        assert torch.equal(keep_typical(logits, mass), TypicalLogitsWarper(mass)(None, logits))


def test_typical_keeps_the_fewest_of_equals_and_copes_with_what_was_cut_before():
    logits = torch.zeros(1, 10)
    assert int(keep_typical(logits, 0.25).isfinite().sum()) == 3
    logits[0, :5] = -torch.inf
    kept = keep_typical(logits, 0.5)[0]
    assert kept[:5].isinf().all() and int(kept[5:].isfinite().sum()) == 3
    assert torch.equal(keep_typical(logits, 1.0), logits)


def test_contrastive_scores_are_equation_5_written_out():
    torch.manual_seed(0)
    p, h, context = torch.rand(2, 3), torch.rand(2, 3, 8), torch.randn(2, 5, 8)
    context[1, :2] = -context[1, :2].abs()  # unlike all candidates, while the padding is like them
    present = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    found = contrastive_scores(p, h, context=context, present=present, alpha=0.6)
    for row, candidate in itertools.product(range(2), range(3)):
        cosines = [
            float(F.cosine_similarity(h[row, candidate], context[row, j], dim=0))
            for j in range(5)
            if present[row, j]
        ]
        expected = 0.4 * float(p[row, candidate]) - 0.6 * max(cosines)
        assert float(found[row, candidate]) == pytest.approx(expected, abs=1e-6)


ALLOWED = {
    "min_p:p=0.2,temperature=1.5": lambda x: MinPLogitsWarper(0.2)(None, x / 1.5),
    "typical:mass=0.4,temperature=0.8": lambda x: TypicalLogitsWarper(0.4)(None, x / 0.8),
    "sample:top_k=5,top_p=1,temperature=2": lambda x: x.masked_fill(
        x < x.topk(5).values[:, -1:], -torch.inf
    ),
    "best_of:top_k=3,top_p=1": lambda x: x.masked_fill(x < x.topk(3).values[:, -1:], -torch.inf),
}


@pytest.mark.parametrize("flag", ALLOWED)
def test_no_token_outside_the_allowed_set_is_ever_drawn_and_all_inside_are(flag):
    """4,000 draws: each token comes about as often as its renormalised probability says."""
    strategy, logits = load_strategy(flag), logits_of(rows=1, v=30) / 2
    allowed = ALLOWED[flag](logits)
    pick = strategy.pick(torch.Generator().manual_seed(1))
    drawn = torch.bincount(pick(logits.expand(4000, -1), None), minlength=30) / 4000
    assert drawn[allowed[0].isinf()].sum() == 0
    kept = ((logits / strategy.temperature)[0]).masked_fill(allowed[0].isinf(), -torch.inf)
    torch.testing.assert_close(drawn, kept.softmax(dim=0), atol=0.03, rtol=0)
    assert 1 < int(allowed.isfinite().sum()) < 30


# -- searches --------------------------------------------------------------------------------------


def test_a_text_is_read_once_and_its_states_are_those_of_a_pass_without_a_cache(model):
    rows = Rows(model.gpt, IDS, MASK, 6)
    for tokens in ([8, 9, 10], [11, 12, 13]):
        rows.append(torch.tensor(tokens), where=torch.tensor([True, False, True]))
    rows = rows.select(torch.tensor([2, 0, 0, 1]))
    rows.append(torch.tensor([20, 21, 22, 23]))
    logits = rows.logits()
    assert rows.lengths.tolist() == [4, 8, 8, 4]
    for i, text in enumerate(rows.texts()):
        whole = model.gpt(text[None])["last_hidden_state"][0]
        torch.testing.assert_close(rows.states[i, : len(text)], whole, atol=1e-3, rtol=1e-3)
        expected = model.gpt.hidden_state_to_token(whole[-1:])[0]
        torch.testing.assert_close(logits[i], expected, atol=1e-2, rtol=1e-3)


def test_greedy_sampling_is_generate_and_the_repetition_penalty_transformers(model, theirs):
    expected = generate(model.gpt, IDS, MASK, max_new_tokens=20, temperature=0)
    plain = run(model, "sample:temperature=0", most=20)
    assert plain == [row.tolist() for row in expected]
    found = run(model, "sample:temperature=0,repetition=1.4", most=20)
    how = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": NEVER, "pad_token_id": NEVER}
    for row, ids in zip(found, alone(), strict=True):
        assert row == theirs.generate(ids, repetition_penalty=1.4, **how)[0].tolist()
    assert found != plain


@pytest.mark.parametrize("beams, penalty", [(1, 1.0), (3, 1.0), (4, 0.0), (5, 2.0), (5, -1.0)])
def test_beam_search_is_transformers(model, theirs, beams, penalty):
    """With end tokens that texts want, too; all texts and scores of the pool, each prompt alone."""
    wanted = [row[-2] for row in run(model, "sample:temperature=0", most=8)]
    finished = set()
    for end in (NEVER, *wanted):
        rows = Rows(model.gpt, IDS, MASK, 12)
        found = beam_search(rows, beams=beams, length_penalty=penalty, end=end)
        for hypotheses, ids in zip(found, alone(), strict=True):
            expected = theirs.generate(
                ids,
                max_new_tokens=12,
                num_beams=beams,
                num_return_sequences=beams,
                length_penalty=penalty,
                do_sample=False,
                eos_token_id=end,
                pad_token_id=end,
                return_dict_in_generate=True,
                output_scores=True,
            )
            scores = getattr(expected, "sequences_scores", None)
            if scores is not None:
                ours = torch.tensor([h.score for h in hypotheses])
                torch.testing.assert_close(ours, scores, atol=1e-3, rtol=1e-4)
            for hypothesis, sequence in zip(hypotheses, expected.sequences, strict=True):
                text = hypothesis.tokens.tolist()
                assert text == sequence[: len(text)].tolist()
                finished.add(text[-1] == end)
    assert finished == ({False} if penalty == 2.0 else {True, False})


def test_wide_beams_find_the_likeliest_of_all_texts():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=16,
    )  # fmt: skip
    tiny = SimpleNamespace(gpt=GPT2Model(config).eval())
    tiny.gpt.word_embedding.weight.mul_(40)
    texts = [[3, *added] for added in itertools.product(range(8), repeat=3) if 0 not in added]
    scores = [log_p_of(tiny, text, 1) for text in texts]
    best = max(scores)
    rows = Rows(tiny.gpt, torch.tensor([[3]]), torch.ones(1, 1, dtype=torch.long), 3)
    tiny.gpt.word_embedding.weight[0] = 0
    [found] = beam_search(rows, beams=49, length_penalty=0.0, end=0)
    whole = [h for h in found if len(h.tokens) == 4 and h.tokens[-1] != 0]
    assert whole[0].tokens.tolist() == texts[scores.index(best)]


def slow_diverse(model, prompt, *, beams, groups, diversity, most):
    """Algorithm 1 written out for one prompt, without caches and without an end token."""
    size = beams // groups
    beam = [[(0.0, prompt)] for _ in range(groups)]
    for _ in range(most):
        taken = torch.zeros(V)
        for g in range(groups):
            candidates = []
            for score, text in beam[g]:
                hidden = model.gpt(torch.tensor([text]))["last_hidden_state"][:, -1]
                log_p = model.gpt.hidden_state_to_token(hidden)[0].log_softmax(dim=-1)
                ranked = score + log_p - diversity * taken
                for token in ranked.topk(size).indices.tolist():
                    whole = score + float(log_p[token])
                    candidates.append((float(ranked[token]), whole, [*text, token]))
            candidates.sort(key=lambda found: -found[0])
            beam[g] = [(whole, text) for _, whole, text in candidates[:size]]
            for _, text in beam[g]:
                taken[text[-1]] += 1
    return sorted((found for group in beam for found in group), key=lambda found: -found[0])


@pytest.mark.parametrize("groups, diversity", [(2, 0.7), (4, 5.0), (1, 1.0)])
def test_diverse_beam_search_is_algorithm_1(model, groups, diversity):
    rows = Rows(model.gpt, IDS, MASK, 5)
    how = {"beams": 4, "groups": groups, "diversity": diversity}
    found = beam_search(rows, length_penalty=0.0, end=NEVER, **how)
    for hypotheses, ids in zip(found, alone(), strict=True):
        expected = slow_diverse(model, ids[0].tolist(), most=5, **how)
        assert [h.tokens.tolist() for h in hypotheses] == [text for _, text in expected]
        for hypothesis, (score, _) in zip(hypotheses, expected, strict=True):
            assert hypothesis.score == pytest.approx(score, abs=1e-2)


def test_groups_without_diversity_are_copies_and_with_much_of_it_part_at_once(model):
    def first_tokens(diversity):
        rows = Rows(model.gpt, IDS[:1], MASK[:1], 3)
        how = {"beams": 4, "groups": 4, "length_penalty": 1.0, "end": NEVER}
        [found] = beam_search(rows, diversity=diversity, **how)
        return [int(h.tokens[5]) for h in found]

    assert len(set(first_tokens(0.0))) == 1
    assert len(set(first_tokens(100.0))) == 4


def slow_contrastive(model, text, *, k, alpha, most):
    for _ in range(most):
        hidden = model.gpt(torch.tensor([text]))["last_hidden_state"]
        p = model.gpt.hidden_state_to_token(hidden[:, -1])[0].softmax(dim=-1)
        scores = {}
        for token in p.topk(k).indices.tolist():
            state = model.gpt(torch.tensor([[*text, token]]))["last_hidden_state"][0, -1]
            cosines = F.cosine_similarity(state[None], hidden[0], dim=-1)
            scores[token] = (1 - alpha) * float(p[token]) - alpha * float(cosines.max())
        text = [*text, max(scores, key=scores.get)]
    return text


def test_contrastive_search_is_the_search_without_caches(model):
    found = run(model, "contrastive:k=4,alpha=0.6", most=8)
    for row, ids in zip(found, alone(), strict=True):
        assert row == slow_contrastive(model, ids[0].tolist(), k=4, alpha=0.6, most=8)
    greedy = run(model, "sample:temperature=0", most=8)
    assert found != greedy
    assert run(model, "contrastive:k=4,alpha=0", most=8) == greedy
    assert run(model, "contrastive:k=1,alpha=0.9", most=8) == greedy


def test_best_of_n_is_the_likeliest_of_n_samples_by_the_model_s_own_probability(model):
    """The n samples are those of every prompt standing n times in a batch."""
    options = "temperature=1.3,top_p=0.95"
    repeated = IDS.repeat_interleave(5, dim=0), MASK.repeat_interleave(5, dim=0)
    drawn = itertools.chain(*run(model, f"sample:{options}", *repeated))
    end = Counter(drawn).most_common(1)[0][0]
    samples = run(model, f"sample:{options}", *repeated, end=end)
    found = {}
    for penalty in (0.0, 3.0):
        flag = f"best_of:n=5,length_penalty={penalty},{options}"
        found[penalty] = run(model, flag, end=end)
        for i, row in enumerate(found[penalty]):
            given = int(MASK[i].sum())
            own = samples[5 * i : 5 * i + 5]
            scores = [log_p_of(model, text, given) / (len(text) - given) ** penalty for text in own]
            assert row == own[scores.index(max(scores))]
    assert found[0.0] != found[3.0]


@pytest.mark.parametrize(
    "flag", ["sample:temperature=0", "beam", "diverse_beam", "contrastive", "min_p:p=1"]
)
def test_each_prompt_is_continued_as_alone_and_the_end_token_ends_it(model, flag):
    end = run(model, "sample:temperature=0", most=4)[1][-1]
    together = run(model, flag, end=end)
    for row, ids in zip(together, alone(), strict=True):
        assert row == run(model, flag, ids, torch.ones_like(ids), end=end)[0]
        added = row[ids.shape[1] :]
        assert end not in added[:-1] and (len(added) == 12 or added[-1] == end)


def test_texts_end_at_the_model_s_last_position(model):
    ids = torch.randint(1, 300, (1, 1020))
    for flag in ("sample", "beam:beams=2", "contrastive"):
        [row] = run(model, flag, ids, torch.ones_like(ids), most=50)
        assert len(row) == 1024
    with pytest.raises(InputError, match="leaves no room"):
        run(model, "sample", torch.ones(1, 1024).long(), torch.ones(1, 1024).long())


# -- the form of sonnets ---------------------------------------------------------------------------

needs_dictionary = pytest.mark.skipif(
    find_spec("pronouncing") is None, reason="pip install -r requirements-optional.txt"
)
PROMPTS = [
    Record(
        "1", "From fairest creatures we desire increase,\nThat thereby beauty's rose\nBright eyes"
    ),
    Record("2", "The rose is red\n\nMy love burns"),  # two lines, and a blank one
    Record("3", "One\nTwo qwrtz\nThree, and month"),  # what has no rhyme at all
    Record("4", "Shall I\nWho will believe my verse in time to come\nThe age to come"),
]


@pytest.fixture(scope="module")
def stubborn(folder):
    """A model that wants nothing but to end the text, or failing that, the line."""
    model = SonnetGPT(SimpleNamespace(model_size=str(folder))).eval()
    with torch.no_grad():
        model.gpt.final_layer_norm.weight.zero_()
        wanted = model.gpt.word_embedding.weight[[model.tokenizer.eos_token_id]].sum(0)
        newline = model.gpt.word_embedding.weight[model.tokenizer.encode("\n")].sum(0)
        model.gpt.final_layer_norm.bias.copy_(4000 * wanted + 3000 * newline)
    return model


def sonnets_of(model, flag="sonnet", seed=0, prompts=PROMPTS) -> list[str]:
    args = get_args(["--seed", str(seed)])
    return [s.text for s in complete(model, prompts, load_strategy(flag), args)]


def check_form(text: str, prompt: str) -> list[str]:
    """14 lines, and the scheme wherever the dictionary has a rhyme; returns what was added."""
    rhymes = sonnet_form.dictionary().rhymes
    given = verses(prompt)
    lines = text.splitlines()
    assert lines[: len(given)] == given
    lines = [line for line in lines if line.strip()]
    assert len(lines) == 14
    added = lines[len(given) :]
    for line in added:
        assert re.fullmatch(r"[A-Z][A-Za-z']*([,.;:!?]? [A-Za-z][A-Za-z']*)*[,.;:!?]?", line), line
    ends = [re.findall(r"[a-z']+", line.lower())[-1].strip("'") for line in lines]
    for pair in ((1, 3), (4, 6), (5, 7), (8, 10), (9, 11), (12, 13)):
        first, second = (ends[i] for i in pair)
        if rhymes(first):
            assert second in rhymes(first), (first, second)
        else:
            assert pair[0] < len(given), f"{first}: a last word of ours without a rhyme"
    return added


@needs_dictionary
@pytest.mark.parametrize("flag", ["sonnet", "sonnet:temperature=0", "sonnet:temperature=5,top_p=1"])
def test_a_random_model_writes_fourteen_lines_that_rhyme(model, flag):
    for text, prompt in zip(sonnets_of(model, flag), PROMPTS, strict=True):
        check_form(text, prompt.text)


@needs_dictionary
def test_a_model_that_only_wants_to_end_writes_them_too(stubborn):
    plain = run(stubborn, "sample", end=stubborn.tokenizer.eos_token_id)
    assert all(len(row) == int(n) + 1 for row, n in zip(plain, MASK.sum(dim=1), strict=True))
    for text, prompt in zip(sonnets_of(stubborn), PROMPTS, strict=True):
        check_form(text, prompt.text)


@needs_dictionary
def test_lines_have_about_ten_syllables_or_as_many_as_are_asked_for(model):
    for budget in (10, 6):
        counts = [
            sonnet_form.count_syllables(line)
            for text, prompt in zip(
                sonnets_of(model, f"sonnet:syllables={budget}"), PROMPTS, strict=True
            )
            for line in check_form(text, prompt.text)
        ]
        assert abs(sum(counts) / len(counts) - budget) < 1
        assert sum(abs(count - budget) <= 1 for count in counts) > 0.8 * len(counts)


@needs_dictionary
def test_a_text_ends_with_the_end_token_and_the_seed_decides_it(model):
    prompt = torch.tensor([model.tokenizer.encode("The rose\nMy love\nThe sun\n")])
    how = {"ids": prompt, "mask": torch.ones_like(prompt), "end": model.tokenizer.eos_token_id}
    [row] = run(model, "sonnet", **how)
    assert row.count(model.tokenizer.eos_token_id) == 1 and row[-1] == model.tokenizer.eos_token_id
    assert [row] == run(model, "sonnet", **how) != run(model, "sonnet", **how, seed=1)


@needs_dictionary
def test_sonnets_in_one_batch_are_written_as_each_alone(model):
    together = sonnets_of(model, "sonnet:temperature=0")
    apart = [sonnets_of(model, "sonnet:temperature=0", prompts=[p])[0] for p in PROMPTS]
    assert together == apart and len(set(together)) == len(PROMPTS)


@needs_dictionary
def test_no_token_outside_the_automaton_s_set_is_ever_drawn(model, monkeypatch):
    masks = []
    choose = sonnet_writer.choose

    def spy(logits, *rest, **how):
        chosen = choose(logits, *rest, **how)
        masks.append(logits.gather(1, chosen[:, None]))
        assert logits.isfinite().any(dim=1).all()
        return chosen

    monkeypatch.setattr(sonnet_writer, "choose", spy)
    sonnets_of(model, "sonnet:temperature=3,top_p=1")
    assert torch.cat(masks).isfinite().all() and len(masks) > 50


@needs_dictionary
def test_the_last_word_is_the_one_that_the_model_likes_best(model):
    """Brute force over all words that rhyme, each with a pass of its own without a cache."""
    form = sonnet_form.SonnetForm(model.tokenizer, V, vocabulary={"day", "say", "away", "play"})
    text = "The rose is\nMy love may\nThe sun\nThe rose is red and my love is good to"
    ids = model.tokenizer.encode(text)
    begin = len(model.tokenizer.encode(text[: text.rindex("\n") + 1]))
    rows = Rows(model.gpt, torch.tensor([ids]), torch.ones(1, len(ids)).long(), 900)
    how = {"temperature": 0, "top_p": 1.0, "candidates": 100}
    writer = sonnet_writer.Writer(rows, form, **how)
    ends = ["is", "may", "sun"]
    choices = form.choices(ends)
    writer.poems = [sonnet_writer.Poem(list(ends), begin, choices)]
    left = 10 - sonnet_form.count_syllables(text.splitlines()[-1])
    allowed = choices.nearest(left, used=ends)
    assert {"day", "say", "play"} <= set(allowed) and "away" not in allowed
    ending = torch.cat([form.marks.nonzero()[:, 0], torch.tensor([form.newline, form.end])])

    def score(word):
        whole = [*ids, *model.tokenizer.encode(f" {word}")]
        hidden = model.gpt(torch.tensor([whole]))["last_hidden_state"][:, -1]
        last = model.gpt.hidden_state_to_token(hidden)[0].log_softmax(dim=-1)
        return log_p_of(model, whole, len(ids)) + float(last[ending].logsumexp(dim=0))

    scores = {word: score(word) for word in allowed}
    found = writer.score(rows, [choices.words[word] for word in allowed])
    torch.testing.assert_close(found, torch.tensor(list(scores.values())), atol=1e-3, rtol=1e-4)
    writer.write_last_word(0)
    assert writer.poems[0].ends[-1] == max(scores, key=scores.get)
    assert model.tokenizer.decode(rows.texts()[0]).endswith(f" {writer.poems[0].ends[-1]}")


@pytest.fixture(scope="module")
def form(model):
    return sonnet_form.SonnetForm(model.tokenizer, V, vocabulary={"day", "away", "superb"})


@needs_dictionary
def test_what_the_automaton_lets_through(model, form):
    """A capital; then words, their endings and marks, while there is room for a last word."""
    encode = model.tokenizer.encode
    choices = sonnet_form.Choices({"day": [1], "superb": encode(" superb")})
    assert len(choices.words["superb"]) == 1

    def allowed(text, most=40):
        mask = form.body(encode(text), choices, most)
        if mask is None:
            return None
        names = model.tokenizer.convert_ids_to_tokens(mask.nonzero()[:, 0].tolist())
        assert not any(re.search("[^A-Za-z,.;:!?'Ġ]", name) for name in names)
        return {name.replace("Ġ", " ") for name in names}

    assert {"A", "Z"} <= allowed("") and not {" the", "a", ","} & allowed("")
    assert {" the", " superb", "a", ","} <= allowed("The rose") and "A" not in allowed("The rose")
    assert " the" in allowed("The rose,") and not {"a", ","} & allowed("The rose,")
    assert "a" not in allowed("The zxqwj")  # a word of many tokens
    eight = "The rose is red the rose is red"
    assert {" the", " superb"} <= allowed(eight)  # two are left: one and the last, or superb
    assert form.closes(encode(" superb")[0], encode(eight), choices)
    assert not form.closes(encode(" the")[0], encode(eight), choices)
    assert not form.closes(encode(" superb")[0], encode("The rose is red"), choices)
    assert allowed(eight + " the") is None and allowed("The rose", most=3) is None


@needs_dictionary
def test_a_word_that_the_model_thinks_unfinished_goes_on_before_the_last_one(model, form):
    ids = model.tokenizer.encode("The rose is red the rose is red be")
    rows = Rows(model.gpt, torch.tensor([ids]), torch.ones(1, len(ids)).long(), 900)
    writer = sonnet_writer.Writer(rows, form, temperature=0, top_p=1.0, candidates=9)
    writer.poems = [sonnet_writer.Poem(["red"], 0, form.beginnings)]
    logits = torch.zeros(V)
    assert writer.may_follow(0, logits) is None
    logits[form.inside.nonzero()[0]] = 20.0
    assert torch.equal(writer.may_follow(0, logits), form.inside)
    rows.append(torch.tensor(model.tokenizer.encode(",")))
    assert writer.may_follow(0, logits) is None


@needs_dictionary
def test_last_words_are_new_ones_of_the_nearest_number_of_syllables():
    choices = sonnet_form.Choices({"day": [1], "away": [2, 3], "say": [4], "everyday": [5]})
    assert choices.nearest(1, used=["day"]) == ["say"]
    assert choices.nearest(1, used=["day", "say"]) == ["away"]
    assert choices.nearest(-2, used=[]) == ["day", "say"]
    assert choices.nearest(9, used=["everyday"]) == ["away"]
    assert choices.nearest(2, used=["day", "away", "say", "everyday"]) == ["away"]
    assert choices.single == {1: [1, 4], 2: [], 3: [5]}


@needs_dictionary
def test_another_pair_gets_another_rhyme(form):
    assert form.used(["rose", "day", "nose"]) == {"rose", "day", "nose"}  # the next has a partner
    free = form.used(["rose", "day", "nose", "say"])
    assert {"rose", "day", "nose", "say", "away"} <= free and "superb" not in free


@needs_dictionary
def test_a_model_with_too_few_positions_is_refused(tmp_path):
    small = SonnetGPT(
        SimpleNamespace(model_size=str(write_model(tmp_path / "small", positions=256)))
    )
    with pytest.raises(InputError, match="tokens a line, expected at least"):
        sonnets_of(small)


@needs_dictionary
@pytest.mark.parametrize(
    "word, count",
    [
        *[("beautiful", 3), ("love", 1), ("day", 1), ("oftentimes", 3), ("time's", 1)],
        *[("lov'st", 1), ("beguiled", 2), ("wondrously", 3), ("vouchsafeth", 3), ("hmm", 1)],
        *[("'gainst", 1), ("xylotables", 4), ("blazoned", 2), ("qwike", 1), ("qwittle", 2)],
    ],
)
def test_syllables_are_the_dictionary_s_and_else_groups_of_vowels(word, count):
    assert sonnet_form.syllables(word) == count


@needs_dictionary
def test_words_rhyme_as_the_pronouncing_library_says():
    words = ["love", "dove", "move", "day", "away", "sun", "son", "thee", "sea", "orange", "qwrtz"]
    for one, other in itertools.product(words, repeat=2):
        assert sonnet_form.do_rhyme(one, other) == (other in sonnet_form.dictionary().rhymes(one))
    form = "a day\na sun\na say\na one\na love\na red\na dove\na bed"
    rest = "a eye\na heart\na sky\na art\na see\na thee"
    whole = sonnet_form.form_report([f"{form}\n{rest}"])
    assert whole == {"rhymed": 1.0, "syllables": 2.0}
    assert sonnet_form.form_report([f"{form}\n"])["rhymed"] == pytest.approx(4 / 7)


@needs_dictionary
def test_words_that_sound_the_same_are_no_rhymes(model):
    form = sonnet_form.SonnetForm(model.tokenizer, V, vocabulary={"sun", "son", "one", "run"})
    assert set(form.rhymes("sun")) == {"one", "run"}
    assert set(form.rhymes("purple")) <= set(
        sonnet_form.dictionary().rhymes("purple")
    )  # of the dictionary


# -- flags and the program -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flag, said",
    [
        ("beem", "there are sample, min_p, typical, best_of, beam"),
        ("min_p:q=0.1", "option 'q=0.1', expected some of: p=0.1, temperature=1.5"),
        ("min_p:p", "option 'p', expected some of"),
        ("min_p:p=x", "p=x, expected float"),
        ("min_p:p=2", "p=2.0, expected from 0 to 1"),
        ("sample:temperature=-1", "temperature=-1.0, expected at least 0"),
        ("sample:temperature=nan", "temperature=nan, expected"),
        ("sample:repetition=0", "repetition=0.0, expected at least"),
        ("typical:mass=0", "mass=0.0, expected"),
        ("beam:beams=0", "beams=0, expected at least 1"),
        ("diverse_beam:beams=4,groups=3", "expected groups of equal size"),
        ("contrastive:alpha=1.5", "alpha=1.5, expected from 0 to 1"),
        ("best_of:n=0", "n=0, expected at least 1"),
        ("sonnet:syllables=1", "syllables=1, expected from 4 to 20"),
    ],
)
def test_what_makes_no_sense_is_answered_with_what_does(flag, said):
    with pytest.raises(InputError, match=r"^--strategy ") as error:
        load_strategy(flag)
    assert said in str(error.value)


def test_each_strategy_has_defaults_and_takes_options_of_each_kind():
    assert [load_strategy(name).name for name in STRATEGIES] == list(STRATEGIES)
    found = load_strategy("best_of:n=3,top_p=0.5")
    assert (found.n, found.top_p, found.temperature) == (3, 0.5, 1.2)


@pytest.fixture
def words(tmp_path, monkeypatch, data, folder):
    work_in(monkeypatch, tmp_path)
    return ["--data_dir", data, "--model_size", folder, "--max_new_tokens", "12"]


@needs_dictionary
def test_strategies_are_compared_on_the_same_prompts(words, data, tmp_path, monkeypatch, capsys):
    flags = [word for name in STRATEGIES for word in ("--strategy", name)]
    draft = save("draft.safetensors", "sonnet", *build("sonnet", words[3]))
    call_main(monkeypatch, DECODING, *words, *flags, "--limit", 2, "--draft", draft)
    said = capsys.readouterr().out
    for name in (*STRATEGIES, "random lines", "the poet's own"):
        assert re.search(rf"^{name} +\d", said, flags=re.MULTILINE)
        assert name not in STRATEGIES or f"2 sonnets by {name} are in" in said
    assert "rhymed" in said and "next: python evaluation.py" in said
    files = {path.name for path in (tmp_path / "predictions").iterdir()}
    ends = [f"{end}-{name}" for name in STRATEGIES for end in ("sonnets", "sonnets_dev")]
    assert files == {f"generated_{end}.txt".replace("-", ".limit-2-") for end in ends}
    prompts = read_sonnets(data / "sonnets_held_out.txt")
    for name in STRATEGIES:
        path = tmp_path / "predictions" / f"generated_sonnets.limit-2-{name}.txt"
        for prompt, sonnet in zip(prompts, read_sonnets(path), strict=False):
            assert sonnet.sent_id == prompt.sent_id and sonnet.text.startswith(prompt.text)


def test_one_strategy_writes_the_course_s_files_and_the_seed_decides(
    words, tmp_path, monkeypatch, capsys
):
    def texts(*flags):
        call_main(monkeypatch, DECODING, *words, "--dev_gold_path", "none", *flags)
        paths = sorted((tmp_path / "predictions").iterdir())
        assert [p.name for p in paths] == ["generated_sonnets.txt", "generated_sonnets_dev.txt"]
        return [path.read_bytes() for path in paths]

    first = texts("--seed", 1)
    assert first == texts("--seed", 1, "--strategy", "sample:temperature=1.2")
    assert first != texts("--seed", 2)
    assert first[0].startswith(b"--Generated Sonnets--\n")
    assert "chrf" not in capsys.readouterr().out


def test_a_checkpoint_of_sonnet_generation_is_decoded(words, tmp_path, monkeypatch):
    train = ["--epochs", 1, "--lr", "1e-2", "--temperature", 0]
    with torch.enable_grad():
        call_main(monkeypatch, "sonnet_generation", *words, *train)
    trained = (tmp_path / "predictions" / "generated_sonnets.txt").read_bytes()
    [best] = (tmp_path / "runs").glob("*/best.safetensors")
    greedy = ["--strategy", "sample:temperature=0", "--model_size", "nowhere"]
    call_main(monkeypatch, DECODING, *words, *greedy, "--checkpoint", best)
    assert (tmp_path / "predictions" / "generated_sonnets.txt").read_bytes() == trained


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--strategy", "beem"], "--strategy beem: there are"),
        (["--checkpoint", "none.safetensors"], "none.safetensors: no such checkpoint"),
        (["--sonnet_path", "none.txt"], "none.txt: no such file"),
        (["--batch_size", 0], "--batch_size 0: expected at least 1"),
        (["--sonnet_path", "short.txt"], "short.txt: 3 lines in all, expected at least 11"),
        (["--sonnet_out", "."], "a folder, expected the path of a file"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_the_files_are_left_alone(
    words, tmp_path, monkeypatch, refused, flags, said
):
    old = write(tmp_path / "predictions" / "generated_sonnets.txt", "old")
    write(tmp_path / "short.txt", "1\n\none\ntwo\nthree\n")
    with refused(said):
        call_main(monkeypatch, DECODING, *words, *flags)
    assert old.read_bytes() == b"old"


def test_gold_sonnets_in_another_order_give_the_same_figures(words, data, monkeypatch, capsys):
    gold = read_sonnets(data / "TRUE_sonnets_held_out_dev.txt")
    write_sonnets("gold.txt", gold[::-1])
    tables = []
    for flags in ([], ["--dev_gold_path", "gold.txt"]):
        call_main(monkeypatch, DECODING, *words, *flags, "--limit", 3)
        said = capsys.readouterr().out.splitlines()
        tables.append(
            [line for line in said if re.match(r"(sample|random lines|the poet) .*\d$", line)]
        )
    assert len(tables[0]) == 2 and tables[0] == tables[1]


# -- interruptions -----------------------------------------------------------------------------

SLOW = [
    "--strategy",
    "best_of:n=2",
    "--strategy",
    "sonnet" if find_spec("pronouncing") else "min_p",
]
SLOW += ["--batch_size", 2]  # 2 batches of each file by each strategy
KEPT = "generated_sonnets-unfinished.jsonl"


def decode(monkeypatch, words, *flags, out="predictions") -> dict[str, bytes]:
    """The texts of a whole run, and all else that is in the folder of its outputs."""
    outs = ["--sonnet_out", f"{out}/generated_sonnets.txt"]
    outs += ["--dev_sonnet_out", f"{out}/generated_sonnets_dev.txt"]
    call_main(monkeypatch, DECODING, *words, *SLOW, *outs, *flags)
    return {path.name: path.read_bytes() for path in Path(out).iterdir()}


@pytest.mark.parametrize("end", [interrupt, kill])
def test_an_interrupted_run_goes_on_to_the_very_texts(end, words, monkeypatch, capsys):
    """Three times: in a batch of the first file, right before an output, and in the last batch."""
    expected = decode(monkeypatch, words, out="whole")
    moments = [(KEPT, 2, 2), (f"generated_sonnets_dev-{SLOW[3]}.txt", 1, 8), (KEPT, 4, 13)]
    for i, (name, number, kept) in enumerate(moments):
        with monkeypatch.context() as patch:
            at_file(patch, name, number, end)
            status = in_child(lambda i=i: decode(monkeypatch, words, *["--resume"][: i > 0]))
        assert ended_by(status, end)
        lines = Path("predictions", KEPT).read_text(encoding="utf-8").splitlines()
        assert sum(len(json.loads(line)["made"]) for line in lines[1:]) == kept
    batches, collate = [], decoding.collate
    monkeypatch.setattr(decoding, "collate", lambda rows: (batches.append(rows), collate(rows))[1])
    assert decode(monkeypatch, words, "--resume") == expected
    assert "resumed: 13 sonnets are there already" in capsys.readouterr().out
    assert [len(rows) for rows in batches] == [1]


def test_the_real_command_killed_resumes(words, monkeypatch):
    """Another process, in which sets have another order."""
    expected = decode(monkeypatch, words, out="whole")
    flags = [*words, *SLOW]
    command = [sys.executable, "-m", "programs.decoding", *map(str, flags)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and not Path("predictions", KEPT).exists():
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
    resume = ["--resume"] if Path("predictions", KEPT).exists() else []  # it may have been faster
    assert decode(monkeypatch, words, *resume) == expected


def test_each_batch_has_draws_of_its_own(model):
    args = get_args(["--seed", "3", "--batch_size", "1"])
    sample = load_strategy("sample")
    one, other = (complete(model, PROMPTS[:2], sample, args) for _ in range(2))
    assert one == other
    twice = complete(model, [PROMPTS[0], PROMPTS[0]], sample, args)
    assert twice[0] == one[0] and twice[1] != one[0]


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--seed", 2], "seed"),
        (["--strategy", "sample"], "strategy"),
        (["--max_new_tokens", 13, "--batch_size", 3], "max_new_tokens, batch_size"),
        (["--held_out_sonnet_path", "other.txt"], "prompts"),
        (["--model_size", "other"], "model"),
    ],
)
def test_what_is_unfinished_is_gone_on_with_by_its_own_run_alone(
    flags, said, words, data, monkeypatch, refused, capsys
):
    write("other.txt", (data / "sonnets_held_out.txt").read_text(encoding="utf-8") + "thy rose\n")
    write_model("other", positions=1024, seed=1)
    with pytest.raises(SystemExit), monkeypatch.context() as patch:
        at_file(patch, KEPT, 2, interrupt)
        decode(patch, words)
    assert "--resume" in capsys.readouterr().err
    before = {path: path.read_bytes() for path in Path("predictions").iterdir()}
    with refused(f"predictions/{KEPT}: of a run that differs from this one in {said}: give"):
        decode(monkeypatch, words, "--resume", *flags)
    assert {path: path.read_bytes() for path in Path("predictions").iterdir()} == before


def test_without_unfinished_work_there_is_nothing_to_resume(words, monkeypatch, capsys):
    decode(monkeypatch, words, "--limit", 1)
    with pytest.raises(SystemExit):
        decode(monkeypatch, words, "--limit", 1, "--resume")
    kept = KEPT.replace("-unfinished", ".limit-1-unfinished")
    assert f"--resume: no predictions/{kept}: give the flags" in capsys.readouterr().err


@pytest.fixture
def no_dictionary(monkeypatch):
    """A machine without the package, whatever this one has."""
    sonnet_form.dictionary.cache_clear()
    monkeypatch.setitem(sys.modules, "pronouncing", None)
    yield
    sonnet_form.dictionary.cache_clear()


NEEDS = "the form of sonnets needs pronouncing: pip install pronouncing"


def test_without_the_dictionary_a_sonnet_s_form_says_what_to_install(
    no_dictionary, words, monkeypatch, capsys
):
    with pytest.raises(SystemExit) as stop:
        call_main(monkeypatch, DECODING, *words, "--strategy", "sonnet")
    assert stop.value.code == 2 and capsys.readouterr().err == f"error: {NEEDS}\n"


def test_without_the_dictionary_the_report_says_what_is_left_out(
    no_dictionary, words, monkeypatch, capsys
):
    call_main(monkeypatch, DECODING, *words, "--limit", 1)
    said = capsys.readouterr().out
    assert f"rhymes and syllables are not counted: {NEEDS}\n" in said
    assert "chrf" in said and "rhymed" not in said


@needs_dictionary
def test_with_the_dictionary_the_report_has_rhymes_and_syllables():
    new = [Record("1", "a word that no other test has, snollygoster")]
    assert {"rhymed", "syllables", "chrf"} <= decoding.report(new, new, new).keys()


def test_the_program_s_help_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['decoding', '--help']\n"
        "import programs.decoding.decoding as program\n"
        "try: program.main()\n"
        "except SystemExit as stop: code = stop.code\n"
        "heavy = {'transformers', 'sklearn', 'pandas', 'matplotlib', 'pronouncing'}\n"
        "print('loaded', code, sorted(heavy & sys.modules.keys()))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.endswith("loaded 0 []\n") and "min_p" in run.stdout


@pytest.mark.parametrize("module", [decoding, sonnet_form])
def test_the_module_says_where_it_differs_from_its_paper(module):
    assert re.search(r"\b(19|20)\d\d\b", module.__doc__)
    assert "Differs from the paper" in module.__doc__
