"""A micro-batch: what it says of its rows and tokens, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from finetune_local.spec.batch import Batch

IDS = np.arange(12, dtype=np.int32).reshape(3, 4)
LENGTHS = np.array([4, 3, 4], np.int32)
MASK = np.array([[0, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 1]], np.bool_)


def test_without_groups_every_row_is_an_example_of_weight_one() -> None:
    batch = Batch(IDS, LENGTHS, MASK)
    assert (batch.supervised, batch.tokens, batch.examples) == (4, 11, 3)
    assert batch.group.tolist() == batch.row_groups.tolist() == [0, 1, 2]
    assert batch.weight.tolist() == [1.0, 1.0, 1.0] and batch.reference is None
    assert batch.token_rows.tolist() == [0, 0, 1, 2]
    assert batch.token_rows.dtype == batch.row_groups.dtype == np.int32


def test_groups_are_numbered_within_the_batch() -> None:
    batch = Batch(IDS, LENGTHS, MASK, np.array([90, 5, 90], np.int32))
    assert (batch.examples, batch.row_groups.tolist()) == (2, [1, 0, 1])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"group": np.zeros(2, np.int32)}, "3 rows have 2 groups"),
        ({"weight": np.ones(4, np.float32)}, "3 rows have 3 groups and 4 weights"),
        ({"reference": np.zeros(3, np.float32)}, "4 supervised tokens"),
    ],
)
def test_what_does_not_fit_the_rows_is_refused(more: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Batch(IDS, LENGTHS, MASK, **more)
