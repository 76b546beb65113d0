"""A model's tokenizer: text to ids and back, and chats to ids with the answers marked.

Every backend gets its ids from here, so they are equal, and equal to transformers' (build.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from finetune_local.data.conversation import Message, RowRejected
from finetune_local.data.encoding.chat_template import CHATML, PLAIN, Span
from finetune_local.data.encoding.guarded_template import GuardedTemplate
from finetune_local.data.tokenizers.core import Core, Facts, Streamer, load_core
from finetune_local.spec.base.config import read_optional_config
from finetune_local.spec.base.tokenizer_files import brought, ends_in, generation_settings, joined, template_of
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import msg

Segment = tuple[list[int], bool]
"""Token ids and whether they are supervised."""

_ANCHOR = "\n"


class Tokenizer:
    """Created by `load`. `template` is the model's own chat template or None; `chat_template` is the one in use."""

    def __init__(self, core: Core, facts: Facts, template: str | None, stop_ids: Collection[int]) -> None:
        self._core = core
        self.vocabulary_size: int = facts.size
        self.largest_id: int = facts.largest_id
        """The largest id a text can get; above vocabulary_size - 1 if ids are skipped."""
        ids = {name: core.id_of(token) for name, token in facts.named.items()}
        self.rows: int | None = None
        """Rows of the model's embedding, if fewer than the tokenizer's tokens."""
        self.bos_id: int | None = ids.get("bos_token")
        eos, pad = ids.get("eos_token"), ids.get("pad_token")
        self.eos_id: int = eos if eos is not None else min(stop_ids)
        self.pad_id: int = pad if pad is not None else self.eos_id
        self.template: str | None = template
        self._added, self._left_out, self._named = facts.added, facts.left_out, facts.named
        self._added_texts, self._strips_right = {i: text for text, i in facts.added.items()}, facts.strips_right
        extra = (core.id_of(token) for token in facts.extra)
        self._special = frozenset(i for i in (*facts.added.values(), *ids.values(), *extra) if i is not None)
        self.beginning: tuple[int, ...] = self._beginning()
        """Ids the tokenizer puts before a text: BOS for some models, else none."""
        self.chat_template: str = self.template or self._stand_in()
        self._prefixes_space = True  # assumed only to ask what a text is in the middle of another
        self._prefixes_space = self._pieces_ids(["", "x"])[1] != self.ids("x")
        self._byte_fallback = facts.bytes_fall_back
        self._chat = GuardedTemplate(self.chat_template, facts.named)
        stops = {*stop_ids, self.eos_id}
        self.turn_end_id: int | None = self._end_of_turn()
        """The token the template in use puts after an answer, or None."""
        if self.turn_end_id is not None:
            stops.add(self.turn_end_id)
        self.stop_ids: frozenset[int] = frozenset(stops)
        self._chat.stops = sorted(self.token(i) for i in self.stop_ids)

    @classmethod
    def load(cls, folder: Path, beside: Path | None = None) -> Tokenizer:
        """Load from a model folder, with what an adapter's folder `beside` overrides (see tokenizer_files).

        Local files only; no code in a folder is run. Raises ModelError.
        """
        if not folder.is_dir():
            raise ModelError(msg("{folder}: folder not found, so there is no tokenizer.", folder=folder))
        if beside is not None and brought(beside):
            with joined(folder, beside) as place:
                return cls._load(place, beside, folder)
        return cls._load(folder, folder, None)

    @classmethod
    def _load(cls, place: Path, folder: Path, base: Path | None) -> Tokenizer:
        """From the files at `place`, which are those of `folder`, an adapter's if it has a `base`."""
        try:
            core, facts = load_core(place)
        except ModelError as error:  # an adapter's files were put together at another place
            raise ModelError(error.message.with_values(place, folder)) from None
        if base is None:
            stops = set(_configured_stops(folder))
        else:  # of the base's, those that are still tokens beside the text: an adapter's tokenizer may use ids anew
            special = set(facts.added.values())
            stops = {*ends_in(generation_settings(folder)), *(i for i in _configured_stops(base) if i in special)}
        # Embeddings have more rows than there are tokens, and config.json may name one of those.
        stops = {i for i in stops if i <= facts.largest_id and core.token(i) is not None}
        if core.id_of(facts.named.get("eos_token", "")) is None and not stops:
            raise ModelError(
                msg(
                    '{folder}: the tokenizer names no end-of-text token, so answers would never end. Set "eos_token" in '
                    "tokenizer_config.json.",
                    folder=folder,
                )
            )
        try:
            tokenizer = cls(core, facts, template_of(place), stops)
        except RowRejected as error:
            raise ModelError(
                msg("{folder}: {error} Copy its files again from the model's source.", folder=folder, error=error)
            ) from None
        if base is None:  # an adapter may add rows: see adapters/token_tables.py
            rows = _configured_rows(folder)
            tokenizer.rows = rows if rows is not None and rows <= facts.largest_id else None
        return tokenizer

    def ids(self, text: str, special: bool = False) -> list[int]:
        """Token ids of a text. Special tokens written in the text become their ids; `special` adds BOS and the like if the tokenizer does
        so itself.
        """
        return self._core.encode([text], special)[0]

    def text(self, ids: Sequence[int], special: bool = False) -> str:
        """The text of ids, without special tokens unless requested; broken characters become U+FFFD."""
        if not self._byte_fallback:
            return self._decoded(ids, special)
        # tokenizers gives up a whole run of byte tokens for one bad byte; by streaming only the bad ones are lost.
        shown = ids if special else [i for i in ids if i not in self._left_out]
        return "".join(text for text, _ in self._core.streamed(shown, ()))

    def streamer(self) -> Streamer:
        """For a growing answer: push(id) and finish() return its text in whole characters."""
        return Streamer(lambda part: self._decoded(part, False))

    def pieces(self, ids: Sequence[int], ends: Collection[int] = ()) -> list[tuple[str, list[int]]]:
        """Pieces of text, special tokens included, each with its ids (several if a character takes several).

        Joined they are the text of all. No piece crosses an index in `ends`.
        """
        return self._core.streamed(ids, ends)

    def is_special(self, id: int) -> bool:  # noqa: A002 - the standard word
        """Whether a token is not text, such as <|im_end|>."""
        return id in self._special

    def names(self) -> dict[int, str]:
        """Every token's name by id, added ones included."""
        return self._core.names()

    def is_left_out(self, id: int) -> bool:  # noqa: A002 - the standard word
        """Whether a token is marked special, so that an answer's text omits it."""
        return id in self._left_out

    def token(self, id: int) -> str:  # noqa: A002 - the standard word
        """A token's name as the vocabulary spells it."""
        return str(self._core.token(id))

    def render(self, messages: Sequence[Message], generation_prompt: bool = False) -> str:
        """The chat as text. Raises RowRejected if the template refuses the messages."""
        return self._chat.render(messages, generation_prompt)

    def render_turns(
        self, turns: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = (), day: date | None = None
    ) -> str:
        """What the template itself makes of turns with any keys (`tool_calls`, `reasoning_content`), with the start of the next answer; nothing
        is bridged. `day` replaces today, like 2021-03-04. Raises RowRejected if the template refuses.
        """
        return self._chat.render_chat(turns, True, [dict(tool) for tool in tools] or None, day)

    def render_ahead(self, chats: Iterable[Sequence[Message]]) -> None:
        """Render chats that segments() will need soon, in one request to the template's process."""
        self._chat.ahead([messages for messages in chats if messages])

    def render_as_is(
        self,
        turns: Sequence[Mapping[str, Any]],
        generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        **variables: bool,
    ) -> str:
        """As render_turns(), with or without a next answer, by the template in use or the one given, and with extra variables."""
        chat = self._chat
        if template is not None and template != self.chat_template:
            chat = GuardedTemplate(template, self._named)
        return chat.render_chat(turns, generation_prompt, [dict(tool) for tool in tools or ()] or None, None, variables)

    def segments(self, messages: Sequence[Message], generation_prompt: bool = False) -> list[Segment]:
        """The chat as ids in pieces, tokenized separately, so that supervised ids continue exactly the ids of prompt_ids().

        Raises RowRejected if the template refuses or an answer is not found in its text.
        """
        text, spans = self._chat.spans(messages, generation_prompt)
        pieces: list[Segment] = []
        cuts = list(_cuts(len(text), spans))
        tokenised = self._pieces_ids([text[start:end] for start, end, _ in cuts])
        for (_, end, span), ids in zip(cuts, tokenised, strict=True):
            if span and not span.closed and end == len(text.rstrip()):
                ids.append(self.eos_id)  # the template leaves the last answer open; without an end it would never stop
            pieces.append((ids, bool(span and messages[span.message].train)))
        self._check_rows(pieces)
        return pieces

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The ids that precede the next answer to these messages."""
        return [i for ids, _ in self.segments(messages, generation_prompt=True) for i in ids]

    def raw_segments(self, texts: Sequence[tuple[str, bool]]) -> list[Segment]:
        """Consecutive texts, each with its supervision flag; BOS first if the tokenizer adds it."""
        tokenised = self._pieces_ids([text for text, _ in texts])
        pieces = [(ids, supervised) for ids, (_, supervised) in zip(tokenised, texts, strict=True)]
        self._check_rows(pieces)
        return [(list(self.beginning), False), *pieces] if self.beginning else pieces

    def _check_rows(self, pieces: Sequence[Segment]) -> None:
        """Raise RowRejected if a token has no row: torch would raise an IndexError, MLX read past the last row."""
        if self.rows is None:
            return
        for number in (i for ids, _ in pieces for i in ids if i >= self.rows):
            raise RowRejected(
                msg(
                    "it contains {token}, a token for which the model has no embedding row. Remove it.",
                    token=self.token(number),
                )
            )

    def _pieces_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of consecutive texts, each as it would be within the whole.

        SentencePiece tokenizers put a space before every text, and after a special token another; other special tokens absorb the whitespace
        after them. So each text is tokenized after the special token before it, or after a line end.
        """
        found = self._core.encode(texts, False)
        places, behind = [], []
        for number in range(1, len(texts)):
            last = found[number - 1][-1] if found[number - 1] else None
            token = self._added_texts.get(last) if last is not None else None
            if self._prefixes_space or last in self._strips_right:
                places.append(number)
                behind.append(_ANCHOR if token is None else token)
        if places:
            anchors = dict(zip(kinds := list(dict.fromkeys(behind)), self._core.encode(kinds, False), strict=True))
            wholes = self._core.encode([b + texts[n] for b, n in zip(behind, places, strict=True)], False)
            for number, anchor, whole in zip(places, (anchors[text] for text in behind), wholes, strict=True):
                if whole[: len(anchor)] == anchor:
                    found[number] = whole[len(anchor) :]
        return found

    def _decoded(self, ids: Sequence[int], special: bool) -> str:
        return self._core.decode(ids, not special)

    def _beginning(self) -> tuple[int, ...]:
        plain, full = self.ids("x"), self.ids("x", special=True)
        at = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)
        return tuple(full[:at])

    def _stand_in(self) -> str:
        if {"<|im_start|>", "<|im_end|>"} <= set(self._added):
            return CHATML
        return ("{{ bos_token }}" if self.beginning and self.bos_id in self.beginning else "") + PLAIN

    def _end_of_turn(self) -> int | None:
        """The added token the template puts after an answer."""
        after = (self._chat.after_answer() or "").lstrip()
        longest = max((t for t in self._added if t and after.startswith(t)), key=len, default=None)
        return None if longest is None else self._added[longest]


def _cuts(length: int, spans: Sequence[Span]) -> Iterator[tuple[int, int, Span | None]]:
    """The text's pieces in order: (start, end, the answer's span or None); none is empty."""
    at = 0
    for span in spans:
        if span.start > at:
            yield at, span.start, None
        yield span.start, span.end, span
        at = span.end
    if at < length:
        yield at, length, None


def _configured_stops(folder: Path) -> Iterator[int]:
    """Every eos_token_id of config.json and generation_config.json. Raises ModelError for invalid JSON."""
    for part in (*_configs(folder / "config.json"), *_configs(folder / "generation_config.json")):
        yield from ends_in(part)


def _configured_rows(folder: Path) -> int | None:
    """Rows of the model's embedding by config.json, which is checked against the weights (spec/base/weights.py)."""
    sizes = [part.get("vocab_size") for part in reversed(_configs(folder / "config.json"))]
    return next((size for size in sizes if type(size) is int and size > 0), None)


def _configs(path: Path) -> list[Mapping[str, Any]]:
    """A config and its language-model part, if present. Raises ModelError for invalid JSON."""
    if (config := read_optional_config(path)) is None:
        return []
    inner = config.get("text_config")
    return [config, inner] if isinstance(inner, dict) else [config]
