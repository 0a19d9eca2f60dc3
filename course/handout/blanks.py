"""The bodies that students write, in the order in which they are best written."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Blank:
    """A body that the starter leaves out.

    file, name: where it is, "function" or "Class.method". section: of handout.md, where it is
    explained. hint: stands in the body's place, as a comment. part: only the statements that
    mention one of these names are left out. helpers: definitions of the same file that hold a piece
    of the answer and go with it. test: the student's test file.
    """

    file: str
    name: str
    section: str
    hint: str
    test: str
    part: tuple[str, ...] = ()
    helpers: tuple[str, ...] = ()


BLANKS = (
    Blank(
        "modules/attention.py",
        "causal_attention",
        "Attention",
        """\
Scores first, then the two masks, then the softmax and its dropout, then the mean of the values.
In training t = s. In generation there may be fewer queries than keys: they are the last ones.
Where padding is on the left, a row sees padding alone; its output must be finite all the same.""",
        test="test_01_causal_attention.py",
    ),
    Blank(
        "modules/attention.py",
        "CausalSelfAttention.attention",
        "Attention",
        """\
Call self.attend, which is causal_attention unless a run puts another function there; then join
the heads, the inverse of what `transform` does. Attention weights are dropped in training only.""",
        test="test_02_heads.py",
    ),
    Blank(
        "modules/gpt2_layer.py",
        "GPT2Layer.add",
        "The layer",
        "The dense layer and the dropout are of what a sublayer gave, not of the sum.",
        test="test_03_residual.py",
    ),
    Blank(
        "modules/gpt2_layer.py",
        "GPT2Layer.forward",
        "The layer",
        """\
Two sublayers, each on its own layer normalisation, and each ending in `add`. Normalise what goes
into a sublayer, never the sum itself.""",
        test="test_04_layer.py",
    ),
    Blank(
        "models/gpt2.py",
        "GPT2Model.embed",
        "The embedding",
        """\
Look up both embeddings, add them, then dropout. More tokens than there are positions: raise a
ValueError that names both numbers.""",
        test="test_05_embed.py",
    ),
    Blank(
        "models/gpt2.py",
        "GPT2Model.hidden_state_to_token",
        "From hidden states to tokens",
        "Every token's logit is the dot product of the hidden state with its embedding.",
        test="test_06_hidden_state_to_token.py",
    ),
    Blank(
        "optimizer.py",
        "AdamW.step",
        "AdamW",
        """\
Keep "step", "exp_avg" and "exp_avg_sq" of each parameter in self.state[param]; the numbers of the
formula are in its group, by the names of `defaults`. Parameters without a gradient do not move.
Change parameters in place, and outside of autograd.""",
        test="test_07_adamw.py",
        helpers=(
            *("adamw_update", "AdamW.init_state", "AdamW._init_group"),
            *("AdamW._update", "AdamW._advanced", "AdamW._begin"),
        ),
    ),
    Blank(
        "classifier.py",
        "GPT2SentimentClassifier.__init__",
        "Sentiment",
        """\
Make self.dropout, of probability config.hidden_dropout_prob, and self.sentiment_head, a linear
layer from GPT-2's hidden size to the labels.""",
        test="test_08_classifier_modules.py",
        part=("dropout", "sentiment_head"),
    ),
    Blank(
        "classifier.py",
        "GPT2SentimentClassifier.classify",
        "Sentiment",
        "Dropout, then the linear layer. No softmax: the loss takes logits.",
        test="test_09_classify.py",
    ),
    Blank(
        "classifier.py",
        "GPT2SentimentClassifier.forward",
        "Sentiment",
        "self.gpt gives a dict: see `forward` in models/gpt2.py. `classify` does the rest.",
        test="test_10_classifier.py",
    ),
    Blank(
        "paraphrase_detection.py",
        "ParaphraseGPT.__init__",
        "Paraphrases",
        """\
Keep the two ids of args.answer_tokens (default: the values of ANSWER_TOKENS) as a tensor that
moves to the GPU with the model and is in no checkpoint: a buffer, persistent=False.""",
        test="test_11_answer_tokens.py",
        part=("answer_tokens",),
    ),
    Blank(
        "paraphrase_detection.py",
        "ParaphraseGPT.forward",
        "Paraphrases",
        """\
The model answers with its next token: so logits come from the embedding, and no new layer is
needed. Only two of the vocabulary's logits are asked for; do not compute the others.""",
        test="test_12_paraphrase.py",
    ),
    Blank(
        "sonnet_generation.py",
        "SonnetGPT.forward",
        "Sonnets",
        "Here every position predicts its next token, not the last one alone.",
        test="test_13_sonnet.py",
    ),
    Blank(
        "engine/sampling.py",
        "keep_top_p",
        "Sampling",
        """\
Sort, sum up, and drop each token before which the sum has reached p already; then bring what you
found back into the order of the vocabulary. `keep_top_k` shows how to drop a token.""",
        test="test_14_top_p.py",
    ),
    Blank(
        "engine/sampling.py",
        "choose",
        "Sampling",
        """\
Divide by the temperature, keep the k likeliest and then the nucleus, draw with `generator`.
torch.multinomial draws from probabilities.""",
        test="test_15_choose.py",
        part=("temperature", "top_p"),
        helpers=("ATTEMPTS", "draw_from_nucleus", "draw"),
    ),
)
