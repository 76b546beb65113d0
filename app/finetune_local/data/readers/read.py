"""Files to conversations and rejected rows, streaming: memory does not grow with the file.

detect.py detects the container, rows.py yields raw rows, formats/ interprets them. In between, columns get the roles the user assigned,
chat-log messages become conversations, named speakers become roles, and personal data becomes placeholders.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

from finetune_local.data.conversation import Conversation, Rejected, RowRejected, Source
from finetune_local.data.formats import Format, Row, choose, format_named, formats, read_row, recognise
from finetune_local.data.readers import chat_log, chat_text, columns, json_rows, rows, scrub, speakers
from finetune_local.data.readers.detect import HEAD_BYTES, FileKind, examine
from finetune_local.data.turns import whole
from finetune_local.spec.run import DataSettings
from finetune_local.system.errors import DataError
from finetune_local.system.messages import Message, join_messages, message_of, msg
from finetune_local.system.paths import located
from finetune_local.system.untrusted.text import kind_of

SAMPLE_ROWS = 32
_SAMPLE_MORE = 1000
"""Rows searched for an assigned column that the first few do not have."""

LONGEST_REASON = 2000
"""Characters of a rejection's reason."""

READING = ("format", "columns", "assistant", "scrub")
"""The settings of [data] that affect how rows are read."""

_AS_IS = DataSettings()


class DataFile:
    """A file being read. Its container, encoding and format are known after construction; iterate once to read it.

    Uses the settings that affect reading: format, columns, assistant, scrub. Raises DataError if the file itself cannot be used.
    """

    def __init__(self, file: Path | str, settings: DataSettings = _AS_IS) -> None:
        self.shown = str(file)
        self.path = located(file)
        self.settings = settings
        self.kind: FileKind = examine(self.path, self.shown)
        self.forced = settings.format != "auto"
        self.format: Format | None = format_named(settings.format) if self.forced else None
        self.unused: tuple[str, ...] = ()
        self.names: tuple[str, ...] = ()
        """Keys of its first rows, as written."""
        self.sample: tuple[Row, ...] = ()
        """Its first rows with lower-case keys, before columns are renamed."""
        self.personal: Counter[str] = Counter()
        """Personal data found so far, by kind."""
        self.speakers: Counter[str] = Counter()
        """Turns per speaker so far."""
        self._role_of = columns.roles(settings.columns)
        self._scrub = scrub.kinds_of(settings.scrub)
        self._chat: chat_text.ChatText | None = None
        self._log: chat_log.LogKeys | None = None
        self._stream: BinaryIO | None = None
        self._look_at_sample()

    @property
    def name(self) -> str:
        """The format's key, or "unknown" if no sampled row has one."""
        return self.format.key if self.format else "unknown"

    @property
    def position(self) -> int:
        """Bytes read so far."""
        return self.kind.size if self._stream is None or self._stream.closed else self._stream.tell()

    @property
    def roles(self) -> frozenset[str]:
        """The roles of assigned columns that this file has."""
        return frozenset(role for column, role in self._role_of.items() if any(column in row for row in self.sample))

    def __iter__(self) -> Iterator[Conversation | Rejected]:
        """Read the file from its start."""
        self.personal.clear()
        self.speakers.clear()
        found: Iterable[rows.Raw] = self._named()
        if self._log is not None:
            found = chat_log.conversations(found, self._log, self.settings.assistant)
        roles = frozenset() if self._log else self.roles
        for line, value in found:
            source = Source(self.shown, line)
            try:
                yield self._conversation(value, source, roles)
            except RowRejected as error:
                yield Rejected(source, _short(whole(message_of(error))))

    def _conversation(self, value: Any, source: Source, roles: frozenset[str]) -> Conversation:
        row = _row(value)
        speakers.count(row, self.speakers)
        if self.settings.assistant:
            row = speakers.cast(row, self.settings.assistant)
        read = read_row(row, source, self.format, self.forced, roles)
        if (self.settings.assistant or self._log is not None) and read.messages:
            read = speakers.merged(read)
        return scrub.scrubbed(read, self._scrub, self.personal)

    def _named(self) -> Generator[rows.Raw, None, None]:
        """Raw rows with lower-case keys and columns renamed to their roles."""
        for line, value in self._raw():
            yield line, columns.renamed(_lowered(value), self._role_of) if isinstance(value, Mapping) else value

    def _raw(self) -> Generator[rows.Raw, None, None]:
        for line, value in self._parsed():
            if isinstance(value, Mapping) and len(value) > rows.MOST_KEYS:
                value = rows.Problem(
                    msg("it has {count} keys, more than {most}.", count=f"{len(value):,}", most=f"{rows.MOST_KEYS:,}")
                )
            yield line, value

    def _parsed(self) -> Generator[rows.Raw, None, None]:
        try:
            with self.path.open("rb") as file:
                self._stream = file
                stream = rows.utf8(file, self.kind.encoding)
                if self.kind.container == "jsonl":
                    yield from rows.jsonl(stream)
                elif self.kind.container == "json":
                    yield from json_rows.json_rows(stream, self.kind.array)
                elif self.kind.container == "csv":
                    yield from rows.csv_rows(stream, self.shown)
                elif self._chat is not None:
                    yield from chat_text.messages(stream, self._chat)
                else:
                    yield from rows.text_parts(stream, by_line=rows.one_document_per_line(self._head()))
        except OSError as error:
            raise DataError(
                msg("{shown}: reading stopped ({error}).", shown=self.shown, error=error.strerror or error)
            ) from None

    def _head(self) -> str:
        with self.path.open("rb") as file:
            return file.read(HEAD_BYTES).decode(self.kind.encoding, "replace")

    def _look_at_sample(self) -> None:
        log = not self.forced or self.name == chat_log.LOG
        if self.kind.container == "text" and log:
            self._chat = chat_text.recognised(self._head(), forced=self.forced)
        with closing(self._raw()) as raw:
            sample = [value for _, value in itertools.islice(raw, SAMPLE_ROWS) if isinstance(value, Mapping)]
            lacking = set(self._role_of) - {str(key).strip().lower() for row in sample for key in row}
            for _, value in itertools.islice(raw, _SAMPLE_MORE) if lacking else ():
                if isinstance(value, Mapping) and lacking & set(_lowered(value)):
                    sample.append(value)
                    lacking -= set(_lowered(value))
        found = [_lowered(value) for value in sample]
        self.sample = tuple(found)
        self.names = tuple(dict.fromkeys(whole(str(key)) for value in sample for key in value))
        named = [columns.renamed(row, self._role_of) for row in found]
        self._log = self._log_keys(named) if log else None
        if self._log is not None:
            self.format = formats()[chat_log.LOG]
        elif self.format is None:
            self.format = choose(named, self.roles)
        if self.format is not None:
            known = self.format.keys if self._log is None else self._log.used
            self.unused = tuple(dict.fromkeys(whole(str(key)) for row in named for key in row if key not in known))

    def _log_keys(self, sample: Sequence[Row]) -> chat_log.LogKeys | None:
        """The keys of a chat log, if the user says it is one, or it looks like one and like nothing else."""
        keys = chat_log.keys_of(sample)
        if keys is None or self.forced or self._chat is not None or "speaker" in self._role_of.values():
            return keys
        other = Counter(found.key for row in sample if (found := recognise(row)) is not None and found.key != "text")
        if other.total() * 2 > len(sample) or not chat_log.looks_like_a_chat(sample, keys):
            return None
        return keys


