"""Mistakes in attention, the layer and the model."""

from mistakes import Mistake

ATTENTION, LAYER, GPT2 = "modules/attention.py", "modules/gpt2_layer.py", "models/gpt2.py"
ROOT_K = "/ math.sqrt(query.shape[-1])"
TRIU = ".triu(diagonal=s - t + 1)"
JOIN = 'rearrange(attended, "b h t k -> b t (h k)")'
SPLIT = 'rearrange(linear(x), "b t (h k) -> b h t k", h=self.num_attention_heads)'
WEIGHTS = "F.dropout(scores.softmax(dim=-1), dropout)"
SEES = "rows of the attention matrix attend to the future: position 0 sees position 5"
STRICT = "the mask hides the last position too: a position must see itself"
NORMED = "self.self_attention(self.attention_layer_norm(hidden_states), attention_mask)"
ADD = "return input + dropout(dense_layer(output))"
EXPANDED = "self.interm_af(self.interm_dense(self.out_layer_norm(hidden_states)))"
EMBED = "self.word_embedding(input_ids) + self.pos_embedding(positions)"
STACK = "self.final_layer_norm(self.encode(self.embed(input_ids), attention_mask))"
LOGITS = "hidden_state @ self.word_embedding.weight.T"
LAST = "states_at(hidden_states, last_positions(attention_mask))"

