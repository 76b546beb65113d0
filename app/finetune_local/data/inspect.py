"""Read and encode files for inspection, writing nothing: what `data inspect` prints and the window shows.

Works without a tokenizer too: rows are then read and counted, without tokens and masks.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from finetune_local.data.conversation import Conversation, Rejected, RowRejected, held_out
from finetune_local.data.encoding.encode import Encoded, check_kind, encode, rendered_ahead
from finetune_local.data.formats import recognise
from finetune_local.data.readers import columns, speakers
from finetune_local.data.readers.read import DataFile, check_columns, nothing_usable
from finetune_local.data.report import FileReport, Report, Tally, file_report
from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.data.turns import whole
from finetune_local.spec.objectives import objective_named
from finetune_local.spec.run import DEFAULT_OBJECTIVE, DataSettings
from finetune_local.system.errors import DataError
from finetune_local.system.messages import Message, join_messages, message_of

STEP_ROWS = 50
"""Rows between two points where an inspection can stop."""

_SAMPLE_CELL = 80

SHORT = 240
"""Characters of a prompt or an answer in the table."""

PIECES = 4000
"""Tokens of a row shown one by one."""

_TEXT_SHOWN = 20_000


class Inspection:
    """One inspection of the files of some settings. Iterate over steps() until it ends, or as far as needed, then read the results.

    `first` and `count` select the rows kept for a table, `masked` those kept with tokens; rows are counted from 0 over all readable ones,
    in the order of the files.
    """

    def __init__(
        self,
        settings: DataSettings,
        tokenizer: Tokenizer | None,
        max_length: int,
        *,
        first: int = 0,
        count: int = 0,
        masked: Container[int] = (),
        only_these: bool = False,
        objective: str = DEFAULT_OBJECTIVE,
    ) -> None:
        """`only_these`: no other rows are encoded, and reading stops after them; there is no report then. Rows the objective
        does not learn from are rejected.
        """
        self._objective = objective_named(objective)
        self._settings, self._tokenizer, self._max_length = settings, tokenizer, max_length
        self._window, self._masked, self._only_these = range(first, first + count), masked, only_these
        self.rows: list[TableRow] = []
        self.masks: dict[int, Encoded] = {}
        self.texts: dict[int, Conversation] = {}
        self.problems: list[tuple[str, Message]] = []
        """Unusable files, each with a sentence that says why."""
        self.readable = 0
        """Rows that could be read, whether or not they can be used."""
        self.complete = False
        self._tally, self._other = Tally(), Tally()
        self._now: tuple[Tally, DataFile] | None = None
        self.files = self._opened(settings.files)
        self.validation = self._opened(settings.validation_files)
        try:
            check_columns([*self.files, *self.validation], settings)
        except DataError as error:
            self.problems.append(("", message_of(error)))

    @property
    def rows_read(self) -> int:
        """Rows read so far, over all files."""
        return self._tally.rows + self._other.rows

    def steps(self) -> Iterator[float]:
        """Read the files; yields the share of bytes done, every few rows."""
        total = sum(file.kind.size for file in (*self.files, *self.validation)) or 1
        done = 0
        for tally, files in ((self._tally, self.files), (self._other, self.validation)):
            for file in files:
                self._now = (tally, file)
                try:
                    for number, row in enumerate(self._ahead(file), 1):
                        if tally is self._tally and self._settings.limit and tally.used >= self._settings.limit:
                            break
                        self._take(row, tally)
                        if number % STEP_ROWS == 0:
                            yield min(1.0, (done + file.position) / total)
                except DataError as error:
                    self.problems.append((file.shown, message_of(error)))
                self._now = None
                tally.look(file)
                done += file.kind.size
        self.complete = True
        yield 1.0

    def whole(self) -> Report:
        """Read everything. Raises DataError if a file cannot be used or no row can."""
        for _ in self.steps():
            pass
        self.check_files()
        if not self._tally.used:
            raise nothing_usable(self._settings.files, self._tally.rejected)
        return self.report()

    def check_files(self) -> None:
        """Raise DataError if a file is known to be unusable; before steps(), judged by its first bytes."""
        if self.problems:
            raise DataError(join_messages("\n", (text for _, text in self.problems)))

    def report(self) -> Report:
        """The report on the training files read so far; its leaks are rows that the validation files contain too."""
        tally = self._so_far(self._tally)
        train, validation = self._split()
        return tally.report(
            self._reports(self.files),
            self._max_length,
            self._settings,
            train_rows=train,
            validation_rows=validation,
            leaks=int(np.isin(tally.keys, self._other.keys).sum()),
        )

    def shown(self) -> dict[str, object]:
        """The table's rows and those with tokens, as plain values; `end` if no more rows follow."""
        return {
            "first": self._window.start,
            "rows": [asdict(row) for row in self.rows],
            "masks": {str(number): self._shown(number) for number in sorted({*self.masks, *self.texts})},
            "end": self.complete and self.readable <= self._window.stop,
        }

    def as_json(self) -> dict[str, object]:
        """Everything but the rows, as plain values."""
        report = self.report().as_json()
        unknown = [file for file in self.files if not self._learned(file)]
        named = [name for file in (*self.files, *self.validation) for name in speakers.named(file.speakers)]
        return {
            "complete": self.complete,
            "report": report,
            "problems": [{"file": file, "message": text} for file, text in self.problems],
            "readable": self.readable,
            "columns": self._columns(unknown),
            "kinds": sorted({file.format.kind for file in self.files if file.format is not None}),
            "unknown": [file.shown for file in unknown if file.format is None],
            "guess": _likely(
                [row for file in unknown for row in file.sample if recognise(row) is None or "chosen" in row]
            ),
            "speakers": report["speakers"],
            "named": list(dict.fromkeys(named)),
            "validation": [asdict(file) for file in self._reports(self.validation)],
        }

    def _learned(self, file: DataFile) -> bool:
        """Whether the objective learns from the rows of a file's format."""
        return file.format is not None and file.format.kind in self._objective.examples

    def _columns(self, unknown: Sequence[DataFile]) -> list[dict[str, str]]:
        """Columns the user may have to assign, each with a sample value, from the files that need it or where it was done."""
        files = unknown or [file for file in self.files if file.roles]
        sample = [row for file in files for row in file.sample]
        names = dict.fromkeys(name for file in files for name in file.names)
        return [{"name": name, "sample": _sample(name, sample)} for name in names]

    def pieces(self, number: int) -> list[Piece]:
        """The tokens of the row selected by `masked`."""
        return pieces(self.masks[number], self._tokenizer) if self._tokenizer is not None else []

    def _opened(self, names: Sequence[str]) -> list[DataFile]:
        found = []
        for name in names:
            try:
                found.append(DataFile(name, self._settings))
            except DataError as error:
                self.problems.append((name, message_of(error)))
        return found

    def _ahead(self, file: DataFile) -> Iterator[Conversation | Rejected]:
        if self._only_these or self._settings.limit:  # no row is read that may be one too many
            return iter(file)
        return rendered_ahead(file, self._tokenizer, self._settings.template)

    def _take(self, row: Conversation | Rejected, tally: Tally) -> None:
        if isinstance(row, Rejected):
            tally.reject(row)
            return
        number = self.readable if tally is self._tally else -1
        self.readable += tally is self._tally
        if self._only_these and number not in self._window and number not in self._masked:
            return
        encoded: list[Encoded] = []
        reason = ""
        try:
            check_kind(self._objective, row)
            if self._tokenizer is not None:
                encoded = encode(row, self._tokenizer, self._settings.template, self._max_length)
        except RowRejected as error:
            reason = message_of(error)
        if reason:
            tally.reject(Rejected(row.source, reason))
        else:
            tally.use(row, encoded)
        if number in self._window:
            self.rows.append(row_of(number, row, encoded, reason))
        if number in self._masked:
            self.texts[number] = row
            if encoded:
                self.masks[number] = encoded[0]

    def _so_far(self, tally: Tally) -> Tally:
        """With the results of the file being read."""
        if self._now is None or self._now[0] is not tally:
            return tally
        both = Tally(tally.seed)
        both.absorb(tally)
        both.look(self._now[1])
        return both

    def _split(self) -> tuple[int, int]:
        """Conversations for training and for validation."""
        keys = self._tally.keys
        if self._settings.validation_files:
            return len(keys) - int(np.isin(keys, self._other.keys).sum()), self._other.used
        aside = int(np.isin(keys, held_out(keys, self._settings.validation)).sum())
        return len(keys) - aside, aside

    def _reports(self, files: Sequence[DataFile]) -> list[FileReport]:
        return [file_report(file) for file in files]

    def _shown(self, number: int) -> dict[str, object]:
        encoded = self.masks.get(number)
        found = pieces(encoded, self._tokenizer, PIECES) if encoded is not None and self._tokenizer is not None else []
        return in_full(self.texts[number], encoded, found)


