"""A row of data for display: short in a table, or in full, token by token, with what is supervised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_local.data.conversation import Conversation
from finetune_local.data.encoding.encode import Encoded
from finetune_local.data.tokenizers.tokenizer import Tokenizer

SHORT = 240
"""Characters of a prompt or an answer in the table."""

PIECES = 4000
"""Tokens of a row shown one by one."""

_TEXT_SHOWN = 20_000


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


def row_of(number: int, row: Conversation, encoded: Sequence[Encoded], reason: str) -> dict[str, object]:
    """A table row: the last question and its answer, shortened; numbers of tokens and supervised tokens, or why there are none."""
    last = max((i for i, m in enumerate(row.messages) if m.role == "assistant"), default=len(row.messages))
    question = next((m.content for m in reversed(row.messages[:last]) if m.role == "user"), "")
    answer = row.text if row.text is not None else row.messages[last].content if last < len(row.messages) else ""
    return {
        "number": number,
        "file": row.source.file,
        "line": row.source.line,
        "turns": len(row.messages),
        "prompt": _short(question),
        "answer": _short(answer or ""),
        "tokens": sum(len(one.ids) for one in encoded) if encoded else None,
        "learned": sum(int(one.mask.sum()) for one in encoded) if encoded else None,
        "cut": encoded[0].cut if encoded else 0,
        "reason": reason,
    }


def _short(text: str) -> str:
    flat = " ".join(text[: 4 * SHORT].split())
    return flat if len(flat) <= SHORT and len(text) <= 4 * SHORT else flat[: SHORT - 1] + "…"


def in_full(row: Conversation, encoded: Encoded | None, found: Sequence[Piece]) -> dict[str, object]:
    """A row with its tokens, as plain values; with its turns instead if there is no tokenizer or the row is rejected."""
    told = {"file": row.source.file, "line": row.source.line}
    if encoded is None or not found:
        turns = [(str(m.role), m.content, m.role == "assistant" and m.train) for m in row.messages]
        texts = turns or [("text", row.text or "", True)]
        return {**told, "turns": [(role, text[:_TEXT_SHOWN], learned) for role, text, learned in texts]}
    return {
        **told,
        "pieces": [(piece.text, piece.learned, piece.special) for piece in found],
        "tokens": len(encoded.ids),
        "more": len(encoded.ids) - sum(piece.tokens for piece in found),
        "cut": encoded.cut,
    }
