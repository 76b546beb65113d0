"""Roles of columns in files whose names no format knows: --column prompt=frage. And a guess if the user assigned none."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_local.data.readers.rows import OPTIONAL
from finetune_local.system.errors import DataError
from finetune_local.system.fields import did_you_mean
from finetune_local.system.messages import msg
from finetune_local.system.untrusted.text import ForeignTextError, parse_json

Row = Mapping[str, Any]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WORDS: Mapping[str, frozenset[str]] = {
    "prompt": _words(
        "prompt question questions query q ask user human customer request instruction input source src problem utterance "
        "frage anfrage eingabe pregunta entrada domanda demande вопрос запрос 问题 问 提问 题目 输入 指令 用户 質問 질문"
    ),
    "completion": _words(
        "completion answer answers response reply output target tgt a assistant bot agent gpt solution antwort ausgabe "
        "respuesta salida réponse reponse sortie risposta ответ 回答 答案 答 回复 输出 解答 助手 客服 答え 답변"
    ),
    "system": _words("system persona 系统 系统提示 人设"),
}
"""Words that names of such columns contain."""

_LONG_ENOUGH = 3  # characters a column has on average to be a text
_ROLE_KEYS = {"role", "from", "speaker", "sender"}


def roles(columns: Sequence[str]) -> dict[str, str]:
    """Column name in lower case -> role: {"frage": "prompt"}."""
    pairs = (column.partition("=") for column in columns)
    return {name.strip().lower(): role.strip() for role, _, name in pairs}


def renamed(row: Row, role_of: Mapping[str, str]) -> Row:
    """The row with columns renamed to their roles. An assigned column replaces one that already has the role's name."""
    found = {role_of[key]: value for key, value in row.items() if key in role_of}
    if not found:
        return row
    kept = {key: value for key, value in row.items() if key not in role_of and key not in found}
    return kept | {role: value for role, value in found.items() if value not in ("", None) or role not in OPTIONAL}


def missing(column: str, role: str, shown: str, names: Sequence[str]) -> DataError:
    """The error for an assigned column that no file has."""
    listed = ", ".join(f"'{name}'" for name in names[:20]) or "none"
    written = {name.strip().lower(): name for name in names}
    hint = did_you_mean(column.strip().lower(), list(written))
    for small, name in written.items():
        hint = hint.replace(f"'{small}'", f"'{name}'")
    return DataError(
        msg(
            "{shown}: there is no column '{name}' (--column {role}={name}).{hint} Its columns: {names}.",
            shown=shown,
            name=column,
            role=role,
            hint=hint,
            names=listed,
        )
    )


def guess(rows: Sequence[Row]) -> dict[str, str]:
    """A likely {role: column} for rows that no format recognises; empty without evidence.

    By names in several languages first, then by the texts.
    """
    names = list(dict.fromkeys(key for row in rows for key in row if key))
    if "chosen" in names and "rejected" in names:  # of two answers the better one; some contain the question as well
        return {"messages" if any(_asks(row.get("chosen")) for row in rows) else "completion": "chosen"}
    turns = next((name for name in names if any(_turns(row.get(name)) for row in rows)), None)
    if turns is not None:
        return {"messages": turns}
    found = {role: name for role in _WORDS if (name := _named(role, names)) is not None}
    if found.get("prompt") == found.get("completion"):
        found.pop("completion", None)
    lengths = {name: size for name in names if (size := _text_length(rows, name)) >= _LONG_ENOUGH}
    lacking = [role for role in ("prompt", "completion") if role not in found]
    free = sorted((name for name in lengths if name not in found.values()), key=lambda name: -lengths[name])[
        : len(lacking)
    ]
    if len(free) < len(lacking):
        return {"text": free[0]} if len(free) == 1 and len(lacking) == 2 else {}
    return found | dict(zip(lacking, sorted(free, key=names.index), strict=True))


def options(found: Mapping[str, str]) -> str:
    """A mapping as command-line options: --column prompt=frage --column completion=antwort."""
    return " ".join(
        f'--column "{role}={name}"' if " " in name else f"--column {role}={name}" for role, name in found.items()
    )


def _named(role: str, names: Sequence[str]) -> str | None:
    """The column whose name suggests this role; short names are preferred."""
    words = _WORDS[role]
    for name in names:
        if name in words:
            return name
    near = [
        name
        for name in names
        if words & set(re.split(r"[\W_]+", name)) or any(w in name for w in words if not w.isascii())
    ]
    return min(near, key=len, default=None)


def _turns(value: object) -> list[Mapping[str, Any]]:
    """The turns of a value that is a list of them, or of one as JSON in a cell; else empty."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse_json(value)
        except ForeignTextError:
            return []
    if not isinstance(value, list):
        return []
    return value if all(isinstance(turn, Mapping) and set(turn) & _ROLE_KEYS for turn in value) else []


def _asks(value: object) -> bool:
    return any(str(turn.get("role", turn.get("from", ""))).lower() in ("user", "human") for turn in _turns(value))


def _text_length(rows: Sequence[Row], name: str) -> float:
    """Mean number of characters in a column; 0 for numbers, dates and empty cells."""
    texts = [value for row in rows if isinstance(value := row.get(name), str) and any(map(str.isalpha, value))]
    return sum(map(len, texts)) / len(texts) if len(texts) * 2 > len(rows) else 0.0