def read(files: Sequence[Path | str], settings: DataSettings = _AS_IS) -> Iterator[Conversation | Rejected]:
    """Every row of the files in order, as a conversation or a rejected row. Raises DataError for an unusable file."""
    for file in files:
        yield from DataFile(file, settings)


def reading(data: Mapping[str, Any]) -> DataSettings:
    """The settings of a run's [data] table that affect reading, to read other files the same way."""
    return DataSettings(**{name: data[name] for name in READING if data.get(name) is not None})


def opened(files: Sequence[Path | str], settings: DataSettings) -> list[DataFile]:
    """Files to be read with the same settings. Raises DataError also for an assigned column that none of them has."""
    found = [DataFile(file, settings) for file in files]
    check_columns(found, settings)
    return found


def check_columns(files: Sequence[DataFile], settings: DataSettings) -> None:
    """Raise DataError for an assigned column that no file has."""
    for column, role in columns.roles(settings.columns).items():
        if files and not any(role in file.roles for file in files):
            raise columns.missing(column, role, files[0].shown, files[0].names)


def nothing_usable(files: Sequence[Path | str], first: Sequence[Rejected]) -> DataError:
    """The error for files without a usable row; it quotes the first three reasons."""
    where = ", ".join(str(f) for f in files)
    if not first:
        return DataError(msg("{where}: no rows were found. Put one training example on each line.", where=where))
    reasons = join_messages("", ("\n  " + quoted(r) for r in first[:3]))
    return DataError(msg("{where}: no row can be used. The first reasons:{reasons}", where=where, reasons=reasons))


def quoted(rejected: Rejected) -> Message:
    """A rejected row as one sentence with its place."""
    return msg(
        "{file}, line {line}: {reason}",
        file=rejected.source.file,
        line=rejected.source.line,
        reason=rejected.reason,
    )


def _short(reason: str) -> str:
    """A reason with long quotations shortened in the middle."""
    half = LONGEST_REASON // 2
    return reason if len(reason) <= LONGEST_REASON else f"{reason[:half]} … {reason[-half:]}"


def _row(value: Any) -> Row:
    if isinstance(value, rows.Problem):
        raise RowRejected(value.reason)
    if not isinstance(value, Mapping):
        raise RowRejected(msg("it is {kind}, expected an object with keys.", kind=kind_of(value)))
    return value


def _lowered(row: Mapping[str, Any]) -> Row:
    """Keys stripped and in lower case, as spreadsheets vary them; NaN is how pandas writes an empty cell."""
    found = {str(key).strip().lower(): value for key, value in row.items()}
    return {key: value for key, value in found.items() if value == value or key not in rows.OPTIONAL}
