"""Data files to a run's prepared data: read, encode, split, and write what the loop maps into memory.

Writes into one folder: train.* and validation.* (store.py), rejected.jsonl, validation.jsonl (conversations to answer),
SHA256SUMS of them all, and data.json last, which makes the folder valid. Interrupted before that, it is as if nothing had been
prepared.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from array import array
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from finetune_local.data.conversation import (
    Conversation,
    Keys,
    Message,
    Rejected,
    RowRejected,
    Source,
    held_out,
)
from finetune_local.data.dataset.store import ADVICE, EXAMPLES, SUFFIXES, WEIGHTS, Dataset, Row, Writer, remove
from finetune_local.data.encoding.encode import check_kind, encode, kept, rendered_ahead
from finetune_local.data.readers.read import DataFile, nothing_usable, opened
from finetune_local.data.report import FileReport, Report, Tally, as_plain, file_report
from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.spec.objectives import Objective, objective_named
from finetune_local.spec.run import DEFAULT_OBJECTIVE, DataSettings
from finetune_local.system import checksums
from finetune_local.system.errors import DataError
from finetune_local.system.files import disk_full, sync_tree, write_text
from finetune_local.system.messages import Progress, carried, carrying, message_of, msg
from finetune_local.system.untrusted.text import ForeignTextError, parse_json_object, read_json_object

DATA, REJECTED, CONVERSATIONS = "data.json", "rejected.jsonl", "validation.jsonl"
CONVERSATIONS_KEPT = 512
_PASSED = "passed"  # the store of the first pass, before the split is known
_KEEP_CHARACTERS = 1 << 16
_PROGRESS_EVERY = 200


@dataclass(frozen=True)
class Prepared:
    """Data ready to train on."""

    train: Dataset
    validation: Dataset
    report: Report


@dataclass
class _Pass:
    """One pass over files: encoded examples go to a store, the key of each example's content stays here."""

    settings: DataSettings
    objective: Objective
    tokenizer: Tokenizer
    max_length: int
    rejected: TextIO
    tally: Tally
    files: list[FileReport] = field(default_factory=list)
    example_keys: array[int] = field(default_factory=lambda: array("Q"))
    lowest: list[tuple[int, int, Conversation]] = field(default_factory=list)
    """The conversations of lowest key, as a heap of (−key, −count, conversation): those the split holds out first."""
    _kept_keys: set[int] = field(default_factory=set)

    def run(self, names: Sequence[str], writer: Writer, limit: int | None, progress: Callable[[float], None]) -> None:
        """Read and encode files one after the other."""
        files = [DataFile(name, self.settings) for name in names]
        total, before = sum(f.kind.size for f in files) or 1, 0
        for file in files:
            self.files.append(file_report(file, _sha256(file.path)))
            try:
                # With a limit no row is read beyond it: its statistics would be reported.
                for row in file if limit is not None else rendered_ahead(file, self.tokenizer, self.settings.template):
                    if limit is not None and self.tally.used >= limit:
                        return
                    self._take(row, writer)
                    if self.tally.rows % _PROGRESS_EVERY == 0:
                        progress(min(1.0, (before + file.position) / total))
            finally:
                self.tally.look(file)
            before += file.kind.size

    def _take(self, row: Conversation | Rejected, writer: Writer) -> None:
        if isinstance(row, Conversation):
            try:
                check_kind(self.objective, row)
                encoded = encode(row, self.tokenizer, self.settings.template, self.max_length)
            except RowRejected as error:
                row = Rejected(row.source, message_of(error))
            else:
                key = self.tally.use(row, encoded)
                for _, rows in groupby(encoded, key=lambda one: one.example):
                    writer.add(*(Row(one.ids, one.mask, one.weight) for one in rows))
                    self.example_keys.append(key)
                self._keep(row, encoded[0].cut, key)
                return
        self.tally.reject(row)
        self.rejected.write(json.dumps(as_plain(row), ensure_ascii=False) + "\n")

    def _keep(self, row: Conversation, cut: int, key: int) -> None:
        if key in self._kept_keys or len(row.text or "") + sum(len(m.content) for m in row.messages) > _KEEP_CHARACTERS:
            return
        if len(self.lowest) >= CONVERSATIONS_KEPT:
            if key > -self.lowest[0][0]:
                return
            self._kept_keys.discard(-heapq.heappop(self.lowest)[0])
        self._kept_keys.add(key)
        shorter = replace(row, messages=kept(row.messages, cut))
        heapq.heappush(self.lowest, (-key, -self.tally.used, shorter))


