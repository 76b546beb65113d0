"""Conversations between people with names of their own: whose turns are learned is for the user to say (--assistant Alice).

That speaker's turns become the assistant's, all others the user's; several of one side in a row become one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from finetune_local.data.conversation import Conversation, Message, Role, RowRejected
from finetune_local.data.turns import ROLE_NAMES, whole
from finetune_local.system.messages import msg
from finetune_local.system.untrusted.text import ForeignTextError, parse_json

Row = Mapping[str, Any]

LISTS = ("messages", "conversations", "conversation", "chat_log", "prompt", "completion")
"""Keys of a row under which a list of turns may lie."""

NAME_KEYS = ("role", "from", "speaker", "sender", "author", "name")
"""Keys of a turn that may say who speaks."""

MOST_SPEAKERS = 1000
"""Different names that are counted."""

LONGEST_NAME = 200
"""Characters of a name that is counted."""

_CONTENT_KEYS = ("content", "value", "text")
_SHOWN = 6
_WORTH_ASKING = 0.1  # share of the turns


def count(row: Row, into: Counter[str]) -> None:
    """Add who speaks how often in a row; what is said by the system or by tools is nobody's."""
    for _, turns in _lists(row):
        for turn in turns:
            name = name_of(turn)
            somebody = 0 < len(name) <= LONGEST_NAME and _role(name) not in ("system", "tool")
            if somebody and (name in into or len(into) < MOST_SPEAKERS):
                into[name] += 1


def named(speakers: Mapping[str, int]) -> list[str]:
    """Those speakers whose names are no role's, the most talkative first; none where they say so little that it is a mistake."""
    own = [name for name in speakers if _role(name) is None]
    if sum(speakers[name] for name in own) < _WORTH_ASKING * sum(speakers.values()):
        return []
    return sorted(own, key=lambda name: (-speakers[name], name))


def cast(row: Row, assistant: str) -> Row:
    """The row with its turns' speakers as roles. Raises RowRejected where the assistant does not speak in it.

    Where several others speak, their names stand before what they say, so that they can be told apart.
    """
    changed = {key: _cast(turns, assistant, several=bool(row.get("several"))) for key, turns in _lists(row)}
    return {**row, **changed} if changed else row


def merged(conversation: Conversation) -> Conversation:
    """Consecutive turns of one side as one, and without what the assistant says before anybody has spoken to it.

    Raises RowRejected where nobody else speaks.
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
        raise RowRejected(msg("nobody speaks to the assistant in it, so there is nothing to answer."))
    return replace(conversation, messages=tuple(result))


def name_of(turn: Mapping[str, Any]) -> str:
    """Who speaks: a name beside a role of "user" or "assistant" counts for more than the role."""
    given = [value for key in NAME_KEYS if isinstance(value := turn.get(key), str) and value.strip()]
    own = next((value for value in given if _role(value) is None), None)
    first = given[0] if given else ""
    return whole((own if own is not None and _role(first) not in ("system", "tool") else first).strip())


def _cast(turns: Sequence[Row], assistant: str, *, several: bool) -> list[dict[str, Any]]:
    wanted = assistant.strip().casefold()
    names = [name_of(turn) for turn in turns]
    if wanted not in (name.casefold() for name in names):
        found = list(dict.fromkeys(name for name in names if name))
        shown = ", ".join(found[:_SHOWN]) + (" …" if len(found) > _SHOWN else "")
        raise RowRejected(
            msg("'{name}' says nothing in it; its speakers are: {names}.", name=assistant, names=shown or "nobody")
        )
    others = {name.casefold() for name in names if name and _role(name) not in ("system", "tool")} - {wanted}
    several = several or len(others) > 1
    return [_turn(turn, name, wanted, several=several) for turn, name in zip(turns, names, strict=True)]


def _turn(turn: Row, name: str, wanted: str, *, several: bool) -> dict[str, Any]:
    role: Role
    if name.casefold() == wanted or name.lower() in ("function_call", "tool_call"):
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
    """The row's lists of turns; a cell of a CSV file may hold one as JSON."""
    for key in LISTS:
        value = row.get(key)
        if isinstance(value, str) and value.lstrip().startswith("[{"):
            try:
                value = parse_json(value)
            except ForeignTextError:
                continue  # the format says what is wrong with it
        if isinstance(value, list) and value and all(isinstance(turn, Mapping) for turn in value):
            yield key, value


def _role(name: str) -> Role | None:
    return ROLE_NAMES.get(name.strip().lower())
