"""Sonnet generation: GPT-2 learns sonnets and completes others from their first three lines.

loss = −Σ log p(x_i | x_<i) over the tokens of a sonnet and one end token; padding teaches nothing

python sonnet_generation.py --use_gpu
"""

from engine.errors import InputError, command

# isort: split

import torch
from torch import nn

from engine.batches import (
    TokenDataset,
    forward_tokens,
    next_token_labels,
    next_token_loss,
    tokenize,
)
from engine.completion import complete, read_prompts
from engine.flags import (
    add_sampling_arguments,
    add_task_arguments,
    check_range,
    check_sampling,
    split_loader,
)
from engine.generation import generate
from engine.hub import backbone, load_tokenizer
from engine.prediction_files import write_record, write_sonnets
from engine.records import data_path, read_sonnets
from engine.sonnets import dev_gold, random_lines, split_sonnets
from engine.task import Task, run_tasks
from engine.trying import add_trial_arguments, continue_sonnet
from evaluation import cross_entropy, perplexity, report_table, sonnet_report

SHOWN = 2  # completed sonnets, at a run's end


class SonnetGPT(nn.Module):
    """GPT-2 as a language model, with its tokenizer. args: those of `backbone`."""

    def __init__(self, args):
        super().__init__()
        self.gpt = backbone(args)
        self.tokenizer = load_tokenizer(getattr(args, "model_size", "gpt2"))

    def forward(self, input_ids, attention_mask):
        """(b, t) -> logits (b, t, v) of each position's next token."""
        hidden_states = self.gpt(input_ids, attention_mask)["last_hidden_state"]
        return self.gpt.hidden_state_to_token(hidden_states)

    def generate(self, encoding, temperature=0.7, top_p=0.9, max_length=128):
        """Continue one text by at most max_length tokens: (token_ids (1, t), text).

        encoding: token ids (1, t), or the tokenizer's dict of them.
        """
        input_ids = encoding if isinstance(encoding, torch.Tensor) else encoding["input_ids"]
        [tokens] = generate(
            self.gpt,
            input_ids.to(self.gpt.word_embedding.weight.device),
            max_new_tokens=max_length,
            temperature=temperature,
            top_p=top_p,
            end_token=self.tokenizer.eos_token_id,
        )
        return tokens[None], self.tokenizer.decode(tokens, skip_special_tokens=True)


class Sonnets(Task):
    """The dev loss chooses the epoch; the prompts of dev and test are continued."""

    name, command = "sonnet", ("sonnet_generation.py",)
    model = SonnetGPT
    metric, maximize = "dev_loss", False
    splits, tested = ("train", "dev"), ()
    output_flags = ("dev_sonnet_out", "sonnet_out")
    trial, trial_texts = "prompt", ("-",)

    def add_arguments(self, parser):
        add_paths(parser)
        add_sampling_arguments(parser)
        add_task_arguments(parser)
        parser.add_argument(
            "--patience", type=int, default=3, help="epochs without a better one; 0: never stop"
        )
        prompt_help = "a file with the first lines of a sonnet to continue; -: stdin"
        add_trial_arguments(parser, "--prompt", metavar="FILE", help=prompt_help)
        parser.add_argument("--n", type=int, default=1, help="samples of each prompt")

    def resolve(self, settings):
        check_sampling(settings)
        check_range(settings, "patience", 0)
        check_range(settings, "n", 1)
        if settings.n > 1 and not settings.prompt:
            raise InputError(f"--n {settings.n}: of which prompt? give --prompt FILE too")
        return settings

    def paths(self, settings):
        return {"train": settings.sonnet_path, "dev": settings.dev_gold_path}

    def read(self, path, *, labelled, say):
        return read_sonnets(path)

    def build_loaders(self, settings, tokenizer, limit, worker, splits=None):
        """A sonnet ends with one end token, which is learnt; one that is cut has no end."""
        if splits == self.tested:
            return {}
        loaders = {}
        for split, sonnets in split_sonnets(settings, worker.say).items():
            sent_ids = [sonnet.sent_id for sonnet in sonnets]
            texts = [sonnet.text for sonnet in sonnets]
            where = {"where": self.paths(settings)[split], "say": worker.say}
            bare = tokenize(tokenizer, texts, sent_ids, limit, **where)
            token_ids = [[*ids, tokenizer.eos_token_id][:limit] for ids in bare]
            labels = [next_token_labels(ids) for ids in token_ids]
            dataset, rows = TokenDataset(token_ids, sent_ids, labels), settings.batch_size
            loaders[split] = split_loader(
                settings, dataset, split, worker, rows, eval_batch_size=rows
            )
        return loaders

    def loss_fn(self, logits, batch):
        """Next-token cross-entropy summed over the real tokens, in nats."""
        return next_token_loss(logits, batch["labels"], reduction="sum")

    def evaluate(self, model, loader, device, forward=forward_tokens):
        """Cross-entropy a token on the dev sonnets, and its exponential."""
        loss = cross_entropy(model, loader, self.loss_fn, device, forward)
        return {"dev_loss": loss, "dev_perplexity": perplexity(loss)}

    def check_test(self, settings, model):
        read_prompts(settings, model)

    def test(self, settings, model, loaders, worker, made_by):
        """Complete the prompts; score dev where its full sonnets are there."""
        prompts, shown = read_prompts(settings, model), []
        figures, rows = {}, {}
        for split, path in self.outputs(settings).items():
            sonnets = complete(model, prompts[split], settings)
            if not worker.is_main:
                continue
            write_sonnets(path, sonnets)
            worker.say(f"{len(sonnets)} sonnets are in {path}")
            if split == "dev" and (gold := dev_gold(settings)):
                null = random_lines(settings, prompts[split])
                systems = {"generated": sonnets, "random lines": null}
                rows = {n: sonnet_report(s, gold, prompts[split]) for n, s in systems.items()}
                worker.say(report_table(rows))
                figures = {"chrF": rows["generated"]["chrf"]}
            write_record(made_by, path, settings, figures)
            shown = shown or sonnets[:SHOWN]  # of dev
        if not settings.quiet:
            for sonnet in shown:
                worker.say(f"\nsonnet {sonnet.sent_id}, its first three lines are given:\n")
                worker.say(f"{sonnet.text}\n")
        return {"figures": figures, "sonnets": rows}

    def try_out(self, settings, model, tokenizer, limit, device):
        for path in settings.prompt:
            continue_sonnet(model, path, settings)


TASK = Sonnets()


def add_split_paths(parser) -> None:
    """The files of which `split_sonnets` makes train and dev."""
    parser.add_argument("--sonnet_path", default=data_path("sonnet", "train"))
    parser.add_argument("--held_out_sonnet_path", default=data_path("sonnet", "test"))
    parser.add_argument("--dev_gold_path", default=data_path("sonnet", "gold"))


def add_paths(parser) -> None:
    """The files of this task."""
    add_split_paths(parser)
    parser.add_argument("--dev_sonnet_path", default=data_path("sonnet", "dev"))
    parser.add_argument("--sonnet_out", default="predictions/generated_sonnets.txt")
    parser.add_argument("--dev_sonnet_out", default="predictions/generated_sonnets_dev.txt")


@command
def main():
    run_tasks([TASK], TASK.get_args())


if __name__ == "__main__":
    main()
