"""Virtual tokens before rows and batches."""

from __future__ import annotations

import numpy as np

from finetune_local.spec.batch import Batch
from finetune_local.spec.tuners import VirtualIds
from finetune_local_backends.virtual import batch_with, mean_over_ensemble, row_with

BATCH = Batch(
    ids=np.array([[5, 6, 7], [8, 9, 0]], np.int32),
    lengths=np.array([3, 2], np.int32),
    mask=np.array([[False, True, True], [False, True, False]]),
)


def test_every_member_has_its_own_ids_past_the_vocabulary() -> None:
    tokens = VirtualIds(count=2, ensemble_size=3)
    assert row_with([5, 6], 100, tokens) == [100, 101, 5, 6]
    assert row_with([5, 6], 100, tokens, prompt=2) == [104, 105, 5, 6]
    assert row_with([5, 6], 100, VirtualIds()) == [5, 6]


def test_a_batch_is_repeated_member_by_member() -> None:
    made = batch_with(BATCH, 100, VirtualIds(count=2, ensemble_size=2))
    assert made.ids.dtype == made.lengths.dtype == np.int32
    assert made.ids.tolist() == [
        [100, 101, 5, 6, 7],
        [100, 101, 8, 9, 0],
        [102, 103, 5, 6, 7],
        [102, 103, 8, 9, 0],
    ]
    assert made.lengths.tolist() == [5, 4, 5, 4]
    assert made.supervised == 2 * BATCH.supervised
    assert not made.mask[:, :2].any()
    np.testing.assert_array_equal(made.ids[made.mask], [6, 7, 9, 6, 7, 9])


def test_without_virtual_tokens_the_batch_is_handed_back() -> None:
    assert batch_with(BATCH, 100, VirtualIds()) is BATCH


def test_the_mean_is_over_members_not_over_rows() -> None:
    values = np.array([1, 2, 3, 5, 6, 7], np.float32)
    assert mean_over_ensemble(values, 2).tolist() == [3, 4, 5]
    assert mean_over_ensemble(values, 1) is values
