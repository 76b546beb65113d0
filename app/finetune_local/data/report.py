"""Statistics of the data: counts, lengths, duplicates, leaks. Tallied while reading, stored in data.json, shown by `data
inspect`.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from finetune_local.data.conversation import Conversation, Keys, Rejected, content_key
from finetune_local.data.encoding.encode import Encoded
from finetune_local.data.readers.read import DataFile
from finetune_local.data.readers.scrub import KINDS, kinds_of
from finetune_local.spec.run import DataSettings
from finetune_local.system.messages import Message, msg

REJECTED_KEPT = 1000
"""Rejected rows kept in memory; all are counted, and a run writes all of them to rejected.jsonl."""

SPEAKERS_KEPT = 50
"""Speakers listed in a report, most talkative first."""


@dataclass(frozen=True)
class FileReport:
    """How one file was read. `unused` are keys of its first rows that its format does not read."""

    name: str
    bytes: int
    container: str
    encoding: str
    format: str
    unused: tuple[str, ...] = ()
    sha256: str = ""


@dataclass(frozen=True)
class Bar:
    """Number of encoded rows with at least `low` and fewer than `high` tokens."""

    low: int
    high: int
    rows: int


@dataclass(frozen=True)
class Report:
    """Counts over all files. `rows` are rows of the files; one usable row may be several `examples` (a long text)."""

    format: str
    files: tuple[FileReport, ...]
    rows: int
    used: int
    rejected_count: int
    rejected: tuple[Mapping[str, Any], ...]
    turns: int
    examples: int
    tokens: int
    supervised_tokens: int
    shortest: int
    median: int
    longest: int
    longest_place: str
    histogram: tuple[Bar, ...]
    duplicates: int
    truncated: int
    max_length: int
    template: str
    train_rows: int = 0
    validation_rows: int = 0
    leaks: int = 0
    notes: tuple[str, ...] = field(default=())
    personal: Mapping[str, int] = field(default_factory=dict)
    """Personal data in usable rows by kind (scrub.py), replaced or not."""
    scrubbed: tuple[str, ...] = ()
    """The kinds that were replaced."""
    speakers: Mapping[str, int] = field(default_factory=dict)
    """Turns per speaker, if rows have lists of turns."""

    def as_json(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Report:
        """The inverse of as_json()."""
        plain = dict(values)
        plain["files"] = tuple(FileReport(**{**f, "unused": tuple(f["unused"])}) for f in plain["files"])
        plain["histogram"] = tuple(Bar(**b) for b in plain["histogram"])
        for name in ("rejected", "notes", "scrubbed"):
            plain[name] = tuple(plain.get(name, ()))
        return cls(**plain)


class Tally:
    """Counts while rows are read; memory grows by 12 bytes per row, for keys and lengths. `seed` keys the contents for the split."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.rows = self.used = self.turns = self.supervised = self.truncated = self.rejected_count = 0
        self.rejected: list[Rejected] = []
        self.personal: Counter[str] = Counter()
        self.speakers: Counter[str] = Counter()
        self._keys = array("Q")
        self._lengths = array("i")
        self._longest, self._place = 0, ""

    @property
    def keys(self) -> Keys:
        """The content key of each used row, in order."""
        return np.array(self._keys, np.uint64)

    def reject(self, row: Rejected) -> None:
        """Count a rejected row."""
        self.rows += 1
        self.rejected_count += 1
        if len(self.rejected) < REJECTED_KEPT:
            self.rejected.append(row)

    def use(self, conversation: Conversation, encoded: Sequence[Encoded]) -> int:
        """Count a used row; returns its content key."""
        key = content_key(conversation, self.seed)
        self.rows += 1
        self.used += 1
        self.turns += len(conversation.messages)
        self._keys.append(key)
        for row in encoded:
            self._lengths.append(len(row.ids))
            self.supervised += int(np.count_nonzero(row.mask))
            self.truncated += row.cut > 0
            if len(row.ids) > self._longest:
                self._longest = len(row.ids)
                self._place = f"{row.source.file}, line {row.source.line}"
        return key

    def look(self, file: DataFile) -> None:
        """Add what reading a file has found besides its rows so far."""
        self.personal += file.personal
        self.speakers += file.speakers

    def absorb(self, other: Tally) -> None:
        """Add another tally's counts."""
        for name in ("rows", "used", "turns", "supervised", "truncated", "rejected_count"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.rejected = [*self.rejected, *other.rejected][:REJECTED_KEPT]
        self.personal += other.personal
        self.speakers += other.speakers
        self._keys.extend(other._keys)
        self._lengths.extend(other._lengths)
        self._longest, self._place = max((self._longest, self._place), (other._longest, other._place))

    def report(self, files: Sequence[FileReport], max_length: int, settings: DataSettings, **more: Any) -> Report:
        """The counts so far; `more` are fields of Report that only the caller knows."""
        lengths = np.array(self._lengths, np.int32)
        names = list(dict.fromkeys(f.format for f in files))
        return Report(
            format=names[0] if len(names) == 1 else "+".join(names),
            files=tuple(files),
            rows=self.rows,
            used=self.used,
            rejected_count=self.rejected_count,
            rejected=tuple(as_plain(r) for r in self.rejected),
            turns=self.turns,
            examples=len(lengths),
            tokens=int(lengths.sum()),
            supervised_tokens=self.supervised,
            shortest=int(lengths.min(initial=self._longest)),
            median=int(np.median(lengths)) if len(lengths) else 0,
            longest=self._longest,
            longest_place=self._place,
            histogram=histogram(lengths),
            duplicates=len(self._keys) - len(np.unique(self.keys)),
            truncated=self.truncated,
            max_length=max_length,
            template=settings.template,
            notes=tuple(_notes(files, self.personal, kinds_of(settings.scrub))),
            personal={kind: self.personal[kind] for kind in KINDS if self.personal[kind]},
            scrubbed=tuple(kind for kind in KINDS if kind in kinds_of(settings.scrub)),
            speakers=dict(self.speakers.most_common(SPEAKERS_KEPT)),
            **more,
        )


def as_plain(row: Rejected) -> dict[str, object]:
    """A rejected row for JSON: file, line, reason."""
    return {"file": row.source.file, "line": row.source.line, "reason": row.reason}


def file_report(file: DataFile, sha256: str = "") -> FileReport:
    """How a file was read, after reading it."""
    kind = file.kind
    return FileReport(file.shown, kind.size, kind.container, kind.encoding, file.name, file.unused, sha256)


def histogram(lengths: np.ndarray) -> tuple[Bar, ...]:
    """Rows by length in doubling bins: below 32, below 64, ... up to the longest; empty bins at the ends are omitted."""
    if not len(lengths):
        return ()
    edges = [0, 32]
    while edges[-1] <= int(lengths.max()):
        edges.append(edges[-1] * 2)
    counts, _ = np.histogram(lengths, edges)
    first = int(np.flatnonzero(counts)[0])
    bars = [Bar(low, high, int(n)) for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True)]
    return tuple(bars[first:])


def _notes(files: Sequence[FileReport], personal: Mapping[str, int], replaced: Collection[str]) -> list[Message]:
    notes: list[Message] = []
    if left := {kind: personal[kind] for kind in KINDS if personal[kind] and kind not in replaced}:
        shown = ", ".join(f"{kind} ({count:,})" for kind, count in left.items())
        notes.append(
            msg(
                "the texts contain personal data: {kinds}. To replace it: {flags}.",
                kinds=shown,
                flags=" ".join(f"--scrub {kind}" for kind in left),
            )
        )
    for file in files:
        if file.unused:
            shown = ", ".join(f"'{key}'" for key in file.unused[:8])
            notes.append(
                msg(
                    "{name}: not used: {names} (the {format} format does not read them).",
                    name=file.name,
                    names=shown,
                    format=file.format,
                )
            )
        if file.encoding not in ("utf-8", "utf-8-sig"):
            notes.append(
                msg(
                    "{name}: read as {encoding}; check its text with --show-mask.",
                    name=file.name,
                    encoding=file.encoding,
                )
            )
    return notes
