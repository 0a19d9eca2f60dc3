"""Prompts in one batch that are continued token by token."""

import torch

from engine.batches import is_right_padded
from engine.errors import InputError


class Continuations:
    """Prompts that grow by a token each, in place, and without a look at any number.

    tokens: (b, capacity), of each row `lengths` (b,) of them so far and `ends` (b,) at most;
    done: (b,), which rows have ended. A row ends with end_token, too.
    """

    def __init__(self, prompts, attention_mask, max_new_tokens: int, end_token, most: int):
        """prompts, attention_mask: (b, t), padding on the right; None: there is none.

        most: a model's positions. Raises InputError for a prompt that leaves none to go on.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(prompts)
        self.lengths = attention_mask.sum(dim=1)
        if not is_right_padded(attention_mask) or not bool(self.lengths.all()):
            raise ValueError("prompts must be padded on the right and hold a token or more each")
        longest = int(self.lengths.max())
        if longest >= most:
            raise InputError(f"a prompt of {longest} tokens leaves no room in {most} positions")
        self.capacity = min(longest + max_new_tokens, most)
        self.tokens = prompts.new_zeros(len(prompts), self.capacity)
        self.tokens[:, :longest] = (prompts * attention_mask)[:, :longest]
        self.ends = (self.lengths + max_new_tokens).clamp(max=self.capacity)
        self.done = self.lengths >= self.ends
        self.end_token, self.each = end_token, torch.arange(len(prompts), device=prompts.device)

    def append(self, chosen) -> None:
        """chosen: (b,); rows that are done stay as they are."""
        place = self.lengths.clamp(max=self.capacity - 1)
        kept = self.tokens[self.each, place]
        self.tokens[self.each, place] = torch.where(self.done, kept, chosen)
        self.lengths += ~self.done
        self.done |= self.lengths >= self.ends
        if self.end_token is not None:
            self.done |= chosen == self.end_token

    def end_where(self, stop) -> None:
        """End the rows of which `stop(tokens)` says so; this looks at them."""
        done = zip(self.done.tolist(), self.rows(), strict=True)
        stopped = [ended or stop(row) for ended, row in done]
        self.done |= torch.tensor(stopped, device=self.done.device)

    def rows(self) -> list[torch.Tensor]:
        lengths = self.lengths.tolist()
        return [row[:length] for row, length in zip(self.tokens, lengths, strict=True)]
