"""`ParaphraseGPT.__init__` in paraphrase_detection.py."""

from helpers import seeded, settings

from engine.prediction_files import ANSWER_TOKENS
from paraphrase_detection import ParaphraseGPT


def test_the_answers_are_no_and_yes_in_this_order():
    found = seeded(ParaphraseGPT, settings(answer_tokens=[4, 9])).answer_tokens.tolist()
    assert found == [4, 9], f"args.answer_tokens is [4, 9], answer_tokens has {found}."


def test_gpt2s_own_tokens_are_the_default():
    found = seeded(ParaphraseGPT, settings()).answer_tokens.tolist()
    expected = list(ANSWER_TOKENS.values())
    assert found == expected, f"Without args.answer_tokens: {expected}, found {found}."


def test_they_move_with_the_model_and_are_in_no_checkpoint():
    model = seeded(ParaphraseGPT, settings())
    assert "answer_tokens" in dict(model.named_buffers()), (
        "answer_tokens is no buffer: on a GPU it would stay behind."
    )
    assert "answer_tokens" not in model.state_dict(), (
        "answer_tokens is in the checkpoint: it belongs to the tokenizer, so let it be not "
        "persistent."
    )
