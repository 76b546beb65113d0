"""Files to conversations and rejected rows, streaming: memory does not grow with the file.

What a file is comes from detect.py, its raw rows from rows.py, what a row means from formats/.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

from finetune_local.data import rows
from finetune_local.data.conversation import Conversation, Rejected, RowRejected, Source
from finetune_local.data.detect import HEAD_BYTES, FileKind, examine
from finetune_local.data.formats import Format, choose, format_named, read_row
from finetune_local.data.turns import kind_of
from finetune_local.errors import DataError

SAMPLE_ROWS = 32


class DataFile:
    """One file being read. After construction its container, encoding and format are known; iterate once to read it.

    Raises DataError where the file itself cannot be used.
    """

    def __init__(self, file: Path | str, format: str = "auto") -> None:  # noqa: A002 - the user's word
        self.shown = str(file)
        self.path = Path(file).expanduser()
        self.kind: FileKind = examine(self.path, self.shown)
        self.forced = format != "auto"
        self.format: Format | None = format_named(format) if self.forced else None
        self.unused: tuple[str, ...] = ()
        self._stream: BinaryIO | None = None
        self._look_at_sample()

    @property
    def name(self) -> str:
        """The format's key, or "unknown" where no row of the sample has one."""
        return self.format.key if self.format else "unknown"

    @property
    def position(self) -> int:
        """Bytes read so far."""
        return self.kind.size if self._stream is None or self._stream.closed else self._stream.tell()

    def __iter__(self) -> Iterator[Conversation | Rejected]:
        """Read the file from its beginning."""
        for line, value in self._raw():
            source = Source(self.shown, line)
            try:
                yield read_row(_row(value), source, self.format, self.forced)
            except RowRejected as error:
                yield Rejected(source, str(error))

    def _raw(self) -> Generator[rows.Raw, None, None]:
        try:
            with self.path.open("rb") as file:
                self._stream = file
                stream = rows.utf8(file, self.kind.encoding, self.shown)
                if self.kind.container == "jsonl":
                    yield from rows.jsonl(stream)
                elif self.kind.container == "json":
                    yield from rows.json_items(stream, self.kind.prefix)
                elif self.kind.container == "csv":
                    yield from rows.csv_rows(stream, self.shown)
                else:
                    yield from rows.text_parts(stream, by_line=self._by_line())
        except OSError as error:
            raise DataError(f"{self.shown}: reading broke off ({error.strerror or error}).") from None

    def _by_line(self) -> bool:
        with self.path.open("rb") as file:
            head = file.read(HEAD_BYTES).decode(self.kind.encoding, "replace")
        return rows.one_document_per_line(head)

    def _look_at_sample(self) -> None:
        with closing(self._raw()) as raw:
            sample = [value for _, value in itertools.islice(raw, SAMPLE_ROWS)]
        found = [_lowered(value) for value in sample if isinstance(value, Mapping)]
        if self.format is None:
            self.format = choose(found)
        if self.format is not None:
            known = self.format.keys
            self.unused = tuple(dict.fromkeys(str(key) for row in found for key in row if key not in known))


def read(files: Sequence[Path | str], format: str = "auto") -> Iterator[Conversation | Rejected]:  # noqa: A002
    """Every row of the files in order, as a conversation or a rejected row. Raises DataError for a file of no use."""
    for file in files:
        yield from DataFile(file, format)


def nothing_usable(files: Sequence[Path | str], first: Sequence[Rejected]) -> DataError:
    """The error for files without one usable row: it quotes the first three reasons."""
    where = ", ".join(str(f) for f in files)
    if not first:
        return DataError(f"{where}: no rows were found. Put one training example on each line.")
    reasons = "".join(f"\n  {quoted(r)}" for r in first[:3])
    return DataError(f"{where}: no row can be used. The first reasons:{reasons}")


def quoted(rejected: Rejected) -> str:
    """A rejected row as one sentence with its place."""
    return f"{rejected.source.file}, line {rejected.source.line}: {rejected.reason}"


def _row(value: Any | rows.Problem) -> Mapping[str, Any]:
    if isinstance(value, rows.Problem):
        raise RowRejected(value.reason)
    if not isinstance(value, Mapping):
        raise RowRejected(f"it is {kind_of(value)}, expected an object with keys.")
    return _lowered(value)


def _lowered(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Keys without regard to case and spaces at their ends, as spreadsheets write them."""
    return {str(key).strip().lower(): value for key, value in row.items()}
