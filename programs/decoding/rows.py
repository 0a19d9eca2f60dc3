"""A batch of texts that grow: each token is read once, and each text is as it would be alone."""

import copy

import torch

from engine.batches import is_right_padded
from engine.errors import InputError
from engine.generation import CachedDecoder


class Rows:
    """n texts, (n, capacity) tokens of which `lengths` (n,) are there; each is read once.

    prompts: (n,), how many tokens were given; limits: (n,), how many there may be; likelihood:
    (n,), log p of those that were added, where this is kept; done: (n,), no more is added;
    states: (n, capacity, d), the model's last hidden states of the tokens read, `known` (n,).
    """

    def __init__(self, model, input_ids, attention_mask, most: int):
        """input_ids, attention_mask: (n, t), right-padded; `most` tokens are added to each."""
        self.prompts = attention_mask.sum(dim=1)
        if not is_right_padded(attention_mask) or not bool(self.prompts.all()):
            raise ValueError("prompts must be padded on the right and hold a token or more each")
        longest, room = int(self.prompts.max()), model.config.max_position_embeddings
        if longest >= room:
            raise InputError(f"a prompt of {longest} tokens leaves no room in {room} positions")
        capacity = min(longest + most, room)
        self.model, self.decoder = model, CachedDecoder(model, capacity)
        self.limits = (self.prompts + most).clamp(max=capacity)
        self.lengths, self.known = self.prompts.clone(), self.prompts.clone()
        self.likelihood = torch.zeros(len(input_ids), device=input_ids.device)
        self.done = self.lengths >= self.limits
        self.tokens = input_ids.new_zeros(len(input_ids), capacity)
        self.tokens[:, :longest] = (input_ids * attention_mask)[:, :longest]
        positions = torch.arange(longest, device=input_ids.device).expand(len(input_ids), longest)
        read = self.decoder.read(self.tokens[:, :longest], positions)
        self.states = read.new_zeros(len(input_ids), capacity, read.shape[-1])
        self.states[:, :longest] = read

    def __len__(self):
        return len(self.tokens)

    @property
    def numbers(self) -> torch.Tensor:
        return torch.arange(len(self), device=self.tokens.device)

    @property
    def present(self) -> torch.Tensor:
        """(n, capacity), true where there is a token."""
        places = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return places < self.lengths[:, None]

    def texts(self) -> list[torch.Tensor]:
        return [row[:length] for row, length in zip(self.tokens, self.lengths, strict=True)]

    def last_states(self) -> torch.Tensor:
        """(n, d): the hidden state at each text's last token, after reading what is new."""
        while bool((self.known < self.lengths).any()):
            at = torch.minimum(self.known, self.lengths - 1)[:, None]
            self.decoder.length = int(self.known.max())  # no row has more to look back at
            read = self.decoder.read(self.tokens.gather(1, at), at)
            self.states[self.numbers, at[:, 0]] = read[:, 0]
            self.known = torch.minimum(self.known + 1, self.lengths)
        return self.states[self.numbers, self.lengths - 1]

    def logits(self) -> torch.Tensor:
        """(n, v), float32: what may come next."""
        return self.model.hidden_state_to_token(self.last_states()).float()

    def seen(self, v: int) -> torch.Tensor:
        """(n, v), true where a token stands in the text, prompt included."""
        tokens = torch.where(self.present, self.tokens, self.tokens[:, :1])
        seen = torch.zeros(len(self), v, dtype=torch.bool, device=tokens.device)
        return seen.scatter(1, tokens, True)

    def append(self, chosen, *, where=None, end: int | None = None) -> None:
        """Add a token (n,) to each text that is not done, or of these only `where` (n,) says so."""
        where = ~self.done if where is None else where & ~self.done
        place = self.lengths.clamp(max=self.tokens.shape[1] - 1)
        self.tokens[self.numbers, place] = torch.where(
            where, chosen, self.tokens[self.numbers, place]
        )
        self.lengths = self.lengths + where.long()
        self.done = self.done | (self.lengths >= self.limits)
        if end is not None:
            self.done = self.done | (where & (chosen == end))

    def select(self, rows, *, room: int | None = None) -> "Rows":
        """These texts (a tensor of their numbers), in this order, with what is known of them.

        room: how many tokens more are read of them at most, which saves memory.
        """
        chosen, chosen.decoder = copy.copy(self), copy.copy(self.decoder)
        chosen.decoder.caches = [_selected(cache, rows, room) for cache in self.decoder.caches]
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(chosen, name, value.index_select(0, rows))
        return chosen

    def repeated(self, times: int, *, room: int | None = None) -> "Rows":
        """Each text so many times, one after the other."""
        return self.select(self.numbers.repeat_interleave(times), room=room)


def _selected(cache, rows, room: int | None):
    """A layer's keys and values of these rows; what is not in use is not copied."""
    chosen = copy.copy(cache)
    if room is not None:
        chosen.capacity = min(cache.capacity, cache.length + room)
    for name in ("key", "value"):
        whole = getattr(cache, name)  # (b, h, capacity, k)
        kept = whole.new_zeros(len(rows), whole.shape[1], chosen.capacity, whole.shape[3])
        kept[:, :, : cache.length] = whole[:, :, : cache.length].index_select(0, rows)
        setattr(chosen, name, kept)
    return chosen