def _sample(name: str, rows: Sequence[columns.Row]) -> str:
    """A short sample value of a column."""
    values = (row.get(name.strip().lower()) for row in rows)
    value = next((value for value in values if value not in (None, "")), "")
    written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(whole(written[: 4 * _SAMPLE_CELL]).split())
    return text if len(text) <= _SAMPLE_CELL else text[: _SAMPLE_CELL - 1] + "…"


def _likely(rows: Sequence[columns.Row]) -> dict[str, str]:
    return {role: whole(name) for role, name in columns.guess(rows).items()}


@dataclass(frozen=True)
class Piece:
    """The text of a token (or of several, if a character takes several), whether it is supervised, whether it is special."""

    text: str
    learned: bool
    special: bool
    tokens: int = 1


def pieces(row: Encoded, tokenizer: Tokenizer, most: int | None = None) -> list[Piece]:
    """An encoded row token by token, or its first `most` tokens."""
    mask = row.mask[:most].tolist()
    turning = {i for i in range(1, len(mask)) if mask[i] != mask[i - 1]}
    result, at = [], 0
    for text, ids in tokenizer.pieces(row.ids[:most].tolist(), turning):
        result.append(Piece(text, mask[at], any(map(tokenizer.is_special, ids)), len(ids)))
        at += len(ids)
    return result


