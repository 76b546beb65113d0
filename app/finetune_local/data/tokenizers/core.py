"""Text to ids and back with the `tokenizers` library: in this process if the cost of every part is bounded, else in a guarded child.

The library is written in Rust, and its input decides what it does: a pattern may backtrack for hours, replacements may double a text
forty times, and a failed allocation aborts the process. shape.py decides which tokenizer.json can do none of this.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from finetune_local.data.conversation import RowRejected
from finetune_local.data.tokenizers.conversion import converted
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import as_message, message_of, msg
from finetune_local.system.untrusted.guarded import Guarded, GuardedError, Limits, Raised, Setup

SECONDS, SECONDS_PER_CHARACTER = 5.0, 1 / 100_000
"""CPU seconds per character in the guarded child; the slowest real tokenizers take a tenth."""

LOAD_SECONDS = 30.0
"""CPU seconds to build a tokenizer; a vocabulary of 262,000 tokens takes two."""

_CHARACTERS = 10
"""Characters assumed per token, to bound decoding time."""

_PATIENCE = 2
"""After this many texts that timed out, no more are tried: a file may have a million."""

_child = Guarded("finetune_local.data.tokenizers.child", Limits(SECONDS, 2 * 10**9))
T = TypeVar("T")

_BROKEN = "\ufffd"


class Core(Protocol):
    """The common interface. `encode` and `decode` raise RowRejected if the tokenizer fails on a text."""

    def encode(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        """The ids of each text; `special` adds what the tokenizer puts around a text."""

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        """The text of ids."""

    def streamed(self, ids: Sequence[int], ends: Collection[int]) -> list[tuple[str, list[int]]]:
        """The text of ids in pieces, special tokens included; see streamer.streamed."""

    def token(self, index: int) -> str | None:
        """A token as the vocabulary spells it."""

    def id_of(self, token: str) -> int | None:
        """A token's id."""

    def names(self) -> dict[int, str]:
        """Every token by id."""


@dataclass(frozen=True)
class Facts:
    """Properties of a tokenizer."""

    named: Mapping[str, str]
    """Named special tokens: "eos_token": "</s>"."""
    extra: tuple[str, ...]
    """Unnamed special tokens."""
    added: Mapping[str, int]
    """Tokens added to the base vocabulary, by text, in order of id."""
    left_out: frozenset[int]
    """Added tokens that are omitted from an answer's text."""
    strips_right: frozenset[int]
    """Added tokens that absorb the whitespace after them."""
    size: int
    """Number of tokens."""
    largest_id: int
    bytes_fall_back: bool
    """Whether unknown characters become byte tokens, <0x0A>."""


