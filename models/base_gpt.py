"""What every GPT here shares: initial weights, and HuggingFace's checkpoint format.

HuggingFace keeps query, key and value in one matrix `c_attn`, and the linears of a layer as
"Conv1D", that is, transposed: (in, out) where torch's Linear has (out, in).
"""

import re
import warnings

import torch
from torch import nn

CONFIG = {
    **{"vocab_size": "vocab_size", "hidden_size": "n_embd", "num_hidden_layers": "n_layer"},
    **{"num_attention_heads": "n_head", "intermediate_size": "n_inner"},
    **{"hidden_dropout_prob": "resid_pdrop", "attention_probs_dropout_prob": "attn_pdrop"},
    **{"max_position_embeddings": "n_positions", "initializer_range": "initializer_range"},
    **{"layer_norm_eps": "layer_norm_epsilon"},
}
SUPPORTED = {  # a checkpoint that asks for anything else is another function
    **{"model_type": ["gpt2"], "activation_function": ["gelu_new", "gelu_pytorch_tanh"]},
    **{"scale_attn_weights": [True], "scale_attn_by_inverse_layer_idx": [False]},
    **{"add_cross_attention": [False], "tie_word_embeddings": [True]},
}
MODULES = {"wte": ["word_embedding"], "wpe": ["pos_embedding"], "ln_f": ["final_layer_norm"]}
LAYER = {
    **{"ln_1": ["attention_layer_norm"], "ln_2": ["out_layer_norm"]},
    "attn.c_attn": ["self_attention.query", "self_attention.key", "self_attention.value"],
    **{"attn.c_proj": ["attention_dense"], "mlp.c_fc": ["interm_dense"]},
    "mlp.c_proj": ["out_dense"],
}


class GPTPreTrainedModel(nn.Module):
    """A model with GPT-2's initialisation that is saved as a HuggingFace checkpoint."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    @property
    def dtype(self):
        return next(self.parameters()).dtype

    def init_weights(self):
        """Normal(0, initializer_range), biases 0; what feeds a residual sum is divided by √(2 l).

        Radford et al. 2019, section 2.3, with l layers, each adding to the sum twice.
        """
        std, summands = self.config.initializer_range, 2 * self.config.num_hidden_layers
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                feeds_sum = name.endswith(("attention_dense", "out_dense"))
                nn.init.normal_(module.weight, std=std / summands**0.5 if feeds_sum else std)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=std)

    def save_pretrained(self, folder, end_token=None):
        """Write config.json and model.safetensors; end_token: by default GPT-2's for its words."""
        from transformers import GPT2Config, GPT2LMHeadModel

        values = {theirs: getattr(self.config, ours) for ours, theirs in CONFIG.items()}
        if end_token is None and self.config.vocab_size == 50257:
            end_token = 50256
        values |= {"embd_pdrop": values["resid_pdrop"], "dtype": self.dtype}
        with torch.device("meta"):  # shapes only: the weights are taken as they are
            config = GPT2Config(**values, bos_token_id=end_token, eos_token_id=end_token)
            network = GPT2LMHeadModel(config)
        ours, theirs = self.state_dict(), {}
        for name in network.transformer.state_dict():
            joined = torch.cat([ours[part] for part in our_names(name)])
            theirs[name] = (joined.t() if ".c_" in name else joined).contiguous()
        network.transformer.load_state_dict(theirs, assign=True)
        network.tie_weights()
        network.save_pretrained(folder)


def read_config(model):
    """The values of a GPT2Config in the config.json of a hub name or a folder."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    for name, supported in (SUPPORTED | {"embd_pdrop": [config.resid_pdrop]}).items():
        if (value := getattr(config, name)) not in supported:
            raise ValueError(f"{model}: {name} is {value!r}, expected {supported[0]!r}")
    values = {ours: getattr(config, theirs) for ours, theirs in CONFIG.items()}
    return values | {"intermediate_size": config.n_inner or 4 * config.n_embd}


def read_weights(model):
    """The weights of a hub name or a folder by our names, in float32."""
    from transformers import GPT2Model

    how = {"ignore_mismatched_sizes": True, "output_loading_info": True}
    network, report = GPT2Model.from_pretrained(model, dtype=torch.float32, **how)
    known = re.compile(r"(lm_head\.weight|attn\.(masked_)?bias)$")  # the tied head, old masks
    extra = sorted(name for name in report["unexpected_keys"] if not known.search(name))
    wrong = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    mismatched = [name if isinstance(name, str) else name[0] for name in report["mismatched_keys"]]
    wrong += [f"{name} has another shape" for name in mismatched]
    wrong += [f"{name} is unknown" for name in extra if re.search(r"\b(wte|wpe|h|ln_f)\.", name)]
    if wrong:
        wrong = f"{len(wrong)} tensors do not fit config.json, the first: {wrong[0]}"
        raise ValueError(f"{model}: {wrong}")
    if extra:
        warnings.warn(f"{model}: not a part of GPT-2, ignored: {extra}", stacklevel=3)
    ours, theirs = {}, network.state_dict()
    del network
    for name in list(theirs):  # emptied on the way: large weights are never held twice
        tensor, names = theirs.pop(name), our_names(name)
        parts = (tensor.t() if ".c_" in name else tensor).chunk(len(names))
        for our_name, part in zip(names, parts, strict=True):
            ours[our_name] = part.clone(memory_format=torch.contiguous_format)
    return ours


def our_names(name):
    """A tensor's name at HuggingFace -> its names here: three of c_attn's, one of the others'."""
    if match := re.fullmatch(r"h\.(\d+)\.(.+)\.(weight|bias)", name):
        layer, module, kind = match.groups()
        return [f"gpt_layers.{layer}.{ours}.{kind}" for ours in LAYER[module]]
    module, _, kind = name.partition(".")
    return [f"{ours}.{kind}" for ours in MODULES[module]]