def prepare(
    settings: DataSettings,
    tokenizer: Tokenizer,
    seed: int,
    folder: Path,
    max_length: int,
    progress: Progress,
    objective: str = DEFAULT_OBJECTIVE,
) -> Prepared:
    """Prepare a run's data in `folder`. `progress` is called with what is done and the share of bytes read.

    The split is by conversation: equal ones are on one side. With separate validation files, rows of the training files that
    occur there too are left out as leaks. Rows that the objective does not learn from are rejected. Raises DataError, DiskFull.
    """
    if not settings.files:
        raise DataError(msg("there is no training data. Choose a file: finetune-local --data my.jsonl"))
    with disk_full(folder, ADVICE):
        folder.mkdir(parents=True, exist_ok=True)
        for name in (DATA, CONVERSATIONS, checksums.SUMS):
            (folder / name).unlink(missing_ok=True)
    try:
        with disk_full(folder, ADVICE), (folder / REJECTED).open("w", encoding="utf-8") as rejected:
            opened(
                [*settings.files, *settings.validation_files], settings
            )  # mistakes are reported before the long work
            train = _Pass(settings, objective_named(objective), tokenizer, max_length, rejected, Tally(seed))
            with Writer(folder, _PASSED) as writer:
                train.run(settings.files, writer, settings.limit, lambda share: progress(msg("reading data"), share))
            if not train.tally.used:
                raise nothing_usable(settings.files, train.tally.rejected)
            given = _validation_files(train, folder, progress) if settings.validation_files else None
        progress(msg("writing data"), None)
        held_out_keys = (
            held_out(train.tally.keys, settings.validation) if given is None else np.unique(given.tally.keys)
        )
        _write_splits(train, held_out_keys, folder, own_files=given is not None)
        _write_conversations(folder / CONVERSATIONS, (given or train).lowest, held_out_keys)
    finally:
        remove(folder, _PASSED)
    splits = Dataset(folder, "train"), Dataset(folder, "validation")
    if not len(splits[0]):
        raise DataError(msg("every training row also occurs in the validation data, so nothing is left to learn from."))
    leaks = 0 if given is None else int(np.isin(train.tally.keys, held_out_keys).sum())
    if given is not None:
        train.tally.absorb(given.tally)
    report = train.tally.report(
        [*train.files, *(given.files if given else [])],
        max_length,
        settings,
        train_rows=len(splits[0]),
        validation_rows=len(splits[1]),
        leaks=leaks,
    )
    _write_data(folder, settings, seed, report)
    progress(msg("writing data"), 1.0)
    return Prepared(*splits, report)