def load_core(folder: Path) -> tuple[Core, Facts]:
    """A folder's tokenizer, with the same ids as transformers. Raises ModelError."""
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
    """The properties of a built tokenizer."""
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
    """The library's tokenizer in this process."""

    def __init__(self, core: Any) -> None:
        core.no_truncation()
        core.no_padding()
        self._core = core

    def encode(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        """Without offsets, which is a fifth faster."""
        return _guarded_call(
            lambda: [one.ids for one in self._core.encode_batch_fast(list(texts), add_special_tokens=special)]
        )

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        return _guarded_call(lambda: str(self._core.decode(list(ids), skip_special_tokens=skip_special)))

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
        found: list[list[int]] = self._request({"do": "encode", "texts": list(texts), "special": special}, size)
        return found

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        request = {"do": "decode", "ids": list(map(int, ids)), "skip_special": skip_special}
        return str(self._request(request, _CHARACTERS * len(ids)))

    def streamed(self, ids: Sequence[int], ends: Collection[int]) -> list[tuple[str, list[int]]]:
        request = {"do": "streamed", "ids": list(map(int, ids)), "ends": sorted(map(int, ends))}
        return [(text, part) for text, part in self._request(request, _CHARACTERS * len(ids))]

    def token(self, index: int) -> str | None:
        found: str | None = self._request({"do": "token", "id": int(index)}, 0)
        return found

    def id_of(self, token: str) -> int | None:
        found: int | None = self._request({"do": "id", "token": token}, 0)
        return found

    def names(self) -> dict[int, str]:
        return dict(self._request({"do": "names"}, 0))

    def _request(self, request: dict[str, Any], characters: int) -> Any:
        if self._failed < _PATIENCE:
            try:
                return _child.ask(request, self._setup, LOAD_SECONDS, SECONDS + characters * SECONDS_PER_CHARACTER)
            except Raised as error:  # quickly, and the next text may be a better one
                self._why = message_of(error)
            except GuardedError as error:
                self._failed, self._why = self._failed + 1, message_of(error)
        raise RowRejected(msg("the model's tokenizer fails on it: {error}.", error=self._why))


def _written(folder: Path) -> dict[str, object]:
    """The tokenizer as text: the folder may be gone when the child is restarted."""
    reply = _of_child(folder, {"do": "write"}, Setup(json.dumps({"folder": str(folder)})))
    return {**reply, "known": False}


def _facts(folder: Path, setup: Setup) -> Facts:
    reply = _of_child(folder, {"do": "facts"}, setup)
    return Facts(
        **{
            **reply,
            "extra": tuple(reply["extra"]),
            **{key: frozenset(reply[key]) for key in ("left_out", "strips_right")},
        }
    )


def _of_child(folder: Path, request: Mapping[str, Any], setup: Setup) -> Mapping[str, Any]:
    """The child's reply. Raises ModelError."""
    try:
        reply: Mapping[str, Any] = _child.ask(request, setup, LOAD_SECONDS)
    except GuardedError as error:
        raise ModelError(
            msg(
                "{folder}: the tokenizer cannot be used: {error}. Copy its files again from the model's source.",
                folder=folder,
                error=error,
            )
        ) from None
    if "wrong" in reply:
        raise ModelError(as_message(reply["wrong"]))
    return reply


def _guarded_call(work: Callable[[], T]) -> T:
    """The result; the library's exceptions and panics become RowRejected."""
    try:
        return work()
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        reason = " ".join(str(error).split())[:200]
        raise RowRejected(msg("the model's tokenizer fails on it: {error}.", error=reason)) from None


class Streamer:
    """Push ids one at a time; the returned pieces joined are the text of all ids.

    A piece that ends in an incomplete character is withheld until it is complete. Decoding starts at the last returned piece, so the cost
    does not grow with the text and a leading space is neither lost nor added.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._shown = 0
        """Ids whose text has been returned; kept only as context for the next ids."""

    def push(self, token: int) -> str:
        """The text completed by this token, often "" or one word."""
        self._ids.append(token)
        return self._new(hold=True)

    def finish(self) -> str:
        """The withheld text; a character the model never finished becomes U+FFFD."""
        return self._new(hold=False)

    def _new(self, *, hold: bool) -> str:
        known, text = self._decode(self._ids[: self._shown]), self._decode(self._ids)
        if len(text) <= len(known) or (hold and text.endswith(_BROKEN)):
            return ""
        self._ids, self._shown = self._ids[self._shown :], len(self._ids) - self._shown
        return text[len(known) :]


def streamed(
    decode: Callable[[Sequence[int]], str], ids: Sequence[int], ends: Collection[int] = ()
) -> list[tuple[str, list[int]]]:
    """Pieces of text with their ids (several if a character takes several); joined they are the text of all ids.

    No piece crosses an index in `ends`.
    """
    streamer = Streamer(decode)
    found: list[tuple[str, list[int]]] = []
    waiting: list[int] = []
    for index, one in enumerate(ids):
        if waiting and index in ends:
            found.append((streamer.finish(), waiting))
            waiting = []
        waiting.append(one)
        if text := streamer.push(one):
            found.append((text, waiting))
            waiting = []
    return [*found, (streamer.finish(), waiting)] if waiting else found
