"""Encoded rows on disk, memory-mapped: `<name>.ids`, `<name>.mask`, `<name>.offsets`. Any size of data, little memory."""

from __future__ import annotations

import os
from array import array
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from finetune_local.system.errors import DataError, DiskFull
from finetune_local.system.files import disk_full

ADVICE = "The prepared data needs room here. Free some, or give --home on another disk."

SUFFIXES = (".ids", ".mask", ".offsets")

Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


class Dataset:
    """Rows of a written store. Files: ids int32 and mask bool, end to end; offsets int64, where each row begins, and the end."""

    def __init__(self, folder: Path, name: str) -> None:
        """Raises DataError where the files are missing or do not fit each other."""
        self.folder, self.name = folder, name
        try:
            self._offsets = np.fromfile(folder / f"{name}.offsets", np.int64)
            self._ids = _mapped(folder / f"{name}.ids", np.dtype(np.int32))
            self._mask = _mapped(folder / f"{name}.mask", np.dtype(np.bool_))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{folder}: the prepared {name} data cannot be read ({error}). Start the run anew."
            ) from None
        end = int(self._offsets[-1]) if len(self._offsets) else -1
        if not end == len(self._ids) == len(self._mask):
            raise DataError(f"{folder}: the prepared {name} data is incomplete. Start the run anew.")
        lengths = np.diff(self._offsets)
        if int(self._offsets[0]) != 0 or (len(lengths) and int(lengths.min()) < 0):
            raise DataError(f"{folder}: the prepared {name} data is damaged ({name}.offsets). Start the run anew.")
        self.lengths: npt.NDArray[np.int32] = lengths.astype(np.int32)
        """Tokens of each row."""

    def __len__(self) -> int:
        return len(self.lengths)

    def row(self, index: int) -> tuple[Ids, Mask]:
        """Ids and mask of one row, as views of the files."""
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])
        return self._ids[start:end], self._mask[start:end]

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
    """Appends rows; a context manager. The offsets are written on leaving, so a store that broke off cannot be opened."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._offsets = array("q", [0])

    def __enter__(self) -> Writer:
        with disk_full(self.folder, ADVICE):
            remove(self.folder, self.name)
            self._ids = (self.folder / f"{self.name}.ids").open("wb", 1 << 20)
            self._mask = (self.folder / f"{self.name}.mask").open("wb", 1 << 20)
        return self

    def add(self, ids: Ids, mask: Mask) -> None:
        """Append one row. Raises DiskFull."""
        with disk_full(self.folder, ADVICE):
            self._ids.write(np.ascontiguousarray(ids, np.int32).tobytes())
            self._mask.write(np.ascontiguousarray(mask, np.bool_).tobytes())
        self._offsets.append(self._offsets[-1] + len(ids))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with disk_full(self.folder, ADVICE):
                with self._ids, self._mask:  # both are closed, even where one cannot be written to its end
                    pass
                if kind is None:
                    (self.folder / f"{self.name}.offsets").write_bytes(self._offsets.tobytes())
        except DiskFull:
            if kind is None:
                raise  # else the error that is already on its way is the one to tell


def remove(folder: Path, name: str) -> None:
    """Delete a store's files, the one that makes it valid first."""
    for suffix in reversed(SUFFIXES):
        (folder / f"{name}{suffix}").unlink(missing_ok=True)


def _mapped(path: Path, kind: np.dtype[np.generic]) -> np.ndarray:
    if os.path.getsize(path) == 0:  # noqa: PTH202 - an empty file cannot be mapped
        return np.empty(0, kind)
    return np.memmap(path, kind, mode="r")
