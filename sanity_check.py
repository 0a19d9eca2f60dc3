"""Compare our GPT-2 with HuggingFace's on the same weights: `python sanity_check.py [size]`.

Hidden states after every layer and logits, for right- and left-padded batches, at real tokens.
"""

import sys

from engine.errors import Parser, command
from engine.hub import checkpoint_folder, load_gpt2
from utils import model_size_to_params

# isort: split

import torch

from models.gpt2 import GPT2Model

TOLERANCE = 1e-4


def hidden_states(model: GPT2Model, input_ids, attention_mask) -> list[torch.Tensor]:
    """HuggingFace's hidden_states: the embedding, each layer's output, the last one normed."""
    states = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: states.append(output))
        for module in (model.embed_dropout, *model.gpt_layers)
    ]
    try:
        states[-1:] = [model(input_ids, attention_mask)["last_hidden_state"]]
    finally:
        for hook in hooks:
            hook.remove()
    return states


@torch.no_grad()
def largest_differences(ours: GPT2Model, theirs, input_ids, attention_mask) -> dict[str, float]:
    """Name -> largest absolute difference at real tokens; `theirs` is a GPT2LMHeadModel."""
    real = attention_mask.bool()
    expected = theirs(input_ids, attention_mask=attention_mask, output_hidden_states=True)
    found = hidden_states(ours, input_ids, attention_mask)
    pairs = {
        f"hidden states {i}": pair
        for i, pair in enumerate(zip(found, expected.hidden_states, strict=True))
    }
    pairs["logits"] = (ours.hidden_state_to_token(found[-1]), expected.logits)
    return {
        name: float((a - b)[real].abs().nan_to_num(torch.inf).max())
        for name, (a, b) in pairs.items()
    }


def example_batch(vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two texts of 5 and 8 tokens, padded on the right: ids and mask, (2, 8) each."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(vocab_size, (2, 8), generator=generator)
    return input_ids, torch.tensor([[1] * 5 + [0] * 3, [1] * 8])


@command
def main():
    parser = Parser(__doc__)
    parser.add_argument("model_size", nargs="?", default="gpt2", help="a size, hub name or folder")
    model_size = parser.parse_args().model_size
    ours = load_gpt2(model_size, **model_size_to_params(model_size))

    from transformers import GPT2LMHeadModel

    theirs = GPT2LMHeadModel.from_pretrained(checkpoint_folder(model_size), dtype=torch.float32)
    theirs.eval()
    input_ids, mask = example_batch(ours.config.vocab_size)
    worst = 0.0
    for side, attention_mask in {"right": mask, "left": mask.flip(1)}.items():
        differences = largest_differences(ours, theirs, input_ids, attention_mask)
        name = max(differences, key=differences.get)
        print(f"padding on the {side}: largest difference {differences[name]:.2e}, in {name}")
        worst = max(worst, differences[name])
    if not worst <= TOLERANCE:
        sys.exit(f"Your GPT-2 differs from HuggingFace's by {worst:.2e}, more than {TOLERANCE}.")
    print("Your GPT2 implementation is correct!")


if __name__ == "__main__":
    main()
