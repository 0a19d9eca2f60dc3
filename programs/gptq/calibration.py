"""The text on which GPTQ is calibrated: rows of the task, or blocks of other files."""

import torch

from engine.batches import TokenDataset
from engine.corpus import documents
from engine.errors import InputError
from engine.hub import load_tokenizer
from programs.quantize.job import Job

BLOCK_OF_TEXT = 512  # tokens


def calibration(args, job: Job) -> TokenDataset:
    """About --calibration_tokens: blocks of the files that were given, or the task's train rows."""
    texts = blocks(args, job) if args.calibration else job.loaders["train"].dataset.token_ids
    generator = torch.Generator().manual_seed(job.args.seed)
    chosen, count = [], 0
    for i in torch.randperm(len(texts), generator=generator).tolist():
        if count >= args.calibration_tokens:
            break
        chosen.append(texts[i])
        count += len(texts[i])
    widest = job.model.gpt.config.intermediate_size
    if count < widest:
        where = ", ".join(args.calibration or ["the task's training rows"])
        raise InputError(
            f"{where}: {count} tokens to calibrate on, expected at least {widest}, as many as the "
            f"widest linear has inputs: give a longer text, --calibration_tokens or --limit"
        )
    return TokenDataset(chosen, [str(i) for i in range(len(chosen))])


def blocks(args, job: Job) -> list[list[int]]:
    """Documents, one after the other with end tokens between, cut where they fill a block."""
    tokenizer = load_tokenizer(job.settings.model_size)
    tokens = []
    for text in documents(args.calibration):
        tokens += [*tokenizer(text, verbose=False)["input_ids"], tokenizer.eos_token_id]
    t = min(BLOCK_OF_TEXT, job.model.gpt.config.max_position_embeddings)
    return [tokens[i : i + t] for i in range(0, len(tokens), t)]
