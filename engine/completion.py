"""Prompts of sonnets, checked, and completed by a model, all in one batch."""

import torch

from engine.batches import TokenDataset, collate, tokenize
from engine.generation import generate
from engine.records import Record, read_sonnets
from engine.sonnets import dev_gold, prompt_text, random_lines


def prompt_dataset(model, prompts: list[Record], where) -> TokenDataset:
    """The first three lines of each prompt; one that leaves no position to go on is an error."""
    texts = [prompt_text(prompt) for prompt in prompts]
    sent_ids = [prompt.sent_id for prompt in prompts]
    limit = model.gpt.config.max_position_embeddings - 1
    return TokenDataset(tokenize(model.tokenizer, texts, sent_ids, limit, where=where), sent_ids)


def complete(model, prompts: list[Record], settings, *, where=None, stop=None) -> list[Record]:
    """Continue all prompts in one batch; sampling is determined by the seed.

    where: the prompts' file, for errors, by default that of the test; stop: as in `generate`.
    """
    dataset = prompt_dataset(model, prompts, where=where or settings.held_out_sonnet_path)
    batch = collate([dataset[i] for i in range(len(dataset))])
    device = model.gpt.word_embedding.weight.device
    tokens = generate(
        model.gpt,
        batch["token_ids"].to(device),
        batch["attention_mask"].to(device),
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        end_token=model.tokenizer.eos_token_id,
        stop=stop,
        record=False if settings.eager else None,
        generator=torch.Generator(device).manual_seed(settings.seed),
    )
    completed = [model.tokenizer.decode(row, skip_special_tokens=True).strip() for row in tokens]
    return [Record(i, text) for i, text in zip(dataset.sent_ids, completed, strict=True)]


def read_prompts(settings, model) -> dict[str, list[Record]]:
    """The prompts of dev and test; what is wrong with them is an error."""
    paths = {"dev": settings.dev_sonnet_path, "test": settings.held_out_sonnet_path}
    prompts = {split: read_sonnets(path) for split, path in paths.items()}
    for split, path in paths.items():
        prompt_dataset(model, prompts[split], where=path)
    if dev_gold(settings):
        random_lines(settings, prompts["dev"])
    return {split: records[: settings.limit] for split, records in prompts.items()}
