from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_local.data.dataset.batching import batches_for_scoring, epoch_batches, micro_batches, steps_per_epoch
from finetune_local.data.dataset.store import Dataset, Row, Writer
from finetune_local.system.errors import DataError

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=300)


@given(LENGTHS, st.integers(1, 20), st.integers(0, 2**31 - 1), st.integers(0, 5))
def test_every_row_comes_once_an_epoch(lengths: list[int], batch_size: int, seed: int, epoch: int) -> None:
    batches = epoch_batches(np.array(lengths, np.int32), batch_size, seed, epoch)
    assert sorted(int(i) for b in batches for i in b) == list(range(len(lengths)))
    assert len(batches) == steps_per_epoch(len(lengths), batch_size)
    assert sorted((len(b) for b in batches), reverse=True)[:-1] == [batch_size] * (len(batches) - 1)
    again = epoch_batches(np.array(lengths, np.int32), batch_size, seed, epoch)
    assert [b.tolist() for b in batches] == [b.tolist() for b in again]


def test_the_order_depends_on_seed_and_epoch() -> None:
    lengths = np.arange(1, 200, dtype=np.int32)
    orders = {str([b.tolist() for b in epoch_batches(lengths, 4, seed, epoch)]) for seed in (1, 2) for epoch in (0, 1)}
    assert len(orders) == 4


def test_padding_is_small_and_order_stays_mixed() -> None:
    lengths = np.random.default_rng(0).integers(10, 500, 2000).astype(np.int32)
    batches = epoch_batches(lengths, 8, 0, 0)
    padded = sum(len(b) * int(lengths[b].max()) for b in batches)
    assert padded < 1.15 * lengths.sum()
    means = [float(lengths[b].mean()) for b in batches]
    assert abs(float(np.corrcoef(means, np.arange(len(means)))[0, 1])) < 0.3


def dataset(folder: Path, lengths: list[int]) -> Dataset:
    with Writer(folder, "train") as writer:
        for row, length in enumerate(lengths):
            ids = np.arange(length, dtype=np.int32) + 1000 * row
            writer.add(Row(ids, ids % 3 == 1))
    return Dataset(folder, "train")


@given(lengths=LENGTHS, budget=st.integers(1, 200), data=st.data())
def test_micro_batches_hold_each_row_once_within_the_budget(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], budget: int, data: st.DataObject
) -> None:
    rows = dataset(tmp_path_factory.getbasetemp(), lengths)
    wanted = data.draw(st.lists(st.sampled_from(range(len(lengths))), min_size=1, max_size=40, unique=True))
    found = list(batches_for_scoring(rows, wanted, budget))
    assert sorted(int(i) for indices, _ in found for i in indices) == sorted(wanted)
    for indices, batch in found:
        count, longest = batch.ids.shape
        assert count == 1 or count * longest <= budget
        assert longest == batch.lengths.max()
        assert batch.tokens == sum(lengths[i] for i in indices)
        for at, index in enumerate(indices):
            row = rows.row(int(index))
            ids, mask = row.ids, row.mask
            assert batch.ids[at, : len(ids)].tolist() == ids.tolist()
            assert batch.mask[at, : len(ids)].tolist() == mask.tolist()
            assert not batch.mask[at, len(ids) :].any()
            assert not batch.ids[at, len(ids) :].any()
    pieces = micro_batches(rows, wanted, budget)
    assert [b.ids.tolist() for b in pieces] == [b.ids.tolist() for _, b in found]
    assert [b.ids.shape[1] for b in pieces] == sorted((b.ids.shape[1] for b in pieces), reverse=True)
    assert pieces[0].ids.dtype == pieces[0].lengths.dtype == np.int32


def pairs(folder: Path, lengths: list[tuple[int, int]]) -> Dataset:
    with Writer(folder, "pairs") as writer:
        for number, (chosen, rejected) in enumerate(lengths):
            writer.add(
                *(Row(np.full(n, number, np.int32), np.arange(n) > 0, w) for n, w in ((chosen, 1.0), (rejected, -1.0)))
            )
    return Dataset(folder, "pairs")


@given(
    lengths=st.lists(st.tuples(st.integers(2, 60), st.integers(2, 60)), min_size=1, max_size=80),
    budget=st.integers(1, 400),
)
def test_an_example_is_never_split(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[tuple[int, int]], budget: int
) -> None:
    data = pairs(tmp_path_factory.getbasetemp(), lengths)
    assert data.lengths.tolist() == [max(pair) for pair in lengths] and len(data) == len(lengths)
    seen = []
    for indices, batch in batches_for_scoring(data, list(range(len(data))), budget):
        assert batch.group.tolist() == [n for n in range(len(indices)) for _ in (0, 1)]
        assert batch.weight.tolist() == [1.0, -1.0] * len(indices)
        assert batch.ids[:, 0].tolist() == [i for i in indices for _ in (0, 1)]
        assert len(indices) == 1 or batch.ids.size <= budget
        seen += indices.tolist()
    assert sorted(seen) == list(range(len(data)))


def test_rows_of_weight_one_need_no_more_files(tmp_path: Path) -> None:
    dataset(tmp_path, [3, 4])
    assert not list(tmp_path.glob("train.examples")) and not list(tmp_path.glob("train.weights"))
    pairs(tmp_path, [(3, 4)])
    (tmp_path / "pairs.weights").write_bytes(b"")
    with pytest.raises(DataError, match="damaged"):
        Dataset(tmp_path, "pairs")
