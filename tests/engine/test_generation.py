"""Text is what transformers generates, cached or not, alone or in a batch; draws are fair."""

import math

import pytest
import torch
from recorder import CallAgain
from transformers import GPT2LMHeadModel
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from config import GPT2Config
from engine.continuations import Continuations
from engine.errors import InputError
from engine.fast.attention import fused_causal_attention
from engine.generation import CachedDecoder, generate
from engine.recorder import RECORDERS
from engine.sampling import (
    ATTEMPTS,
    BlindChoice,
    choose,
    draw,
    draw_from_nucleus,
    keep_top_k,
    keep_top_p,
)
from models.gpt2 import GPT2Model
from modules.attention import CausalSelfAttention

VOCABULARY, POSITIONS = 41, 24
CONFIG = GPT2Config(
    vocab_size=VOCABULARY,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    max_position_embeddings=POSITIONS,
    initializer_range=0.4,
)
LENGTHS = [5, 2, 9, 1]


@pytest.fixture(scope="module")
def model() -> GPT2Model:
    torch.manual_seed(3)
    return GPT2Model(CONFIG).eval()


@pytest.fixture(scope="module")
def theirs(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return GPT2LMHeadModel.from_pretrained(folder).eval()


def prompts(lengths=LENGTHS, seed: int = 0) -> dict[str, torch.Tensor]:
    """Prompts of these lengths in one right-padded batch; what stands at padding is arbitrary."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(VOCABULARY, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {"input_ids": input_ids, "attention_mask": mask.long()}


def lists(rows) -> list[list[int]]:
    return [row.tolist() for row in rows]


def alone(batch, row: int) -> torch.Tensor:
    return batch["input_ids"][row : row + 1, : int(batch["attention_mask"][row].sum())]


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_text_is_that_of_transformers_for_each_prompt_of_a_batch(model, theirs, use_cache):
    batch = prompts()
    found = lists(generate(model, **batch, max_new_tokens=12, temperature=0, use_cache=use_cache))
    assert len({tuple(row[-12:]) for row in found}) == len(LENGTHS)
    for row in range(len(LENGTHS)):
        prompt = alone(batch, row)
        expected = theirs.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=12,
            pad_token_id=0,
        )
        assert found[row] == expected[0].tolist()
        assert len(set(found[row][-12:])) >= 3, "a text that repeats itself compares little"
        assert lists(generate(model, prompt, max_new_tokens=12, temperature=0)) == [found[row]]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0},
        {"temperature": 1.0},
        {"temperature": 1.5, "top_p": 0.8},
        {"temperature": 0.7, "top_k": 3},
        {"top_k": 10, "top_p": 0.05, "end_token": 7},
    ],
)
@pytest.mark.parametrize(
    "lengths, new", [(LENGTHS, 15), ([4, 4], 9), ([1], 30), ([23, 2, 20], 1), ([23, 2, 20], 30)]
)
def test_the_cache_changes_nothing(model, settings, lengths, new):
    found = [
        lists(
            generate(
                model,
                **prompts(lengths),
                max_new_tokens=new,
                use_cache=use_cache,
                generator=torch.Generator().manual_seed(5),
                **settings,
            )
        )
        for use_cache in (True, False)
    ]
    assert found[0] == found[1]


def test_a_generator_makes_samples_repeatable(model):
    def sample(seed):
        generator = torch.Generator().manual_seed(seed)
        return lists(generate(model, **prompts(), max_new_tokens=8, generator=generator))

    assert sample(1) == sample(1) != sample(2)


def test_each_token_is_read_once_at_its_own_position(model):
    read = []
    hook = model.pos_embedding.register_forward_pre_hook(
        lambda module, args: read.append(args[0].tolist())
    )
    try:
        generate(model, **prompts([5, 3]), max_new_tokens=6, temperature=0)
    finally:
        hook.remove()
    assert read[0] == [[0, 1, 2, 3, 4]] * 2
    assert read[1:] == [[[5 + i], [3 + i]] for i in range(5)]


def test_a_row_ends_with_its_end_token_whatever_the_others_do(model):
    batch = prompts()
    whole = lists(generate(model, **batch, max_new_tokens=12, temperature=0))
    end = whole[0][LENGTHS[0] + 2]
    expected = []
    for row, length in zip(whole, LENGTHS, strict=True):
        new = row[length:]
        kept = new[: new.index(end) + 1] if end in new else new
        expected.append(row[:length] + kept)
    assert len({len(row) - n for row, n in zip(expected, LENGTHS, strict=True)}) > 1
    for use_cache in (True, False):
        settings = {"max_new_tokens": 12, "temperature": 0, "use_cache": use_cache}
        assert lists(generate(model, **batch, end_token=end, **settings)) == expected


def test_a_row_ends_when_stop_says_so_and_is_not_asked_again(model):
    batch, asked = prompts(), []
    whole = lists(generate(model, **batch, max_new_tokens=9, temperature=0))

    def stop(tokens):
        asked.append(tokens.tolist())
        return len(tokens) % 5 == 0

    found = lists(generate(model, **batch, max_new_tokens=9, temperature=0, stop=stop))
    assert [len(row) for row in found] == [10, 5, 10, 5]
    for row, text in zip(whole, found, strict=True):
        assert row[: len(text)] == text
    expected = [
        row[:n]
        for row, length, text in zip(whole, LENGTHS, found, strict=True)
        for n in range(length + 1, len(text) + 1)
    ]
    assert sorted(asked) == sorted(expected)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("lengths", [[3], [23, 2], [10, 23, 1]])
def test_no_text_is_longer_than_the_positions(model, use_cache, lengths):
    settings = {"max_new_tokens": 100, "temperature": 0, "use_cache": use_cache}
    rows = generate(model, **prompts(lengths), **settings)
    assert [len(row) for row in rows] == [POSITIONS] * len(lengths)


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_row_at_the_last_position_and_one_before_it_do_not_disturb_each_other(model, use_cache):
    batch = prompts([22, 3], seed=1)
    settings = {"max_new_tokens": 15, "temperature": 0, "use_cache": use_cache}
    found = lists(generate(model, **batch, **settings))
    expected = [lists(generate(model, alone(batch, row), **settings))[0] for row in (0, 1)]
    assert found == expected and [len(row) for row in found] == [POSITIONS, 18]


def test_a_prompt_that_leaves_no_room_is_refused_with_both_numbers(model):
    with pytest.raises(InputError, match=r"24 tokens.*24 positions"):
        generate(model, **prompts([24, 2]), max_new_tokens=1)


def test_no_new_tokens_leaves_the_prompts_as_they_are(model):
    batch = prompts([5, 3])
    found = lists(generate(model, **batch, max_new_tokens=0, temperature=0))
    assert found == [batch["input_ids"][0].tolist(), batch["input_ids"][1, :3].tolist()]


def test_padding_wider_than_the_longest_prompt_is_cut_off(model):
    batch = prompts([5, 3])
    wide = {name: torch.nn.functional.pad(tensor, (0, 9)) for name, tensor in batch.items()}
    settings = {"max_new_tokens": 4, "temperature": 0}
    assert lists(generate(model, **wide, **settings)) == lists(generate(model, **batch, **settings))


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_evaluation_meanwhile_and_restored(training):
    torch.manual_seed(0)
    model, seen = GPT2Model(CONFIG).train(training), []
    model.gpt_layers[0].register_forward_pre_hook(lambda module, args: seen.append(module.training))
    generate(model, **prompts(), max_new_tokens=3)
    assert seen == [False] * 3 and model.training is training
    with pytest.raises(ZeroDivisionError):
        generate(model, **prompts(), max_new_tokens=3, stop=lambda tokens: 1 / 0)
    assert model.training is training and model.gpt_layers[0].training is training


def test_generation_keeps_no_graph(model):
    assert not any(row.requires_grad for row in generate(model, **prompts(), max_new_tokens=2))


# -- choosing ----------------------------------------------------------------------------------


def random_logits(rows: int = 20, v: int = VOCABULARY) -> torch.Tensor:
    """From nearly flat rows to rows that one token rules."""
    scale = torch.logspace(-1, 1.3, rows)[:, None]
    return scale * torch.randn(rows, v, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("k", [1, 2, 7, 40, 41, 99])
def test_top_k_keeps_what_transformers_keeps(k):
    logits = random_logits()
    assert torch.equal(keep_top_k(logits, k), TopKLogitsWarper(k)(None, logits))
    assert torch.equal(keep_top_k(logits, 0), logits)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9, 0.95, 0.999])
def test_top_p_keeps_what_transformers_keeps(p):
    logits = random_logits()
    found = keep_top_p(logits, p)
    assert torch.equal(found, TopPLogitsWarper(p)(None, logits))
    kept = found.isfinite().sum(dim=-1)
    assert (kept >= 1).all() and kept[-1] < VOCABULARY
    assert torch.equal(keep_top_p(logits, 1.0), logits)


def test_top_p_of_nothing_still_keeps_the_likeliest():
    logits = random_logits()
    assert keep_top_p(logits, 0.0).isfinite().sum(dim=-1).tolist() == [1] * 20
    assert torch.equal(draw_from_nucleus(logits.softmax(-1), 0.0), logits.argmax(-1))


def frequencies(probabilities, top_p: float, draws: int = 40_000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(11)
    rows = probabilities.expand(draws, -1)
    chosen = draw_from_nucleus(rows, top_p, generator)
    return torch.bincount(chosen, minlength=len(probabilities)) / draws


FLAT = torch.full((10,), 0.1) + torch.arange(10) * 1e-3
PEAKED = torch.tensor([0.001, 0.98, 0.004, 0.006, 0.009])
STEEP = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.04])


@pytest.mark.parametrize(
    "probabilities, top_p",
    [
        (STEEP, 1.0),
        (STEEP, 0.85),
        (STEEP, 0.6),
        (STEEP, 1e-4),
        (PEAKED, 0.985),
        (PEAKED, 0.3),
        (FLAT, 0.9),
        (FLAT, 0.15),
        (torch.cat([STEEP[:2] / 20, torch.full((96,), 0.01) + torch.arange(96) * 1e-6]), 0.03),
    ],
)
def test_draws_follow_the_renormalised_nucleus(probabilities, top_p):
    probabilities = probabilities / probabilities.sum()
    nucleus = keep_top_p(probabilities.log()[None], top_p).softmax(-1)[0]
    found, n = frequencies(probabilities, top_p), 40_000
    inside = nucleus > 0
    assert not found[~inside].any()
    chi_square = (n * (found - nucleus)[inside] ** 2 / nucleus[inside]).sum().item()
    freedom = int(inside.sum()) - 1
    assert chi_square <= freedom + 4 * (2 * freedom) ** 0.5


def test_a_small_nucleus_is_cut_out_after_a_few_draws(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "engine.sampling.draw", lambda *args: calls.append(0) or draw(*args), raising=True
    )
    flat = torch.full((50, 10_000), 1e-4)
    flat[:, 77] = 2e-4
    assert (draw_from_nucleus(flat, 1e-5) == 77).all()
    assert len(calls) <= ATTEMPTS + 1


def test_what_has_probability_0_is_never_drawn():
    probabilities = torch.tensor([[0.0, 0.0, 0.5, 0.0, 0.5, 0.0, 0.0]])
    running = probabilities.cumsum(-1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drawn = draw(running.repeat(5000, 1), generator)
    assert set(drawn.tolist()) == {2, 4}


@pytest.mark.parametrize("uniform, expected", [(0.0, 4), (1 - 2**-53, 2), (0.5, 2), (0.4999, 4)])
def test_the_extreme_random_numbers_draw_what_is_possible(monkeypatch, uniform, expected):
    monkeypatch.setattr(
        torch, "rand", lambda *shape, **options: torch.full(shape, uniform, dtype=torch.float64)
    )
    probabilities = torch.tensor([[0.0, 0.0, 0.5, 0.0, 0.5, 0.0, 0.0]])
    assert draw(probabilities.cumsum(-1, dtype=torch.float64)).tolist() == [expected]


def test_temperature_sharpens_and_0_takes_the_likeliest():
    logits = random_logits()
    assert torch.equal(choose(logits, 0), logits.argmax(-1))
    row, n = torch.tensor([1.0, 0.0, -1.0]), 40_000
    for temperature in (0.5, 1.0, 2.0):
        generator = torch.Generator().manual_seed(2)
        chosen = choose(row.expand(n, -1), temperature, generator=generator)
        found = torch.bincount(chosen, minlength=3) / n
        torch.testing.assert_close(found, (row / temperature).softmax(-1), rtol=0, atol=0.01)


@pytest.mark.parametrize("temperature", [0, 0.7])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(temperature, wrong):
    logits = torch.randn(3, VOCABULARY)
    logits[:, 4] = -math.inf  # an entry that is ruled out
    assert choose(logits, temperature, top_p=0.9).shape == (3,)
    logits[1, 7] = wrong
    with pytest.raises(InputError, match="a logit is not finite, so that no token can be drawn"):
        choose(logits, temperature, top_p=0.9)


def test_top_k_comes_before_top_p_and_both_cut():
    row = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    generator = torch.Generator().manual_seed(4)
    chosen = choose(row.expand(4000, -1), 1.0, top_k=3, top_p=0.7, generator=generator)
    assert set(chosen.tolist()) == {0, 1}
    chosen = choose(row.expand(4000, -1), 1.0, top_k=2, top_p=0.9, generator=generator)
    assert set(chosen.tolist()) == {0, 1}


@pytest.mark.parametrize("mask", [[[0, 1, 1]], [[1, 0, 1]], [[1, 1, 1], [0, 0, 0]]])
def test_padding_on_the_left_and_empty_prompts_are_refused(model, mask):
    """They would give a wrong text without a word."""
    mask = torch.tensor(mask)
    with pytest.raises(ValueError, match="padded on the right"):
        generate(model, torch.ones_like(mask), mask, max_new_tokens=2)


# -- shapes that a recording can replay --------------------------------------------------------


@pytest.mark.parametrize("lengths", [LENGTHS, [3], [23, 1]])
def test_reading_at_a_fixed_length_gives_the_same_text_and_draws(model, lengths):
    batch = prompts(lengths)
    for settings in ({"temperature": 0}, {"temperature": 1.2, "top_p": 0.9}):
        growing, fixed = (
            lists(
                generate(
                    model,
                    **batch,
                    max_new_tokens=12,
                    generator=torch.Generator().manual_seed(7),
                    record=record,
                    **settings,
                )
            )
            for record in (False, True)
        )
        assert fixed == growing


def test_all_tokens_after_the_prompt_are_read_in_the_same_shapes(model, monkeypatch):
    shapes = []

    def attend(query, key, *rest):
        shapes.append(key.shape[2])
        return fused_causal_attention(query, key, *rest)

    monkeypatch.setattr(CausalSelfAttention, "attend", staticmethod(attend))
    generate(model, **prompts(), max_new_tokens=6, record=True)
    layers, longest = CONFIG.num_hidden_layers, max(LENGTHS)
    assert shapes == [longest] * layers + [longest + 6] * 5 * layers


BLOCKS = {"max_new_tokens": 12, "look_every": 5}
SAMPLED = {"temperature": 1.2, "top_p": 0.9, "top_k": 50}


@pytest.mark.parametrize("settings", [{"temperature": 0}, SAMPLED])
@pytest.mark.parametrize("end_token", [None, 5])
def test_replayed_steps_give_the_same_text_and_draws(model, settings, end_token, monkeypatch):
    """The first token comes with the prompts, and the second gets ready for the recording."""
    recorder = CallAgain()
    monkeypatch.setitem(RECORDERS, "cpu", lambda device: recorder)
    plain, replayed = (
        lists(
            generate(
                model,
                **prompts(),
                **BLOCKS,
                **settings,
                end_token=end_token,
                generator=torch.Generator().manual_seed(7),
                record=record,
            )
        )
        for record in (False, True)
    )
    assert replayed == plain
    assert (recorder.eager, recorder.recorded) == (1, 1)
    assert recorder.replayed in ([13] if end_token is None else range(14))


def test_a_look_every_few_tokens_changes_no_greedy_text(model):
    settings = {"max_new_tokens": 12, "temperature": 0, "end_token": 5}
    seldom, each = (lists(generate(model, **prompts(), **settings, look_every=n)) for n in (5, 1))
    assert seldom == each


def test_no_number_is_looked_at_while_a_token_is_read_chosen_and_kept():
    """A recording could not do that; nor can the meta device."""
    texts = Continuations(torch.zeros(2, 4, dtype=torch.long), None, 8, 5, 12)
    with torch.device("meta"):
        decoder = CachedDecoder(GPT2Model(CONFIG), 12, fixed=True)
        decoder.read(torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 4, dtype=torch.long))
        logits = decoder.logits(*[torch.zeros(2, 1, dtype=torch.long)] * 2)
        assert logits.shape == (2, VOCABULARY)
        choice = BlindChoice(2, logits.device, 16, 0.7, top_k=3, top_p=0.9, generator=None)
    for name in ("tokens", "lengths", "ends", "done", "each"):
        setattr(texts, name, getattr(texts, name).to("meta"))
    texts.append(choice(logits))


def test_choices_without_a_look_are_drawn_from_the_same_nucleus():
    row, block, rows = random_logits()[0], 8, 4000
    generator = torch.Generator().manual_seed(3)
    how = {"temperature": 0.8, "top_k": 30, "top_p": 0.7}
    blind = BlindChoice(rows, row.device, block, **how, generator=generator)
    blind.look()
    drawn = torch.cat([blind(row.expand(rows, -1)) for _ in range(block)])
    kept = keep_top_p(keep_top_k(row[None] / 0.8, 30), 0.7)
    found = torch.bincount(drawn, minlength=len(row)) / len(drawn)
    assert set(drawn.tolist()) == set(kept[0].isfinite().nonzero()[:, 0].tolist())
    torch.testing.assert_close(found, kept[0].softmax(-1), rtol=0, atol=0.01)


def test_logits_that_are_not_finite_are_refused_at_the_next_look():
    blind = BlindChoice(2, torch.device("cpu"), 4, 0.7, top_k=0, top_p=0.9, generator=None)
    blind.look()
    blind(torch.full((2, VOCABULARY), -math.inf).index_fill_(1, torch.tensor([3]), 0.0))
    blind.look()
    blind(torch.tensor([[0.0, 1.0], [0.0, math.nan]]))
    blind(torch.zeros(2, 2))
    with pytest.raises(InputError, match="a logit is not finite, so that no token can be drawn"):
        blind.look()