def open_prepared(folder: Path) -> Prepared:
    """What prepare() wrote; the data files themselves may be gone. problem() verifies the checksums. Raises DataError."""
    try:
        report = Report.from_json(carried(read_json_object(folder / DATA)["report"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            msg(
                "{path}: the prepared data cannot be read ({error}). Start a new run.",
                path=folder / DATA,
                error=error,
            )
        ) from None
    return Prepared(Dataset(folder, "train"), Dataset(folder, "validation"), report)


def problem(folder: Path) -> str | None:
    """What is wrong with prepared data by its checksums, as the end of a sentence; None if nothing is, or without checksums."""
    stores = [f"{name}{suffix}" for name in ("train", "validation") for suffix in SUFFIXES]
    return checksums.problem(folder, [*stores, CONVERSATIONS, DATA])


def same_rows(one: checksums.Known, other: checksums.Known) -> bool:
    """Whether two prepared folders contain the same rows, by their checksums."""
    stores = [f"{name}{end}" for name in ("train", "validation") for end in (*SUFFIXES, EXAMPLES, WEIGHTS)]
    return all(set(one.get(name, ())) == set(other.get(name, ())) for name in stores)


def conversations(folder: Path, split: str = "validation", limit: int = CONVERSATIONS_KEPT) -> list[Conversation]:
    """At most `limit` held-out conversations of a prepared folder, without the turns that were cut for length.

    Only the "validation" split keeps its conversations; 512 of them at most, in an order that the seed decides.
    """
    if split != "validation":
        raise ValueError(f"only the validation split keeps conversations, not {split!r}")
    found: list[Conversation] = []
    path = folder / CONVERSATIONS
    if not path.exists():
        return found
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if len(found) >= limit:
                break
            try:
                found.append(_from_plain(parse_json_object(line)))
            except (ForeignTextError, KeyError, TypeError, AttributeError) as error:
                raise DataError(
                    msg(
                        "{file}: line {number} is damaged ({why}). Start a new run.",
                        file=path,
                        number=number,
                        why=error,
                    )
                ) from None
    return found


def _validation_files(train: _Pass, folder: Path, progress: Progress) -> _Pass:
    """Read separate validation files straight into their store."""
    files = train.settings.validation_files
    given = _Pass(
        train.settings, train.objective, train.tokenizer, train.max_length, train.rejected, Tally(train.tally.seed)
    )
    with Writer(folder, "validation") as writer:
        given.run(files, writer, None, lambda share: progress(msg("reading validation data"), share))
    if not given.tally.used:
        raise nothing_usable(files, given.tally.rejected)
    return given


def _write_splits(train: _Pass, held_out_keys: Keys, folder: Path, *, own_files: bool) -> None:
    """Copy the first pass's examples to their side. If validation has separate files, examples that occur there are dropped."""
    passed = Dataset(folder, _PASSED)
    is_held_out = np.isin(np.array(train.example_keys, np.uint64), held_out_keys)
    with ExitStack() as stack:
        writer = stack.enter_context(Writer(folder, "train"))
        other = None if own_files else stack.enter_context(Writer(folder, "validation"))
        for index in range(len(passed)):
            side = other if is_held_out[index] else writer
            if side is not None:
                side.add(*passed.example(index))


def _write_conversations(path: Path, lowest: Sequence[tuple[int, int, Conversation]], held_out_keys: Keys) -> None:
    chosen = {int(key) for key in held_out_keys[:CONVERSATIONS_KEPT]}
    with disk_full(path.parent, ADVICE), path.open("w", encoding="utf-8", newline="\n") as file:
        for negative, _, conversation in sorted(lowest, key=lambda item: item[:2], reverse=True):
            if -negative in chosen:
                file.write(json.dumps(_as_plain(conversation), ensure_ascii=False) + "\n")


def _write_data(folder: Path, settings: DataSettings, seed: int, report: Report) -> None:
    """Write data.json aside, then rename: a reader sees all of it or none."""
    values = {"settings": settings.model_dump(mode="json"), "seed": seed, "report": carrying(report.as_json())}
    text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    with disk_full(folder, ADVICE):
        sync_tree(folder)
        # Rejected rows are kept for the user to fix; nothing is learned from them.
        checksums.write(folder, {DATA: hashlib.sha256(text.encode("utf-8")).hexdigest()}, leave_out=(REJECTED,))
    write_text(folder / DATA, text, ADVICE)


def _as_plain(conversation: Conversation) -> dict[str, object]:
    plain = asdict(conversation)
    if conversation.rejected is None:  # as earlier versions wrote it
        del plain["rejected"]
    return plain


def _from_plain(values: dict[str, Any]) -> Conversation:
    messages = tuple(Message(**m) for m in values["messages"])
    worse = values.get("rejected")
    rejected = None if worse is None else Message(**worse)
    return Conversation(messages, Source(**values["source"]), values["text"], values["ends"], rejected)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
