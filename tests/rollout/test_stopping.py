import numpy as np
import pytest

from nemo_simplerl.rollout.stopping import StopRule, tail_length

VOCABULARY = [b"a", b"b", b"</", b"s", b">", b">x", b" ", b"\xc3", b"\xa9", b"<end>"]
A, B, OPEN, S, CLOSE, CLOSE_X, SPACE, E1, E2, END = range(len(VOCABULARY))


class ByteDecoder:
    """A decoder that joins the bytes of tokens, as a byte-level BPE does; <end> is a special token."""

    def __init__(self):
        self.decoded_tokens = 0

    def decode(self, token_ids, skip_special_tokens):
        self.decoded_tokens += len(token_ids)
        ids = [token for token in token_ids if not (skip_special_tokens and token == END)]
        return b"".join(VOCABULARY[token] for token in ids).decode(errors="replace")


def first_stop(tokens, stop=(), stop_token_ids=(), decoder=None):
    """Position of the token that ends a response, None when it runs on."""
    rule = StopRule(stop, stop_token_ids, decoder or ByteDecoder(), len(VOCABULARY))
    table = np.array([tokens])
    return next((last for last in range(len(tokens)) if rule.stopped(table, np.array([0]), last)[0]), None)


@pytest.mark.parametrize(
    ("tokens", "stop", "at"),
    [
        ([A, OPEN, S, CLOSE, A], ["</s>"], 3),
        ([A, OPEN, S, CLOSE_X, A], ["</s>"], 3),  # the token that completes it brings more text
        ([A, OPEN, S, B, CLOSE], ["</s>"], None),
        ([CLOSE, OPEN, S], ["</s>"], None),
        ([A, B, OPEN, S], ["s", "b"], 1),
        ([A, E1, E2, B], ["\u00e9"], 2),  # a character in two tokens
        ([A, SPACE, SPACE, B], ["  "], 2),
        ([A, END, B], ["<end>"], 1),  # a special token's own text counts
        ([A, A, A], [], None),
    ],
)
def test_a_response_ends_at_the_token_that_completes_a_stop_string(tokens, stop, at):
    assert first_stop(tokens, stop) == at


def test_a_response_ends_at_a_stop_token():
    assert first_stop([A, B, CLOSE, B], stop_token_ids=[CLOSE, S]) == 2
    assert first_stop([A, B, CLOSE, B], stop=["</s>"], stop_token_ids=[CLOSE]) == 2


def test_rows_are_judged_apart_and_in_their_order():
    rule = StopRule(["ab"], [S], ByteDecoder(), len(VOCABULARY))
    table = np.array([[A, B], [B, B], [A, S], [A, B]])
    assert rule.stopped(table, np.array([3, 1, 2]), 1).tolist() == [True, False, True]


def test_a_long_response_is_not_decoded_again_for_every_token():
    decoder = ByteDecoder()
    tokens = [A, B] * 400 + [CLOSE, B] * 10 + [OPEN, S, CLOSE]
    assert first_stop(tokens, ["</s>"], decoder=decoder) == len(tokens) - 1
    assert decoder.decoded_tokens <= 11 * tail_length(["</s>"]) + len(VOCABULARY)


def test_stops_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="need a tokenizer"):
        StopRule(["</s>"], [], None, 10)
    with pytest.raises(ValueError, match=r"\[10\] are no ids .* of 10"):
        StopRule([], [3, 10], None, 10)
