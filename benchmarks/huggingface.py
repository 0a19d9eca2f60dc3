"""transformers as a peer: GPT2ForSequenceClassification and Trainer with its defaults, `generate`.

Its defaults are float32, torch's fused AdamW, clipping to norm 1, a falling rate, rows in random
order, and padding to the longest row of a batch; `generate` keeps a cache and takes all prompts at
once. Checkpoints, progress bars and reports are off. The second peer is the same in bfloat16, with
TF32 for what stays in float32 on GPUs.
"""

import importlib.util
import warnings

import torch

from benchmarks.peer import FULL_RATE, HEAD_RATE, TEMPERATURE, TOP_P, Peer, at_last_token


class Transformers(Peer):
    """HuggingFace's classes with their defaults."""

    @classmethod
    def missing(cls, job):
        if job.kind in ("train", "train_head", "evaluate") and not has_trainer():
            return "its Trainer needs the package accelerate: pip install accelerate"
        return None

    def build(self):
        from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        load, folder = self.load, self.load.folder
        if self.job.task == "sonnet":
            return GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
        model = GPT2ForSequenceClassification.from_pretrained(
            folder, num_labels=load.classes, dtype=torch.float32
        )
        model.config.pad_token_id = load.tokenizer.pad_token_id
        weight = load.head()
        if self.job.task == "paraphrase":
            weight = model.transformer.wte.weight[load.answers]
        with torch.no_grad():
            model.score.weight.copy_(weight)
        if self.job.kind == "train_head":
            model.transformer.requires_grad_(False)
        return model

    def backbone(self):
        return self.model.transformer

    def final_norm(self):
        return self.model.transformer.ln_f

    def output_layer(self):
        return self.model.score

    def logits(self, batch):
        mask, padding = batch["attention_mask"], self.load.tokenizer.pad_token_id
        tokens = batch["token_ids"].masked_fill(mask == 0, padding)  # it looks for the last other
        found = self.model(input_ids=tokens, attention_mask=mask)
        if self.job.task != "sonnet":
            return found.logits
        return at_last_token(found.logits, batch)

    def more_arguments(self) -> dict:
        """Of TrainingArguments."""
        return {}

    def examples(self, rows) -> list[dict]:
        """Tokenised beforehand, as `datasets` would have it in its cache."""
        examples = []
        for row, ids in zip(rows, self.load.tokens(rows), strict=True):
            label = {} if self.job.task == "sonnet" else {"label": row.label}
            examples.append({"input_ids": ids, "attention_mask": [1] * len(ids), **label})
        return examples

    def trainer(self, rows, *, rate: float, dev=None):
        from transformers import (
            DataCollatorForLanguageModeling,
            DataCollatorWithPadding,
            PrinterCallback,
            Trainer,
            TrainingArguments,
        )

        tokenizer, size = self.load.tokenizer, self.job.batch_size
        if self.job.task == "sonnet":
            collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        else:
            collator = DataCollatorWithPadding(tokenizer)
        arguments = TrainingArguments(
            output_dir=self.scratch.name,
            per_device_train_batch_size=size,
            per_device_eval_batch_size=size,
            num_train_epochs=self.job.epochs,
            learning_rate=rate,
            eval_strategy="epoch" if dev else "no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not self.settings.use_gpu,
            seed=self.settings.seed,
            **self.more_arguments(),
        )
        trainer = Trainer(
            self.model,
            arguments,
            data_collator=collator,
            train_dataset=self.examples(rows),
            eval_dataset=self.examples(dev) if dev else None,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def train(self, rows):
        return self.trainer(rows, rate=FULL_RATE).train

    def train_head(self, rows):
        return self.trainer(rows, rate=HEAD_RATE, dev=self.load.dev).train

    def evaluate(self, rows):
        trainer = self.trainer(rows, rate=FULL_RATE)
        return lambda: trainer.predict(trainer.train_dataset)

    def decode(self, rows):
        tokenizer = self.load.tokenizer
        texts = [row.text for row in rows]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
        inputs = inputs.to(self.device)
        self.model.eval()
        self.model.generation_config.eos_token_id = None  # every sonnet gets all its tokens

        def work():
            tokens = self.model.generate(
                **inputs,
                do_sample=True,
                temperature=TEMPERATURE,
                top_p=TOP_P,
                top_k=0,
                max_new_tokens=self.settings.new_tokens,
                pad_token_id=tokenizer.pad_token_id,
            )
            tokenizer.batch_decode(tokens, skip_special_tokens=True)

        return work


class TransformersBf16(Transformers):
    """The same with `--bf16`, and on GPUs `--tf32`."""

    @classmethod
    def precision(cls, job, settings):
        return "bfloat16"

    def more_arguments(self):
        return {"bf16": True} | ({"tf32": True} if self.settings.use_gpu else {})


def has_trainer() -> bool:
    return importlib.util.find_spec("accelerate") is not None
