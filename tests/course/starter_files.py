"""Files of a submission in the form of the course's own starter, completed, for the tests.

The lesson's files stand beside another config.py and utils.py, and each task loads GPT-2 itself.
"""

CONFIG = """
from transformers import PretrainedConfig
from utils import CONFIG_NAME


class GPT2Config(PretrainedConfig):
    model_type = "gpt2"

    def __init__(
        self, vocab_size=50257, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
        intermediate_size=3072, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
        max_position_embeddings=1024, initializer_range=0.02, layer_norm_eps=1e-12,
        pad_token_id=0, name_or_path="gpt2", **kwargs,
    ):
        super().__init__(pad_token_id=pad_token_id, name_or_path=name_or_path, **kwargs)
        for name, value in list(locals().items()):
            if name not in ("self", "kwargs", "__class__"):
                setattr(self, name, value)
"""
UTILS = """
import importlib_metadata
import requests
import torch
from filelock import FileLock
from tqdm.auto import tqdm

CONFIG_NAME = "config.json"


def get_extended_attention_mask(attention_mask, dtype):
    return (1.0 - attention_mask[:, None, None, :].to(dtype=dtype)) * -10000.0


def model_size_to_params(model_size):
    return {"d": 768, "l": 12, "num_heads": 12}
"""
CLASSIFIER = """
import torch
from sklearn.metrics import accuracy_score, f1_score
from tqdm import tqdm
from transformers import GPT2Tokenizer

from models.gpt2 import GPT2Model
from optimizer import AdamW

TQDM_DISABLE = False


class GPT2SentimentClassifier(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_labels = config.num_labels
        self.gpt = GPT2Model.from_pretrained()
        for param in self.gpt.parameters():
            param.requires_grad = config.fine_tune_mode == "full-model"
        self.dropout = torch.nn.Dropout(config.hidden_dropout_prob)
        self.classifier = HEAD

    def forward(self, input_ids, attention_mask):
        outputs = self.gpt(input_ids=input_ids, attention_mask=attention_mask)
        return self.classifier(self.dropout(outputs["last_token"]))
"""
LINEAR = "torch.nn.Linear(config.hidden_size, config.num_labels)"
DEEP = (
    "torch.nn.Sequential(torch.nn.Linear(config.hidden_size, 9), torch.nn.Tanh(), "
    "torch.nn.Linear(9, config.num_labels))"
)
PARAPHRASE = """
import torch
from datasets import ParaphraseDetectionDataset
from models.gpt2 import GPT2Model


class ParaphraseGPT(torch.nn.Module):
    def __init__(self, args):
        super().__init__()
        size = {"d": args.d, "l": args.l, "num_heads": args.num_heads}
        self.gpt = GPT2Model.from_pretrained(model=args.model_size, **size)
        self.paraphrase_detection_head = torch.nn.Linear(args.d, 2)

    def forward(self, input_ids, attention_mask):
        last_token = self.gpt(input_ids, attention_mask)["last_token"]
        return ANSWER
"""
ALL_TOKENS = "self.gpt.hidden_state_to_token(last_token)"
OWN_HEAD = "self.paraphrase_detection_head(last_token)"
SONNET = """
import torch
from transformers import GPT2Tokenizer

from models.gpt2 import GPT2Model


class SonnetGPT(torch.nn.Module):
    def __init__(self, args):
        super().__init__()
        size = {"d": args.d, "l": args.l, "num_heads": args.num_heads}
        self.gpt = GPT2Model.from_pretrained(model=args.model_size, **size)
        self.tokenizer = GPT2Tokenizer.from_pretrained("gpt2")
        self.tokenizer.pad_token = self.tokenizer.eos_token

    def forward(self, input_ids, attention_mask):
        outputs = self.gpt(input_ids=input_ids, attention_mask=attention_mask)
        return self.gpt.hidden_state_to_token(outputs["last_hidden_state"])
"""
DATASETS = "class ParaphraseDetectionDataset: pass\n"
LESSON = (
    *("modules/attention.py", "modules/gpt2_layer.py"),
    *("models/gpt2.py", "models/base_gpt.py", "optimizer.py"),
)


def texts(head: str = LINEAR, answer: str = ALL_TOKENS) -> dict[str, str]:
    """Name -> text of the files that are not the lesson's."""
    return {
        "config.py": CONFIG,
        "utils.py": UTILS,
        "datasets.py": DATASETS,
        "classifier.py": CLASSIFIER.replace("HEAD", head),
        "paraphrase_detection.py": PARAPHRASE.replace("ANSWER", answer),
        "sonnet_generation.py": SONNET,
    }
