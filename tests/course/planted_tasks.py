"""Mistakes in the optimizer and the three tasks."""

from mistakes import Mistake

ADAMW, SENTIMENT = "optimizer.py", "classifier.py"
PARAPHRASE, SONNET = "paraphrase_detection.py", "sonnet_generation.py"
CORRECTION = 'math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])'
UPDATE = "param.addcdiv_(exp_avg, exp_avg_sq.sqrt().add_(eps), value=-step_size)"
DECAYED = "    if decay:\n        param.mul_(1 - decay)\n"
HEAD = 'self.classify(self.gpt(input_ids, attention_mask)["last_token"])'
READ = 'last_token = self.gpt(input_ids, attention_mask)["last_token"]'
ANSWERS = "F.linear(last_token, self.gpt.word_embedding.weight[self.answer_tokens])"
STATES = 'self.gpt(input_ids, attention_mask)["last_hidden_state"]'

IN_TASKS = [
    Mistake(
        "adamw.bias",
        "neither m nor v is bias-corrected",
        *(ADAMW, f"step_size *= {CORRECTION}", "step_size *= 1"),
    ),
    Mistake(
        "adamw.bias",
        "√v is not bias-corrected",
        *(ADAMW, CORRECTION, '1 / (1 - beta1 ** state["step"])'),
    ),
    Mistake(
        "adamw.bias",
        "m is not bias-corrected",
        *(ADAMW, CORRECTION, 'math.sqrt(1 - beta2 ** state["step"])'),
    ),
    Mistake(
        "adamw.epsilon",
        "ε is added below the root, expected √v + ε",
        *(ADAMW, "exp_avg_sq.sqrt().add_(eps)", "exp_avg_sq.add(eps).sqrt()"),
    ),
    Mistake(
        "adamw.moments",
        "m adds the whole gradient, expected (1 − β₁) of it",
        *(ADAMW, "exp_avg.lerp_(grad, 1 - beta1)", "exp_avg.mul_(beta1).add_(grad)"),
    ),
    Mistake(
        "adamw.moments",
        "v averages the gradient, expected its square",
        *(ADAMW, "addcmul_(grad, grad, value=1 - beta2)", "add_(grad, alpha=1 - beta2)"),
    ),
    Mistake(
        "adamw.decay",
        "weight decay is applied before the update, expected after it",
        *(ADAMW, f"    {UPDATE}\n{DECAYED}", f"{DECAYED}    {UPDATE}\n"),
    ),
    Mistake(
        "adamw.decay",
        "weight decay is not multiplied by the learning rate",
        *(ADAMW, 'lr * group["weight_decay"]', 'group["weight_decay"]'),
    ),
    Mistake(
        "adamw.decay",
        "weight decay is added to the gradient (L2), expected decoupled",
        *(
            ADAMW,
            "adamw_update(param, param.grad, *moments, step_size=step_size, decay=decay, **hyper)",
            'grad = param.grad + group["weight_decay"] * param\n            '
            "adamw_update(param, grad, *moments, step_size=step_size, decay=0, **hyper)",
        ),
    ),
    Mistake("adamw.decay", "there is no weight decay", ADAMW, DECAYED, ""),
    Mistake(
        "adamw.bias_off",
        "correct_bias=False is ignored",
        *(ADAMW, 'if group["correct_bias"]:', "if True:"),
    ),
    Mistake(
        "adamw.groups",
        "all groups use the options of the first one",
        *(ADAMW, "self._update(params, group)", "self._update(params, self.param_groups[0])"),
    ),
    Mistake(
        "adamw.skipped",
        "a parameter whose gradient is None was changed",
        *(
            ADAMW,
            '[param for param in group["params"] if param.grad is not None]',
            '[p for p in group["params"] if p.requires_grad]\n'
            "            for p in params:\n"
            "                p.grad = torch.zeros_like(p) if p.grad is None else p.grad",
        ),
    ),
    Mistake(
        "sentiment.reads",
        "the first token is used, expected the last real one",
        *(SENTIMENT, HEAD, f"self.classify({STATES}[:, 0])"),
    ),
    Mistake(
        "sentiment.reads",
        "the last position is used, which may be padding: the head sees padding",
        *(SENTIMENT, HEAD, f"self.classify({STATES}[:, -1])"),
    ),
    Mistake(
        "sentiment.raw",
        "the same input gives other logits: dropout is on in evaluation",
        *(SENTIMENT, "self.dropout(features)", "nn.functional.dropout(features)"),
    ),
    Mistake(
        "sentiment.frozen",
        "with --fine-tune-mode last-linear-layer the GPT-2 is trained, expected frozen",
        *(SENTIMENT, "self.gpt.requires_grad_(False)", "pass"),
    ),
    Mistake(
        "paraphrase.reads",
        "the last position is used, which may be padding: the head sees padding",
        *(PARAPHRASE, READ, f"last_token = {STATES}[:, -1]"),
    ),
    Mistake(
        "paraphrase.reads",
        "found logits of every position, expected those after the last real token",
        *(PARAPHRASE, READ, f"last_token = {STATES}"),
    ),
    Mistake(
        "paraphrase.tokens",
        'the logits are those of "yes" and "no": no is 0',
        *(PARAPHRASE, ANSWERS, f"{ANSWERS}.flip(1)"),
    ),
    Mistake(
        "paraphrase.tokens",
        'found the tokens " no" and " yes", with a space',
        *(PARAPHRASE, "self.answer_tokens])", "[645, 3763]])"),
    ),
    Mistake(
        "sonnet.positions",
        "found t − 1 positions: forward gives all, and the loss shifts",
        *(SONNET, STATES, f"{STATES}[:, :-1]"),
    ),
    Mistake(
        "sonnet.positions",
        "found logits of one position a text, expected those of every position (b, t, v)",
        *(SONNET, STATES, 'self.gpt(input_ids, attention_mask)["last_token"]'),
    ),
    Mistake(
        "sonnet.raw",
        "found log-probabilities, expected logits",
        *(SONNET, "(hidden_states)\n", "(hidden_states).log_softmax(-1)\n"),
    ),
]
