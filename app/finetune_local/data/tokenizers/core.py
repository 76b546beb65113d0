"""Text to ids and back by the `tokenizers` library: in this process where the cost of every part is known, else in a guarded child.

The library is in Rust. What it is given decides what it does: a pattern may backtrack for hours, replacements may double a text forty
times, and an allocation that fails ends the process. tokenizer_shape.py says which tokenizer.json can do none of this.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from finetune_local.data.conversation import RowRejected
from finetune_local.data.encoding.streamer import streamed
from finetune_local.data.tokenizers.conversion import converted
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import as_message, message_of, msg
from finetune_local.system.untrusted.guarded import Guarded, GuardedError, Limits, Raised, Setup

SECONDS, SECONDS_PER_CHARACTER = 5.0, 1 / 100_000
"""Processor time that the guarded child has for a text; the slowest real tokenizers take a tenth of it."""

LOAD_SECONDS = 30.0
"""And to build a tokenizer: a vocabulary of 262,000 tokens takes two."""

_CHARACTERS = 10
"""That a token stands for, to say how long decoding may take."""

_PATIENCE = 2
"""After so many texts that it did not end with, no further one is tried: a file may have a million."""

_child = Guarded("finetune_local.data.tokenizers.child", Limits(SECONDS, 2 * 10**9))
T = TypeVar("T")


class Core(Protocol):
    """What both kinds do. `encode` and `decode` raise RowRejected where the tokenizer fails with a text."""

    def encode(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        """The ids of each text; `special` adds what the tokenizer puts around one by itself."""

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        """The text of ids."""

    def streamed(self, ids: Sequence[int], ends: Collection[int]) -> list[tuple[str, list[int]]]:
        """The text of ids piece by piece, special tokens included: see streamer.streamed."""

    def token(self, index: int) -> str | None:
        """A token as the vocabulary writes it."""

    def id_of(self, token: str) -> int | None:
        """The id of a token."""

    def names(self) -> dict[int, str]:
        """Every token by its id."""


@dataclass(frozen=True)
class Facts:
    """What is known of a tokenizer beside its core."""

    named: Mapping[str, str]
    """Its special tokens by name: "eos_token": "</s>"."""
    extra: tuple[str, ...]
    """Special tokens without a name."""
    added: Mapping[str, int]
    """Tokens beside the text's own vocabulary, by their text, in the order of their ids."""
    left_out: frozenset[int]
    """Those of them that do not show in an answer's text."""
    strips_right: frozenset[int]
    """Those of them that take the white space behind them."""
    size: int
    """How many tokens there are."""
    largest_id: int
    bytes_fall_back: bool
    """Whether unknown characters become the tokens of their bytes, <0x0A>."""


def load_core(folder: Path) -> tuple[Core, Facts]:
    """The tokenizer of a folder, with the ids that transformers gives. Raises ModelError."""
    from finetune_local.data.tokenizers.build import build, from_written, read_files

    files = read_files(folder)
    if files is not None and files.known:
        built = build(files)
        return InProcess(built.core), facts_of(built)
    written = converted(folder) if files is None else _written(folder)
    if written["known"]:
        built = from_written(written, folder)
        return InProcess(built.core), facts_of(built)
    kept = Setup(json.dumps(written))
    return InChild(kept), _facts(folder, kept)


def facts_of(built: Any) -> Facts:
    """Of what tokenizer_build made."""
    core = built.core
    tokens = sorted(core.get_added_tokens_decoder().items())
    vocabulary = core.get_vocab(with_added_tokens=True)
    return Facts(
        named=built.named,
        extra=built.extra,
        added={token.content: index for index, token in tokens},
        left_out=frozenset(index for index, token in tokens if token.special),
        strips_right=frozenset(index for index, token in tokens if token.rstrip),
        size=core.get_vocab_size(with_added_tokens=True),
        largest_id=max(vocabulary.values(), default=-1),
        bytes_fall_back="<0x0A>" in vocabulary and "ByteFallback" in str(core.decoder),
    )