IN_MODEL = [
    Mistake(
        "attention.transform",
        "the heads are cut out of the wrong axis",
        *(ATTENTION, SPLIT, "linear(x).reshape(len(x), self.num_attention_heads, x.shape[1], -1)"),
    ),
    Mistake(
        "attention.transform",
        "the numbers of all heads alternate, expected one head after the other: (h k), not (k h)",
        *(ATTENTION, SPLIT, SPLIT.replace("(h k)", "(k h)")),
    ),
    Mistake(
        "attention.transform",
        "found (b, t, h, k), expected (b, h, t, k)",
        *(ATTENTION, SPLIT, SPLIT.replace("-> b h t k", "-> b t h k")),
    ),
    Mistake(
        "attention.transform",
        "the linear layer that is given is not applied",
        *(ATTENTION, SPLIT, SPLIT.replace("linear(x)", "x")),
    ),
    Mistake(
        "attention.scale",
        "scores are divided by d, expected √(d/h)",
        *(ATTENTION, ROOT_K, "/ (query.shape[-1] * query.shape[-3])"),
    ),
    Mistake(
        "attention.scale",
        "scores are divided by √d, expected √(d/h)",
        *(ATTENTION, ROOT_K, "/ math.sqrt(query.shape[-1] * query.shape[-3])"),
    ),
    Mistake(
        "attention.scale",
        "scores are divided by d/h, expected its root √(d/h)",
        *(ATTENTION, ROOT_K, "/ query.shape[-1]"),
    ),
    Mistake(
        "attention.scale",
        "scores are not divided, expected by √(d/h)",
        *(ATTENTION, ROOT_K, ""),
    ),
    Mistake("attention.causal", SEES, ATTENTION, TRIU, ".triu(diagonal=t)"),
    Mistake("attention.causal", STRICT, ATTENTION, TRIU, ".triu(diagonal=0)"),
    Mistake(
        "attention.causal",
        "the mask hides the past, expected the future: position 0 sees position 5",
        *(ATTENTION, TRIU, ".tril(diagonal=-1)"),
    ),
    Mistake(
        "attention.causal",
        "hidden scores are 0, expected a large negative one: position 0 sees position 5",
        *(
            ATTENTION,
            "masked_fill(future, torch.finfo(scores.dtype).min)",
            "masked_fill(future, 0)",
        ),
    ),
    Mistake(
        "attention.causal",
        "the causal mask is set after the softmax: the weights no longer sum to 1",
        *(
            ATTENTION,
            "masked_fill(future, torch.finfo(scores.dtype).min)\n    if padding_mask is not None:\n"
            f"        scores = scores + padding_mask\n    weights = {WEIGHTS}",
            "clone()\n    if padding_mask is not None:\n        scores = scores + padding_mask\n"
            f"    weights = {WEIGHTS}.masked_fill(future, 0)",
        ),
    ),
    Mistake(
        "attention.padding",
        "the padding mask is not added: padding is seen: position 1 sees position 0",
        *(ATTENTION, "scores = scores + padding_mask", "pass"),
    ),
    Mistake(
        "attention.padding",
        "the padding mask is multiplied with the scores, expected added to them",
        *(ATTENTION, "scores = scores + padding_mask", "scores = scores * padding_mask"),
    ),
    Mistake(
        "attention.softmax",
        "the softmax is over the queries, expected over the keys",
        *(ATTENTION, "softmax(dim=-1)", "softmax(dim=-2)"),
    ),
    Mistake(
        "attention.softmax",
        "the softmax is over the heads, expected over the keys",
        *(ATTENTION, "softmax(dim=-1)", "softmax(dim=1)"),
    ),
    Mistake(
        "attention.operands",
        "query and key are swapped: scores are query @ keyᵀ",
        *(ATTENTION, "query @ key.mT", "key @ query.mT"),
    ),
    Mistake(
        "attention.heads",
        "the heads are joined without moving them next to their own numbers",
        *(ATTENTION, JOIN, "attended.reshape(len(attended), attended.shape[2], -1)"),
    ),
    Mistake(
        "attention.heads",
        "the numbers of all heads alternate, expected one head after the other",
        *(ATTENTION, JOIN, JOIN.replace("(h k)", "(k h)")),
    ),
    Mistake(
        "attention.forward",
        "forward swaps query and key",
        *(ATTENTION, "self.attention(key, query, value,", "self.attention(query, key, value,"),
    ),
    Mistake(
        "attention.forward",
        "forward takes the key's projection for the value, too",
        *(ATTENTION, "self.transform(hidden_states, self.value)", "key"),
    ),
    Mistake(
        "attention.dropout",
        "attention weights are dropped in evaluation, expected in training only",
        *(ATTENTION, "self.dropout.p if self.training else 0.0", "self.dropout.p"),
    ),
    Mistake(
        "attention.dropout",
        "no attention weights are dropped in training: self.dropout is not applied",
        *(ATTENTION, WEIGHTS, "scores.softmax(dim=-1)"),
    ),
    Mistake(
        "attention.dropout",
        "single numbers of the output are dropped, expected attention weights",
        *(
            ATTENTION,
            f"{WEIGHTS}\n    return weights @ value",
            "scores.softmax(dim=-1)\n    return F.dropout(weights @ value, dropout)",
        ),
    ),
    Mistake(
        "layer.residuals",
        "attention's residual is missing: x is not added",
        *(
            LAYER,
            "hidden_states, attended, self.attention_dense",
            "0.0, attended, self.attention_dense",
        ),
    ),
    Mistake(
        "layer.residuals",
        "the MLP's residual adds the normed x, expected x",
        *(
            LAYER,
            "self.add(hidden_states, expanded",
            "self.add(self.out_layer_norm(hidden_states), expanded",
        ),
    ),
    Mistake(
        "layer.norms",
        "the norms come after the sums, expected before each part",
        *(
            LAYER,
            "attended = " + NORMED,
            "attended = self.self_attention(hidden_states, attention_mask)\n"
            "        hidden_states = self.attention_layer_norm(self.add(\n"
            "            hidden_states, attended, self.attention_dense, self.attention_dropout\n"
            "        ))\n"
            "        expanded = self.interm_af(self.interm_dense(hidden_states))\n"
            "        return self.out_layer_norm(\n"
            "            self.add(hidden_states, expanded, self.out_dense, self.out_dropout)\n"
            "        )\n",
        ),
    ),
    Mistake(
        "layer.norms",
        "attention's norm is missing",
        *(LAYER, NORMED, "self.self_attention(hidden_states, attention_mask)"),
    ),
    Mistake(
        "layer.norms",
        "attention_layer_norm is used twice",
        *(LAYER, EXPANDED, EXPANDED.replace("out_layer", "attention_layer")),
    ),
    Mistake(
        "layer.activation",
        "there is no activation between the two layers",
        *(LAYER, EXPANDED, "self.interm_dense(self.out_layer_norm(hidden_states))"),
    ),
    Mistake(
        "layer.activation",
        "the activation is ReLU, expected GELU",
        *(LAYER, 'nn.GELU(approximate="tanh")', "nn.ReLU()"),
    ),
    Mistake(
        "layer.parts",
        "the attention mask is not given to self_attention",
        *(LAYER, "(hidden_states), attention_mask)", "(hidden_states), 0 * attention_mask)"),
    ),
    Mistake(
        "layer.dropout",
        "the sum is dropped, expected the dense layer's output alone",
        *(LAYER, ADD, "return dropout(input + dense_layer(output))"),
    ),
    Mistake(
        "layer.dropout",
        "no numbers of the dense layer's output are dropped in training",
        *(LAYER, ADD, "return input + dense_layer(output)"),
    ),
    Mistake(
        "model.embed",
        "the position embedding is not added",
        *(GPT2, EMBED, "self.word_embedding(input_ids)"),
    ),
    Mistake(
        "model.embed",
        "positions are counted from 1, expected from 0",
        *(GPT2, "torch.arange(t, device=input_ids.device)", "torch.arange(1, t + 1)"),
    ),
    Mistake(
        "model.stack",
        "the final layer norm is missing",
        *(GPT2, STACK, "self.encode(self.embed(input_ids), attention_mask)"),
    ),
    Mistake(
        "model.stack",
        "the layers run in the wrong order",
        *(GPT2, "in self.gpt_layers:", "in reversed(self.gpt_layers):"),
    ),
    Mistake(
        "model.stack",
        "the attention mask is not given to the layers",
        *(
            GPT2,
            "get_extended_attention_mask(attention_mask,",
            "get_extended_attention_mask(torch.ones_like(attention_mask),",
        ),
    ),
    Mistake(
        "model.last_right",
        "last_token is the first token, expected the last real one",
        *(GPT2, LAST, "hidden_states[:, 0]"),
    ),
    Mistake(
        "model.last_right",
        "last_token is the last position: the head sees padding",
        *(GPT2, LAST, "hidden_states[:, -1]"),
    ),
    Mistake(
        "model.last_left",
        "last_token is at mask.sum() − 1, which is right for right padding only",
        *(GPT2, LAST, "states_at(hidden_states, attention_mask.sum(1) - 1)"),
    ),
    Mistake(
        "model.logits",
        "found probabilities, expected logits: no softmax",
        *(GPT2, LOGITS, f"({LOGITS}).softmax(-1)"),
    ),
    Mistake(
        "model.logits",
        "found another matrix than the word embedding: logits are h @ Eᵀ (tied)",
        *(
            GPT2,
            "@ self.word_embedding.weight.T",
            "@ torch.randn(self.word_embedding.weight.T.shape)",
        ),
    ),
]
