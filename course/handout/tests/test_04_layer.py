"""`GPT2Layer.forward` in modules/gpt2_layer.py."""

import torch
from helpers import CONFIG, different, same, seeded
from torch import nn

from modules.gpt2_layer import GPT2Layer


def layer_and_input():
    """A layer whose normalisations have gains of their own, and hidden states far from normal."""
    layer = seeded(GPT2Layer, CONFIG).eval()
    with torch.no_grad():
        for norm in (layer.attention_layer_norm, layer.out_layer_norm):
            norm.weight.uniform_(0.5, 2)
            norm.bias.uniform_(-1, 1)
    return layer, 5 * torch.randn(1, 4, CONFIG.hidden_size) + 3


def passed_through(layer, states) -> dict[str, tuple]:
    """What each part of the layer was given, and gave, while the layer read the states."""
    seen: dict[str, tuple] = {}

    def note(name):
        def hook(module, inputs, output):
            seen[name] = (inputs[0], output)

        return hook

    for name, part in layer.named_children():
        part.register_forward_hook(note(name))
    seen["layer"] = (states, layer(states, None))
    for name, _ in layer.named_children():
        assert name in seen, f"The layer does not use its {name}."
    return seen


def check_joined(first: str, second: str) -> None:
    """Fail unless one part of the layer reads what another one gave."""
    layer, states = layer_and_input()
    seen = passed_through(layer, states)
    same(seen[second][0], seen[first][1], f"{second} does not read what {first} gave.")


def silenced(*dense: nn.Linear) -> None:
    with torch.no_grad():
        for linear in dense:
            linear.weight.zero_()
            linear.bias.zero_()


def test_what_comes_in_goes_through():
    layer, states = layer_and_input()
    silenced(layer.attention_dense, layer.out_dense)
    same(
        layer(states, None),
        states,
        "With both dense layers at zero, a layer changes nothing: each sublayer is added to its "
        "own input, which nobody normalised.",
    )


def test_attention_reads_normalised_states():
    check_joined("attention_layer_norm", "self_attention")


def test_what_attention_gave_is_projected():
    check_joined("self_attention", "attention_dense")


def test_the_perceptron_is_two_linears_with_an_activation_between():
    check_joined("out_layer_norm", "interm_dense")
    check_joined("interm_dense", "interm_af")
    check_joined("interm_af", "out_dense")


def test_the_perceptron_reads_the_first_sum():
    layer, states = layer_and_input()
    seen = passed_through(layer, states)
    found = seen["out_layer_norm"][0] - seen["attention_dropout"][1]
    same(found, states, "The second sublayer normalises the sum that the first one left.")


def test_the_second_sum_is_the_result():
    layer, states = layer_and_input()
    seen = passed_through(layer, states)
    found = seen["layer"][1] - seen["out_dropout"][1]
    same(found, seen["out_layer_norm"][0], "The second sublayer is added to the first one's sum.")


def test_the_mask_reaches_attention():
    layer, states = layer_and_input()
    mask = torch.zeros(1, 1, 1, 4)
    mask[..., 0] = torch.finfo(torch.float32).min
    different(
        layer(states, mask)[:, 3],
        layer(states, None)[:, 3],
        "A mask that hides position 0 changes nothing: hand attention_mask on to self_attention.",
    )