@dataclass(frozen=True)
class TableRow:
    """A row of the table: the last question and its answer, shortened.

    `tokens` and `learned` are the numbers of tokens and of supervised tokens, None for a row that was not encoded, `cut` the number of
    messages dropped for length, and `reason` why a row is rejected.
    """

    number: int
    file: str
    line: int
    turns: int
    prompt: str
    answer: str
    tokens: int | None
    learned: int | None
    cut: int
    reason: str


def row_of(number: int, row: Conversation, encoded: Sequence[Encoded], reason: str) -> TableRow:
    """The table's row of an example."""
    last = max((i for i, m in enumerate(row.messages) if m.role == "assistant"), default=len(row.messages))
    question = next((m.content for m in reversed(row.messages[:last]) if m.role == "user"), "")
    answer = row.text if row.text is not None else row.messages[last].content if last < len(row.messages) else ""
    return TableRow(
        number=number,
        file=row.source.file,
        line=row.source.line,
        turns=len(row.messages),
        prompt=_short(question),
        answer=_short(answer or ""),
        tokens=sum(len(one.ids) for one in encoded) if encoded else None,
        learned=sum(int(one.mask.sum()) for one in encoded) if encoded else None,
        cut=encoded[0].cut if encoded else 0,
        reason=reason,
    )


def _short(text: str) -> str:
    flat = " ".join(text[: 4 * SHORT].split())
    return flat if len(flat) <= SHORT and len(text) <= 4 * SHORT else flat[: SHORT - 1] + "…"


def in_full(row: Conversation, encoded: Encoded | None, found: Sequence[Piece]) -> dict[str, object]:
    """A row with its tokens, as plain values; with its turns instead if there is no tokenizer or the row is rejected."""
    source = {"file": row.source.file, "line": row.source.line}
    if encoded is None or not found:
        turns = [(str(m.role), m.content, m.role == "assistant" and m.train) for m in row.messages]
        texts = turns or [("text", row.text or "", True)]
        return {**source, "turns": [(role, text[:_TEXT_SHOWN], learned) for role, text, learned in texts]}
    return {
        **source,
        "pieces": [(piece.text, piece.learned, piece.special) for piece in found],
        "tokens": len(encoded.ids),
        "more": len(encoded.ids) - sum(piece.tokens for piece in found),
        "cut": encoded.cut,
    }
