"""Conversations between named people: the user selects whose turns are supervised (--assistant Alice).

That speaker's turns become the assistant's, all others the user's; consecutive turns of one side are joined.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from finetune_local.data.conversation import Conversation, Message, Role, RowRejected
from finetune_local.data.readers.chat_log import LOG
from finetune_local.data.turns import ROLE_NAMES, whole
from finetune_local.system.messages import msg
from finetune_local.system.untrusted.text import ForeignTextError, parse_json

Row = Mapping[str, Any]

LISTS = ("messages", "conversations", "conversation", LOG, "prompt", "completion")
"""Keys of a row that may contain a list of turns."""

NAME_KEYS = ("role", "from", "speaker", "sender", "author", "name")
"""Keys of a turn that may name the speaker."""

MOST_SPEAKERS = 1000
"""Number of distinct names counted."""

LONGEST_NAME = 200
"""Characters of a name that is counted."""

_CONTENT_KEYS = ("content", "value", "text")
_SHOWN = 6
_WORTH_ASKING = 0.1  # share of the turns


def count(row: Row, into: Counter[str]) -> None:
    """Count a row's turns per speaker; turns of the system and of tools are not counted."""
    for _, turns in _lists(row):
        for turn in turns:
            name = name_of(turn)
            somebody = 0 < len(name) <= LONGEST_NAME and _role(name) not in ("system", "tool")
            if somebody and (name in into or len(into) < MOST_SPEAKERS):
                into[name] += 1


def named(speakers: Mapping[str, int]) -> list[str]:
    """Speakers whose names are not roles, most talkative first; none if they have too few turns."""
    own = [name for name in speakers if _role(name) is None]
    if sum(speakers[name] for name in own) < _WORTH_ASKING * sum(speakers.values()):
        return []
    return sorted(own, key=lambda name: (-speakers[name], name))


def cast(row: Row, assistant: str) -> Row:
    """The row with speakers replaced by roles. Raises RowRejected if the assistant does not speak in it.

    With several other speakers, their names precede their texts.
    """
    changed = {key: _cast(turns, assistant, several=bool(row.get("several"))) for key, turns in _lists(row)}
    return {**row, **changed} if changed else row


def merged(conversation: Conversation) -> Conversation:
    """Consecutive turns of one side joined, without assistant turns before the first user turn.

    Raises RowRejected if no one else speaks.
    """
    result: list[Message] = []
    for message in conversation.messages:
        before = result[-1] if result else None
        if before is not None and before.role == message.role and message.role in ("user", "assistant"):
            if before.train == message.train:
                result[-1] = replace(before, content=f"{before.content}\n{message.content}")
                continue
        elif message.role == "assistant" and not any(m.role in ("user", "tool") for m in result):
            continue
        result.append(message)
    if not any(m.role == "user" for m in result):
        raise RowRejected(msg("it has no message to the assistant, so there is nothing to answer."))
    return replace(conversation, messages=tuple(result))


def name_of(turn: Mapping[str, Any]) -> str:
    """The speaker: a name beside a role of "user" or "assistant" takes precedence over the role."""
    given = [value for key in NAME_KEYS if isinstance(value := turn.get(key), str) and value.strip()]
    own = next((value for value in given if _role(value) is None), None)
    first = given[0] if given else ""
    return whole((own if own is not None and _role(first) not in ("system", "tool") else first).strip())


def _cast(turns: Sequence[Row], assistant: str, *, several: bool) -> list[dict[str, Any]]:
    folded = assistant.strip().casefold()
    names = [name_of(turn) for turn in turns]
    if folded not in (name.casefold() for name in names):
        found = list(dict.fromkeys(name for name in names if name))
        shown = ", ".join(found[:_SHOWN]) + (" …" if len(found) > _SHOWN else "")
        raise RowRejected(
            msg("'{name}' has no messages in it; its speakers are: {names}.", name=assistant, names=shown or "nobody")
        )
    others = {name.casefold() for name in names if name and _role(name) not in ("system", "tool")} - {folded}
    several = several or len(others) > 1
    return [_turn(turn, name, folded, several=several) for turn, name in zip(turns, names, strict=True)]


def _turn(turn: Row, name: str, assistant: str, *, several: bool) -> dict[str, object]:
    role: Role
    if name.casefold() == assistant or name.lower() in ("function_call", "tool_call"):
        role = "assistant"
    else:
        role = known if (known := _role(name)) == "system" or known == "tool" else "user"
    result = {key: value for key, value in turn.items() if key not in NAME_KEYS} | {"role": role}
    content = next((key for key in _CONTENT_KEYS if key in result), None)
    if content is None and "message" in result:
        result["content"] = result.pop("message")
        content = "content"
    if role == "user" and several and content is not None and isinstance(result[content], str):
        result[content] = f"{name}: {result[content]}"
    return result


def _lists(row: Row) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """The row's lists of turns; a CSV cell may contain one as JSON."""
    for key in LISTS:
        value = row.get(key)
        if isinstance(value, str) and value.lstrip().startswith("[{"):
            try:
                value = parse_json(value)
            except ForeignTextError:
                continue  # the format reports what is wrong with it
        if isinstance(value, list) and value and all(isinstance(turn, Mapping) for turn in value):
            yield key, value


def _role(name: str) -> Role | None:
    return ROLE_NAMES.get(name.strip().lower())
