"""Tokens: one BOS, left padding, positions after the instruction."""

import pytest
import torch

from gating import chat
from gating.errors import GatingError


def test_padding_is_on_the_left_and_masked():
    ids, mask = chat.pad_left([[5, 6], [7, 8, 9]], 0)
    assert ids.tolist() == [[0, 5, 6], [7, 8, 9]] and mask.tolist() == [[0, 1, 1], [1, 1, 1]]


def test_named_positions_count_from_the_last_prompt_token_or_cover_the_answer():
    w = chat.position_weights(["last", "-1", "-2", "response_start", "response_mean"], 6, [0, 2], [6, 6])
    assert w[0, :3].argmax(-1).tolist() == [5, 5, 4] and torch.isnan(w[0, 3:]).all()
    assert w[1].tolist() == [
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0.5, 0.5],
    ]


@pytest.mark.parametrize("position", ["", "first", "0", "-0", "1", "-123", "response"])
def test_an_unknown_position_is_refused_with_the_known_ones(position):
    with pytest.raises(GatingError, match="response_mean"):
        chat.check_position(position)


def test_a_chat_has_one_bos_and_ends_where_the_answer_begins(tiny):
    tokenizer = tiny.tokenizer
    ids = chat.encode(tokenizer, "Hello", "Be brief.")
    if tokenizer.bos_token_id is not None:
        assert ids.count(tokenizer.bos_token_id) <= 1
    text = tokenizer.decode(ids)
    assert "Hello" in text and "Be brief." in text
    assert ids[: len(ids) - chat.suffix_length(tokenizer)] != ids


def test_post_instruction_tokens_are_the_same_for_every_prompt(tiny):
    n = chat.suffix_length(tiny.tokenizer, "Be brief.")
    a, b = (chat.encode(tiny.tokenizer, u, "Be brief.") for u in ("Hello there", "What is 1 + 1?"))
    assert n > 0 and a[-n:] == b[-n:] and a[-n - 1] != b[-n - 1]
