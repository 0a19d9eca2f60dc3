"""Text from a GPT-2, token by token: cached, batched, greedy or sampled.

Prompts of different lengths stand in one right-padded batch, and every row goes on at its own
position: new keys and values overwrite the row's padding, and a key is visible to a query exactly
when its position is not later. So each row gets what it would get alone.
"""

import contextlib
import itertools
from collections.abc import Callable
from functools import partial

import torch

from engine.continuations import Continuations
from engine.recorder import RECORDERS, Recorder
from engine.sampling import BlindChoice, choose
from engine.sharding import parts_of
from models.gpt2 import states_at

WORTH_RECORDING = 16  # new tokens, from which on a recording saves more than it takes
LOOK_EVERY = 16  # tokens, from one time to the next that a GPU is asked whether all rows have ended


class LayerCache:
    """Keys and values of one layer at every position so far, (b, h, capacity, k) each."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.key = self.value = None
        self.positions = None  # (b, t): where the next keys and values belong
        self.length = 0  # positions in use in the longest row

    def extend(self, key, value):
        """Store (b, h, t, k) at `self.positions`; returns all in use, twice (b, h, length, k)."""
        b, h, _, k = key.shape
        if self.key is None:
            self.key = key.new_zeros(b, h, self.capacity, k)
            self.value = value.new_zeros(b, h, self.capacity, k)
        index = self.positions[:, None, :, None].expand_as(key)
        self.key.scatter_(2, index, key)
        self.value.scatter_(2, index, value)
        return self.key[:, :, : self.length], self.value[:, :, : self.length]

    def attend(self, attend, query, key, value, padding_mask, dropout):
        """`attend`, with all keys and values so far in the place of the new ones."""
        return attend(query, *self.extend(key, value), padding_mask, dropout)


class CachedDecoder:
    """A GPT-2 that reads each token once: earlier positions are remembered, not recomputed.

    fixed: attend to the whole capacity from the second call on, what is not there yet hidden, so
    that all calls have the same shapes.
    """

    def __init__(self, model, capacity: int, *, fixed: bool = False):
        self.model, self.fixed = model, fixed
        self.caches = [LayerCache(capacity) for _ in model.gpt_layers]
        self.length = 0

    def read(self, token_ids, positions):
        """Read tokens (b, t) at positions (b, t); returns their hidden states (b, t, d).

        The first call reads right-padded prompts from position 0, later calls one token a row; with
        dense attention also several that follow each other, whose last is nowhere past `length`.
        """
        first = self.length == 0
        capacity = self.caches[0].capacity
        self.length = min(self.length + token_ids.shape[1], capacity)
        if self.fixed and not first:
            self.length = capacity
        model = self.model
        hidden_states = model.embed(token_ids, positions)
        mask = None if first else self._hide_later_keys(positions, hidden_states.dtype)
        for layer, cache in zip(model.gpt_layers, self.caches, strict=True):
            cache.positions, cache.length = positions, self.length
            with replaced_attention(layer.self_attention, cache):
                hidden_states = layer(hidden_states, mask)
        return model.final_layer_norm(hidden_states)

    def logits(self, token_ids, positions):
        """Read tokens (b, 1) at positions (b, 1); returns the logits (b, v) of the next ones."""
        return self.model.hidden_state_to_token(self.read(token_ids, positions)[:, 0])

    def _hide_later_keys(self, positions, dtype):
        """(b, t) -> (b, 1, t, length), to be added to scores."""
        later = torch.arange(self.length, device=positions.device) > positions[:, :, None]
        mask = torch.zeros(later.shape, dtype=dtype, device=positions.device)
        return mask.masked_fill(later, torch.finfo(dtype).min)[:, None]


@contextlib.contextmanager
def replaced_attention(attention, cache: LayerCache):
    """Within it a layer attends through its cache, by whatever kind of attention it has."""
    own, original = "attend" in vars(attention), attention.attend
    attention.attend = partial(cache.attend, original)
    try:
        yield
    finally:
        if own:
            attention.attend = original
        else:
            del attention.attend


@torch.no_grad()
def generate(
    model,
    input_ids,
    attention_mask=None,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    end_token: int | None = None,
    stop=None,
    use_cache: bool = True,
    record: bool | None = None,
    look_every: int | None = None,
    generator: torch.Generator | None = None,
) -> list[torch.Tensor]:
    """Continue every prompt of a batch; returns one 1-D tensor a row: prompt and new tokens.

    input_ids, attention_mask: (b, t), padding on the right. temperature 0 is greedy decoding;
    top_k 0 and top_p 1 cut nothing off. A row ends with `end_token` (kept), when `stop(tokens)`
    says so of its 1-D tensor of tokens, after `max_new_tokens`, or at the model's last position.
    `generator` makes the draws repeatable; `use_cache=False` recomputes every prefix (the oracle);
    record: each new token is read at the same, full length and chosen, on a CUDA GPU by replaying a
    recording; None: there, unless the new tokens are few. The draws are the same. look_every: so
    many tokens are chosen before the host looks whether all rows have ended; above 1 random numbers
    are drawn ahead, and others than at 1. None: 1 on CPUs.
    """
    capacity = model.config.max_position_embeddings
    texts = Continuations(input_ids, attention_mask, max_new_tokens, end_token, capacity)
    device = input_ids.device
    if look_every is None:
        look_every = 1 if device.type == "cpu" else LOOK_EVERY
    how = {"top_k": top_k, "top_p": top_p, "generator": generator}
    if look_every == 1:
        choice, look = partial(choose, temperature=temperature, **how), lambda: None
    else:
        choice = BlindChoice(len(input_ids), device, look_every, temperature, **how)
        look = choice.look
    if record is None:
        record = input_ids.is_cuda and max_new_tokens >= WORTH_RECORDING
        record = record and not parts_of(model)  # their hooks wait for other streams
    decoder = CachedDecoder(model, texts.capacity, fixed=record)
    read = partial(_read_next, decoder) if use_cache else partial(_uncached_step, model)

    def step():
        texts.append(choice(read(texts.tokens, texts.lengths)))

    if record and use_cache and device.type in RECORDERS:
        step = replayed(step, RECORDERS[device.type](device))
    was_training = model.training
    model.eval()
    try:
        for count in itertools.count():
            if count % look_every == 0:
                look()
                if bool(texts.done.all()):
                    break
            step()
            if stop is not None:
                texts.end_where(stop)
    finally:
        model.train(was_training)
    return texts.rows()


def replayed(step: Callable[[], None], recorder: Recorder) -> Callable[[], None]:
    """A step whose later calls replay a recording, as the first two do what it records.

    The first call reads the prompts, in other shapes; the second gets libraries ready.
    """
    calls = iter([step, partial(recorder.run, step)])
    recording = None

    def call() -> None:
        nonlocal recording
        eager = next(calls, None)
        if eager is None and recording is None:
            recording = recorder.record(step)
        (eager or recording)()

    return call


def _read_next(decoder: CachedDecoder, tokens, lengths):
    """The logits (b, v) of each row's next token, in one call after the other."""
    if decoder.length > 0:
        last = (lengths - 1)[:, None]
        return decoder.logits(tokens.gather(1, last), last)
    t = int(lengths.max())
    positions = torch.arange(t, device=tokens.device).expand(len(tokens), t)
    hidden_states = decoder.read(tokens[:, :t], positions)
    return decoder.model.hidden_state_to_token(states_at(hidden_states, lengths - 1))


def _uncached_step(model, tokens, lengths):
    t = int(lengths.max())
    mask = torch.arange(t, device=tokens.device) < lengths[:, None]
    return model.hidden_state_to_token(model(tokens[:, :t], mask.long())["last_token"])
