"""The yardstick is right: a peer that computes something else proves nothing about speed."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model, PreTrainedTokenizerFast

from benchmarks import starter, starter_data, starter_model

torch.set_num_threads(1)

SENTENCES = [
    ("a warm and funny film", 1, "a"),
    ("dull , and far too long for what it says", 0, "b"),
    ("a funny delight", 1, "c"),
    ("the plot is dull", 0, "d"),
    ("warm , wise and a delight from the first scene to the last", 1, "e"),
    ("too long and too loud", 0, "f"),
]
CONFIG = SimpleNamespace(
    vocab_size=320,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
    max_position_embeddings=256,
    initializer_range=0.02,
    layer_norm_eps=1e-5,
)


@pytest.fixture(scope="module")
def tokenizer():
    bpe = tokenizers.ByteLevelBPETokenizer()
    texts = [text for text, _, _ in SENTENCES]
    bpe.train_from_iterator(texts, vocab_size=320, special_tokens=["<|endoftext|>"])
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token=end, pad_token=end, padding_side="right"
    )


def huggingface(model_class):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.2
    )
    return model_class(config).eval()


@pytest.mark.parametrize("model_class", [GPT2Model, GPT2LMHeadModel])
def test_hidden_states_equal_huggingface_at_real_positions(model_class):
    theirs = huggingface(model_class)
    ours = starter_model.load_huggingface(
        starter_model.StarterGPT2(CONFIG), theirs.state_dict()
    ).eval()
    token_ids = torch.randint(0, 320, (3, 11))
    mask = (torch.arange(11) < torch.tensor([[11], [7], [1]])).long()
    with torch.no_grad():
        out = ours(token_ids, mask)
        body = getattr(theirs, "transformer", theirs)
        expected = body(token_ids, attention_mask=mask).last_hidden_state
    real = mask.bool()
    torch.testing.assert_close(out["last_hidden_state"][real], expected[real], atol=1e-5, rtol=1e-5)
    last = torch.stack([expected[0, 10], expected[1, 6], expected[2, 0]])
    torch.testing.assert_close(out["last_token"], last, atol=1e-5, rtol=1e-5)


def test_adamw_matches_the_formula_step_by_step():
    rng, lr, decay, eps, (b1, b2) = np.random.default_rng(0), 1e-2, 0.1, 1e-6, (0.9, 0.999)
    theta = rng.normal(size=(4, 3))
    p = torch.nn.Parameter(torch.tensor(theta))
    optimizer = starter.StarterAdamW([p], lr=lr, weight_decay=decay)
    m = v = np.zeros((4, 3))
    for t in range(1, 8):
        grad = rng.normal(size=(4, 3)) * 10.0**-t  # small ones make eps visible
        p.grad = torch.tensor(grad)
        optimizer.step()
        m, v = b1 * m + (1 - b1) * grad, b2 * v + (1 - b2) * grad**2
        alpha = lr * math.sqrt(1 - b2**t) / (1 - b1**t)
        theta = theta - alpha * m / (np.sqrt(v) + eps)
        theta = theta - lr * decay * theta
        np.testing.assert_allclose(p.detach().numpy(), theta, rtol=1e-12)
        assert optimizer.state[p]["step"] == t


def test_adamw_gives_the_array_of_the_course():
    torch.manual_seed(0)
    rng, model = np.random.default_rng(0), torch.nn.Linear(3, 2, bias=False)
    optimizer = starter.StarterAdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    for _ in range(1000):
        optimizer.zero_grad()
        x = torch.FloatTensor(rng.uniform(size=[3]))
        y = torch.stack([x[0] + x[1], -x[2]])
        ((y - model(x)) ** 2).sum().backward()
        optimizer.step()
    expected = torch.tensor([[0.5548, 0.8667, 0.0729], [-0.4472, -0.2951, -0.2717]])
    torch.testing.assert_close(model.weight.detach(), expected, atol=1e-4, rtol=0)


def test_a_batch_is_tokenized_in_collate_and_padded_to_its_longest_row(tokenizer):
    loader = starter_data.sentiment_loader(SENTENCES, tokenizer, batch_size=4, shuffle=False)
    first, second = loader
    lengths = first["attention_mask"].sum(dim=1)
    assert first["token_ids"].shape == (4, lengths.max())
    assert lengths.tolist() == [len(tokenizer(s)["input_ids"]) for s in first["sents"]]
    assert second["sent_ids"] == ["e", "f"] and second["labels"].tolist() == [1, 0]


@pytest.mark.parametrize("mode", ["full-model", "last-linear-layer"])
def test_sentiment_training_lowers_the_loss_and_respects_the_mode(tokenizer, mode, tmp_path):
    torch.manual_seed(0)
    model = starter.StarterSentimentClassifier(
        CONFIG, num_labels=2, dropout=0.0, fine_tune_mode=mode
    )
    before = model.gpt.gpt_layers[0].interm_dense.weight.clone()
    optimizer = starter.StarterAdamW(model.parameters(), lr=5e-3)
    train = starter_data.sentiment_loader(SENTENCES, tokenizer, batch_size=2)
    dev = starter_data.sentiment_loader(SENTENCES, tokenizer, batch_size=4, shuffle=False)
    path = tmp_path / "best.pt"
    first, *_, third = starter.fit_sentiment(
        model, train, dev, optimizer=optimizer, epochs=3, path=path
    )
    assert third["loss"] < first["loss"]
    assert third["train"] == pytest.approx(third["dev"])
    moved = not torch.equal(before, model.gpt.gpt_layers[0].interm_dense.weight)
    assert moved == (mode == "full-model")
    assert set(torch.load(path)) == {"model", "optim"}


def test_paraphrase_and_sonnet_training_lower_the_loss(tokenizer):
    torch.manual_seed(0)
    pairs = [(s, s, 1, i) for s, _, i in SENTENCES]
    pairs += [(s, SENTENCES[0][0], 0, i) for s, _, i in SENTENCES[1:]]
    model = starter.StarterParaphraseGPT(CONFIG)
    data = starter_data.paraphrase_loader(pairs, tokenizer, batch_size=4, label_ids=(5, 9))
    history = starter.fit_paraphrase(
        model, data, data, optimizer=starter.StarterAdamW(model.parameters()), epochs=2
    )
    assert history[1]["loss"] < history[0]["loss"]

    poet = starter.StarterSonnetGPT(CONFIG)
    sonnets = starter_data.sonnet_loader([s for s, _, _ in SENTENCES], tokenizer, batch_size=3)
    history = starter.fit_sonnets(
        poet,
        sonnets,
        ["a funny"],
        optimizer=starter.StarterAdamW(poet.parameters()),
        epochs=2,
        max_length=3,
    )
    assert history[1]["loss"] < history[0]["loss"]
    assert history[1]["texts"][0].startswith("a funny")


def test_generation_at_a_tiny_temperature_is_huggingface_greedy(tokenizer):
    theirs = huggingface(GPT2LMHeadModel)
    model = starter.StarterSonnetGPT(CONFIG)
    starter_model.load_huggingface(model.gpt, theirs.state_dict())
    prompt = tokenizer("a warm", return_tensors="pt")
    expected = theirs.generate(
        **prompt, do_sample=False, max_new_tokens=20, eos_token_id=None, pad_token_id=0
    )
    token_ids, text = starter.generate(
        model, tokenizer, prompt="a warm", max_length=20, temperature=1e-4
    )
    assert len(set(token_ids[0].tolist())) > 5
    assert torch.equal(token_ids, expected)
    assert text == tokenizer.decode(expected[0].tolist())


class FixedModel(torch.nn.Linear):
    """The next token of a prefix of t tokens has the probabilities `next_token(t)`."""

    def __init__(self, next_token):
        super().__init__(1, 1)
        self.next_token = next_token

    def forward(self, token_ids, attention_mask):
        t = token_ids.shape[1]
        probabilities = torch.full((1, t, 320), 1e-9)
        for token, probability in self.next_token(t).items():
            probabilities[:, :, token] = probability
        return probabilities.log()


def test_generation_stops_at_the_end_token(tokenizer):
    model = FixedModel(lambda t: {40 if t < 7 else tokenizer.eos_token_id: 1.0})
    token_ids, _ = starter.generate(model, tokenizer, prompt="a", max_length=20)
    assert token_ids.shape == (1, 7)


def test_top_p_keeps_the_smallest_set_that_reaches_p(tokenizer):
    model = FixedModel(lambda t: {40: 0.5, 50: 0.3, 60: 0.2})
    torch.manual_seed(0)
    token_ids, _ = starter.generate(
        model, tokenizer, prompt="a", max_length=200, temperature=1.0, top_p=0.6
    )
    assert set(token_ids[0, -200:].tolist()) == {40, 50}