class InProcess:
    """The library's tokenizer itself."""

    def __init__(self, core: Any) -> None:
        core.no_truncation()
        core.no_padding()
        self._core = core

    def encode(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        """Without offsets, which takes a fifth less time."""
        return _told(lambda: [one.ids for one in self._core.encode_batch_fast(list(texts), add_special_tokens=special)])

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        return _told(lambda: str(self._core.decode(list(ids), skip_special_tokens=skip_special)))

    def streamed(self, ids: Sequence[int], ends: Collection[int]) -> list[tuple[str, list[int]]]:
        return streamed(lambda part: self.decode(part, False), ids, ends)

    def token(self, index: int) -> str | None:
        found: str | None = self._core.id_to_token(index)
        return found

    def id_of(self, token: str) -> int | None:
        found: int | None = self._core.token_to_id(token)
        return found

    def names(self) -> dict[int, str]:
        return {index: name for name, index in self._core.get_vocab(with_added_tokens=True).items()}


class InChild:
    """The same in a guarded child."""

    def __init__(self, setup: Setup) -> None:
        self._setup, self._failed, self._why = setup, 0, ""

    def encode(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        size = sum(map(len, texts))
        found: list[list[int]] = self._asked({"do": "encode", "texts": list(texts), "special": special}, size)
        return found

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        asked = {"do": "decode", "ids": list(map(int, ids)), "skip_special": skip_special}
        return str(self._asked(asked, _CHARACTERS * len(ids)))

    def streamed(self, ids: Sequence[int], ends: Collection[int]) -> list[tuple[str, list[int]]]:
        asked = {"do": "streamed", "ids": list(map(int, ids)), "ends": sorted(map(int, ends))}
        return [(text, part) for text, part in self._asked(asked, _CHARACTERS * len(ids))]

    def token(self, index: int) -> str | None:
        found: str | None = self._asked({"do": "token", "id": int(index)}, 0)
        return found

    def id_of(self, token: str) -> int | None:
        found: int | None = self._asked({"do": "id", "token": token}, 0)
        return found

    def names(self) -> dict[int, str]:
        return dict(self._asked({"do": "names"}, 0))

    def _asked(self, request: dict[str, Any], characters: int) -> Any:
        if self._failed < _PATIENCE:
            try:
                return _child.ask(request, self._setup, LOAD_SECONDS, SECONDS + characters * SECONDS_PER_CHARACTER)
            except Raised as error:  # quickly, and the next text may be a better one
                self._why = message_of(error)
            except GuardedError as error:
                self._failed, self._why = self._failed + 1, message_of(error)
        raise RowRejected(msg("the model's tokenizer fails with it: {error}.", error=self._why))


def _written(folder: Path) -> dict[str, Any]:
    """A tokenizer built in the child, as text: the folder may be gone when the child is started again."""
    told: dict[str, Any] = _of_child(folder, {"do": "write"}, Setup(json.dumps({"folder": str(folder)})))
    return {**told, "known": False}


def _facts(folder: Path, setup: Setup) -> Facts:
    told = _of_child(folder, {"do": "facts"}, setup)
    return Facts(
        **{**told, "extra": tuple(told["extra"]), **{key: frozenset(told[key]) for key in ("left_out", "strips_right")}}
    )


def _of_child(folder: Path, request: dict[str, Any], setup: Setup) -> dict[str, Any]:
    try:
        told: dict[str, Any] = _child.ask(request, setup, LOAD_SECONDS)
    except GuardedError as error:
        raise ModelError(
            msg(
                "{folder}: the tokenizer cannot be used: {error}. Copy its files again from where the model came from.",
                folder=folder,
                error=error,
            )
        ) from None
    if "wrong" in told:
        raise ModelError(as_message(told["wrong"]))
    return told


def _told(work: Callable[[], T]) -> T:
    """The result; the library's bare exceptions and panics as RowRejected."""
    try:
        return work()
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        said = " ".join(str(error).split())[:200]
        raise RowRejected(msg("the model's tokenizer fails with it: {error}.", error=said)) from None
