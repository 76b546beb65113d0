"""Encoded examples on disk, memory-mapped: `<name>.ids`, `<name>.mask`, `<name>.offsets`. Any size of data, little memory.

Where examples have several rows, or rows have weights, `<name>.examples` and `<name>.weights` say so.
"""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from finetune_local.system.errors import DataError, DiskFull
from finetune_local.system.files import disk_full
from finetune_local.system.messages import msg

ADVICE = msg("The prepared data is stored here. Free some space, or choose a --home on another disk.")

SUFFIXES = (".ids", ".mask", ".offsets")
EXAMPLES, WEIGHTS = ".examples", ".weights"

Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Row:
    """One row: `ids` (length,), `mask` (length,), true where a token is supervised, and its weight (Batch.weight)."""

    ids: Ids
    mask: Mask
    weight: float = 1.0
    reference: npt.NDArray[np.float32] | None = None
    """The reference's log-probabilities of its supervised tokens, if they are cached."""


class Dataset:
    """Examples of a written store, each of one row or several.

    Files: ids int32 and mask bool of all rows, end to end; offsets int64, where each row begins, and the end; examples int64,
    the number of each example's first row, and that of all rows; weights float32, one a row. Without the last two every row is
    an example of weight 1.
    """

    def __init__(self, folder: Path, name: str) -> None:
        """Raises DataError if files are missing or inconsistent."""
        self.folder, self.name = folder, name
        try:
            self._offsets = np.fromfile(folder / f"{name}.offsets", np.int64)
            self._ids = _mapped(folder / f"{name}.ids", np.dtype(np.int32))
            self._mask = _mapped(folder / f"{name}.mask", np.dtype(np.bool_))
        except (OSError, ValueError) as error:
            raise DataError(
                msg(
                    "{folder}: the prepared {split} data cannot be read ({error}). Start a new run.",
                    folder=folder,
                    split=name,
                    error=error,
                )
            ) from None
        end = int(self._offsets[-1]) if len(self._offsets) else -1
        if not end == len(self._ids) == len(self._mask):
            raise DataError(
                msg("{folder}: the prepared {split} data is incomplete. Start a new run.", folder=folder, split=name)
            )
        lengths = np.diff(self._offsets)
        if int(self._offsets[0]) != 0 or (len(lengths) and int(lengths.min()) < 0):
            raise DataError(
                msg(
                    "{folder}: the prepared {name} data is damaged ({name}.offsets). Start a new run.",
                    folder=folder,
                    name=name,
                )
            )
        self.row_lengths: npt.NDArray[np.int32] = lengths.astype(np.int32)
        """Tokens of each row."""
        self._reference: npt.NDArray[np.float32] | None = None
        self._firsts, self._weights = self._read_examples()
        self.lengths = self.row_lengths
        """Tokens of each example's longest row."""
        if self._firsts is not None:
            self.lengths = np.maximum.reduceat(self.row_lengths, self._firsts[:-1]) if len(self) else self.row_lengths

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.row_lengths) if self._firsts is None else len(self._firsts) - 1

    def row(self, index: int) -> Row:
        """One row, as views of the files."""
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])
        weight = 1.0 if self._weights is None else float(self._weights[index])
        reference = None
        if self._reference is not None:
            reference = self._reference[self.supervised_before[index] : self.supervised_before[index + 1]]
        return Row(self._ids[start:end], self._mask[start:end], weight, reference)

    def set_reference(self, logprobs: npt.NDArray[np.float32]) -> None:
        """The reference's log-probabilities of the supervised tokens of all rows, end to end. Raises DataError for another number."""
        if len(logprobs) != self.supervised_before[-1]:
            raise DataError(
                msg(
                    "{folder}: the reference does not fit the {name} data. Start a new run.",
                    folder=self.folder,
                    name=self.name,
                )
            )
        self._reference = logprobs

    @cached_property
    def supervised_before(self) -> npt.NDArray[np.int64]:
        """Number of supervised tokens before each row, and in all rows, (rows + 1,)."""
        counts = [np.count_nonzero(self.row(index).mask) for index in range(len(self.row_lengths))]
        return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)

    def rows_of(self, example: int) -> range:
        """The numbers of an example's rows."""
        if self._firsts is None:
            return range(example, example + 1)
        return range(int(self._firsts[example]), int(self._firsts[example + 1]))

    def example(self, index: int) -> list[Row]:
        """The rows of an example."""
        return [self.row(row) for row in self.rows_of(index)]

    def _read_examples(self) -> tuple[npt.NDArray[np.int64] | None, npt.NDArray[np.float32] | None]:
        """The first row of each example and the weights of rows; None if every row is an example of weight 1."""
        place = self.folder / f"{self.name}{EXAMPLES}"
        if not place.exists():
            return None, None
        try:
            firsts = np.fromfile(place, np.int64)
            weights = np.fromfile(self.folder / f"{self.name}{WEIGHTS}", np.float32)
        except (OSError, ValueError) as error:
            raise DataError(
                msg(
                    "{folder}: the prepared {split} data cannot be read ({error}). Start a new run.",
                    folder=self.folder,
                    split=self.name,
                    error=error,
                )
            ) from None
        rows = len(self.row_lengths)
        ordered = bool(len(firsts)) and firsts[0] == 0 and firsts[-1] == rows and bool((np.diff(firsts) > 0).all())
        if not ordered or len(weights) != rows:
            raise DataError(
                msg(
                    "{folder}: the prepared {name} data is damaged ({name}{examples}). Start a new run.",
                    folder=self.folder,
                    name=self.name,
                    examples=EXAMPLES,
                )
            )
        return firsts, weights

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return len(self._ids)

    def fits(self, vocabulary: int) -> bool:
        """Whether every id is one of a vocabulary; the whole file is read."""
        return not len(self._ids) or (int(self._ids.min()) >= 0 and int(self._ids.max()) < vocabulary)

    @property
    def supervised(self) -> int:
        """Supervised tokens of all rows."""
        return int(np.count_nonzero(self._mask))


