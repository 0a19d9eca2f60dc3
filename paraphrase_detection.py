"""Paraphrase detection as a cloze: GPT-2 answers a question about two questions with yes or no.

p(yes) = softmax over {no, yes} of  E[no] · h_last,  E[yes] · h_last      E: tied embedding

python paraphrase_detection.py --use_gpu
"""

from engine.errors import InputError, command, some

# isort: split

import torch
from torch import nn
from torch.nn import functional as F

from engine.batches import tokenize
from engine.classification import ClassificationTask
from engine.flags import add_task_arguments
from engine.hub import backbone, load_tokenizer
from engine.own_texts import check_texts
from engine.prediction_files import ANSWER_TOKENS
from engine.records import PairRecord, data_path, read_pairs
from engine.task import PREDICTED, run_tasks
from engine.trying import add_trial_arguments


class ParaphraseGPT(nn.Module):
    """GPT-2 whose next token is looked at for "no" and "yes" only.

    args: those of `backbone`, and `answer_tokens`, the ids of "no" and "yes" (default GPT-2's).
    """

    reads_last_token_only = True

    def __init__(self, args):
        super().__init__()
        self.gpt = backbone(args)
        tokens = torch.tensor(list(getattr(args, "answer_tokens", ANSWER_TOKENS.values())))
        self.register_buffer("answer_tokens", tokens, persistent=False)

    def forward(self, input_ids, attention_mask):
        """(b, t) -> logits (b, 2) of "no" and "yes" after the last real token."""
        last_token = self.gpt(input_ids, attention_mask)["last_token"]
        return F.linear(last_token, self.gpt.word_embedding.weight[self.answer_tokens])


def cloze_prompt(sentence1: str, sentence2: str) -> str:
    """The text that GPT-2 continues with its answer: one template for train, dev and test."""
    return f'Is "{sentence1}" a paraphrase of "{sentence2}"?\n'


def shortened_prompt(tokenizer, record: PairRecord, limit: int) -> list[int]:
    """A prompt of at most `limit` tokens: the longer question loses its end, then both do.

    What follows the questions stays, since the answer is read after it.
    """
    questions = [tokenizer(text)["input_ids"] for text in (record.sentence1, record.sentence2)]
    while True:
        prompt = cloze_prompt(*(tokenizer.decode(question) for question in questions))
        token_ids = tokenizer(prompt)["input_ids"]
        shorter, longer = sorted(questions, key=len)
        excess = len(token_ids) - limit
        if excess <= 0 or not longer:
            return token_ids
        del longer[-max(1, min(excess, len(longer) - len(shorter))) :]


def answer_tokens(tokenizer) -> list[int]:
    """The ids of "no" and "yes" at the start of a line."""
    tokens = [tokenizer(word)["input_ids"] for word in ("no", "yes")]
    if any(len(ids) != 1 for ids in tokens):
        raise InputError(
            f'this tokenizer cuts "no" and "yes" into {tokens}: both must be one token'
        )
    return [ids[0] for ids in tokens]


class Paraphrase(ClassificationTask):
    """Quora question pairs; prediction files have GPT-2's tokens of "no" and "yes"."""

    name, command = "paraphrase", ("paraphrase_detection.py",)
    model = ParaphraseGPT
    columns = ("sentence1", "sentence2", "is_duplicate")
    output_flags = ("para_dev_out", "para_test_out")
    trial, trial_texts = "pair", ("How old is she?", "What is her age?")
    column, classes, class_names = "Predicted_Is_Paraphrase", ANSWER_TOKENS, ("no", "yes")

    def add_arguments(self, parser):
        for split in self.splits:
            parser.add_argument(f"--para_{split}", default=data_path(self.name, split))
        for split, flag in zip(PREDICTED, self.output_flags, strict=True):
            parser.add_argument(f"--{flag}", default=f"predictions/para-{split}-output.csv")
        add_task_arguments(parser)
        add_trial_arguments(parser, "--pair", nargs=2, help="two questions to compare")

    def resolve(self, settings):
        for questions in settings.pair or []:
            check_texts("--pair", questions, stdin=False)
        return settings

    def paths(self, settings):
        return {split: getattr(settings, f"para_{split}") for split in self.splits}

    def model_settings(self, settings):
        return {"answer_tokens": answer_tokens(load_tokenizer(settings.model_size))}

    def read(self, path, *, labelled, say):
        pairs = read_pairs(path, labelled=labelled)
        if pairs.dropped:
            dropped = some(pairs.dropped)
            say(f"{path}: {len(pairs.dropped)} incomplete rows are left out: {dropped}")
        return pairs.records

    def own_rows(self, settings):
        for sentence1, sentence2 in settings.pair:
            yield f"{sentence1} / {sentence2}", PairRecord("1", sentence1, sentence2)

    def tokens(self, tokenizer, rows, limit, *, where, say):
        """Those of each pair's prompt; a line is said about pairs whose questions are cut."""

        def shorten(i: int) -> list[int]:
            return shortened_prompt(tokenizer, rows[i], limit)

        prompts = [cloze_prompt(row.sentence1, row.sentence2) for row in rows]
        sent_ids = [row.sent_id for row in rows]
        return tokenize(tokenizer, prompts, sent_ids, limit, where=where, say=say, shorten=shorten)


TASK = Paraphrase()


@command
def main():
    run_tasks([TASK], TASK.get_args())


if __name__ == "__main__":
    main()
