"""Completions in columns: what goes in comes out, and what is chosen of them copies no token."""

import numpy as np
import torch

from nemo_simplerl.rollout.base import Completion
from nemo_simplerl.rollout.completions import Completions, decode_text, encode_text, seeds_of

FLOATS = torch.tensor([-0.1, -7.3, -1e-30]).tolist()
COMPLETIONS = [
    Completion((5, 2**31 - 1), tuple(FLOATS[:2]), "na\u00efve", "stop", 3, 2**63 - 1),
    Completion((), (), "", "length", 4, -1),
    Completion((0,), (FLOATS[2],), "x", "length", 3, 7),
]


def test_completions_in_columns_come_back_exactly():
    columns = Completions.of(COMPLETIONS)
    assert list(columns) == COMPLETIONS == columns[:] and columns == COMPLETIONS
    assert columns.lengths.tolist() == [2, 0, 1] and Completions.of(columns) is columns
    assert list(Completions.of([])) == [] == Completions.joined([])
    assert columns != COMPLETIONS[:2] and columns != COMPLETIONS[::-1]
    assert decode_text(encode_text("\u03c0 = \ud800")) == "\u03c0 = \ud800"


def test_any_integer_is_a_seed_and_those_that_are_alike_to_an_engine_are_alike():
    assert seeds_of([0, 2**63 - 1, 2**63, 2**64 - 1, -1, 2**64]).tolist() == [0, 2**63 - 1, -(2**63), -1, -1, 0]


def test_completions_of_a_flat_array_are_chosen_and_joined_without_a_copy_of_it():
    flat = np.arange(6, dtype=np.int32)
    three = Completions.from_flat(
        flat,
        -flat.astype(np.float32),
        np.array([2, 0, 4]),
        texts=["a", "b", "c"],
        is_stopped=np.array([True, False, True]),
        versions=np.array([1, 1, 2]),
        seeds=np.array([7, 8, 9]),
    )
    chosen = Completions.joined([three.select([2, 0]), three])
    assert [list(one.token_ids) for one in chosen] == [[2, 3, 4, 5], [0, 1], [0, 1], [], [2, 3, 4, 5]]
    assert (chosen[0].text, chosen[0].finish_reason, chosen[0].weight_version, chosen[0].seed) == ("c", "stop", 2, 9)
    assert all(np.shares_memory(row, flat) for row in chosen.token_ids if len(row))
