"""`ParaphraseGPT.forward` in paraphrase_detection.py."""

from helpers import IDS, MASK, same, seeded, settings, shaped

from paraphrase_detection import ParaphraseGPT


def model():
    return seeded(ParaphraseGPT, settings(answer_tokens=[4, 9])).eval()


def test_the_logits_are_those_of_no_and_of_yes():
    answer = model()
    found = answer(IDS, MASK)
    shaped(found, (2, 2), "2 texts, and the logits of 2 answers for each.")
    states = answer.gpt(IDS, MASK)["last_hidden_state"]
    logits = answer.gpt.hidden_state_to_token(states).tolist()
    expected = [[logits[0][2][4], logits[0][2][9]], [logits[1][4][4], logits[1][4][9]]]
    same(
        found,
        expected,
        "Column 0 is the logit of answer_tokens[0] after the last real "
        "token, column 1 that of answer_tokens[1].",
    )


def test_padding_changes_nothing():
    answer = model()
    alone = answer(IDS[:1, :3], MASK[:1, :3])
    same(
        answer(IDS, MASK)[:1],
        alone,
        "The first text is answered otherwise than alone: its answer follows its last real token.",
    )


def test_no_new_layer_is_needed():
    answer = model()
    answer(IDS, MASK)
    others = [name for name, _ in answer.named_parameters() if not name.startswith("gpt.")]
    assert others == [], f"GPT-2 answers by its own embedding; found more weights: {others}."