class Writer:
    """Appends examples; a context manager. The offsets are written on leaving, so a store that broke off cannot be opened."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._offsets, self._firsts = array("q", [0]), array("q", [0])
        self._weights = array("f")

    def __enter__(self) -> Writer:
        with disk_full(self.folder, ADVICE):
            remove(self.folder, self.name)
            self._ids = (self.folder / f"{self.name}.ids").open("wb", 1 << 20)
            self._mask = (self.folder / f"{self.name}.mask").open("wb", 1 << 20)
        return self

    def add(self, *rows: Row) -> None:
        """Append an example. Raises DiskFull."""
        with disk_full(self.folder, ADVICE):
            for row in rows:
                self._ids.write(np.ascontiguousarray(row.ids, np.int32).tobytes())
                self._mask.write(np.ascontiguousarray(row.mask, np.bool_).tobytes())
        for row in rows:
            self._offsets.append(self._offsets[-1] + len(row.ids))
            self._weights.append(row.weight)
        self._firsts.append(len(self._weights))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with disk_full(self.folder, ADVICE):
                with self._ids, self._mask:  # both are closed, even if one cannot be written completely
                    pass
                if kind is None:
                    if len(self._firsts) <= len(self._weights) or any(weight != 1.0 for weight in self._weights):
                        (self.folder / f"{self.name}{EXAMPLES}").write_bytes(self._firsts.tobytes())
                        (self.folder / f"{self.name}{WEIGHTS}").write_bytes(self._weights.tobytes())
                    (self.folder / f"{self.name}.offsets").write_bytes(self._offsets.tobytes())
        except DiskFull:
            if kind is None:
                raise  # else the error that is already on its way is the one to tell


def remove(folder: Path, name: str) -> None:
    """Delete a store's files, the one that makes it valid first."""
    for suffix in (*reversed(SUFFIXES), EXAMPLES, WEIGHTS):
        (folder / f"{name}{suffix}").unlink(missing_ok=True)


def _mapped(path: Path, kind: np.dtype[np.generic]) -> np.ndarray:
    if os.path.getsize(path) == 0:  # noqa: PTH202 - an empty file cannot be mapped
        return np.empty(0, kind)
    return np.memmap(path, kind, mode="r")
