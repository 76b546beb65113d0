"""What chat formats share: roles under their many names, content as text, system texts and tool calls.

Not a format itself; the files in formats/ say where in a row the turns are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_local.data.conversation import Message, Role, RowRejected
from finetune_local.system.fields import did_you_mean, nearest
from finetune_local.system.messages import msg
from finetune_local.system.untrusted.text import ForeignTextError, kind_of, parse_json

ROLE_NAMES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
"""Names of roles in public data sets, and the role of each."""

_SHOWN_ROLES = ("system", "user", "assistant", "tool", "human", "gpt", "function_call", "observation")


def text_of(value: object, where: str, *, empty: bool = False) -> str:
    """A valid text. Raises RowRejected, naming `where`, for other types, empty texts and broken characters."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise RowRejected(
                msg(
                    "{where} is {value}, an empty cell, not a text; remove the row.",
                    where=where,
                    value=value,
                )
            )
        value = json.dumps(value)  # an answer such as 42 is a number in JSON, but a text to learn
    if not isinstance(value, str):
        raise RowRejected(msg("{where} is {kind}, expected a text.", where=where, kind=kind_of(value)))
    if not empty and not value.strip():
        raise RowRejected(msg("{where} is empty.", where=where))
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise RowRejected(
                msg("{where} contains half a character (a lone surrogate); save the text as UTF-8 again.", where=where)
            ) from None
    return value


def whole(text: str) -> str:
    """A text that can be encoded anywhere: lone surrogates are replaced by their numbers."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def turns(value: object, key: str) -> list[Message]:
    """Messages from a list of {"role", "content"} or {"from", "value"}. Raises RowRejected naming the turn and the reason."""
    if isinstance(value, str):  # a CSV cell contains the list as JSON
        try:
            value = parse_json(value)
        except ForeignTextError as error:
            raise RowRejected(msg("'{key}' should be JSON, but is not ({error}).", key=key, error=error)) from None
    if not isinstance(value, Sequence):
        raise RowRejected(msg("'{key}' is {kind}, expected a list of turns.", key=key, kind=kind_of(value)))
    if not value:
        raise RowRejected(msg("'{key}' is empty.", key=key))
    return [_turn(item, f"'{key}'", number) for number, item in enumerate(value, 1)]


def with_system(messages: Sequence[Message], row: Mapping[str, Any]) -> tuple[Message, ...]:
    """The messages preceded by the row's "system" text and "tools", if it has them and they are not there yet."""
    result = list(messages)
    system = row.get("system")
    if system and not (result and result[0].role == "system"):
        result.insert(0, Message("system", text_of(system, "'system'")))
    tools = _tools(row.get("tools"))
    if tools:
        # Without the list of functions a model would learn to call functions it cannot know.
        described = f"You can call these functions:\n{tools}"
        if result and result[0].role == "system":
            result[0] = Message("system", f"{result[0].content}\n\n{described}")
        else:
            result.insert(0, Message("system", described))
    return tuple(result)


def _turn(item: object, where: str, number: int) -> Message:
    if not isinstance(item, Mapping):
        raise RowRejected(
            msg(
                "turn {number} of {where} is {kind}, expected an object with a role and a content.",
                number=number,
                where=where,
                kind=kind_of(item),
            )
        )
    role_key = "role" if "role" in item else "from"
    if role_key not in item:
        raise RowRejected(
            msg(
                "turn {number} of {where} has no 'role'.{near_key}",
                number=number,
                where=where,
                near_key=_near_key("role", item),
            )
        )
    role = _role(item[role_key], where)
    content_key = next((k for k in ("content", "value", "text") if k in item), None)
    place = msg("turn {number} of {where} ({role})", number=number, where=where, role=role)
    calls = _calls(item, place)
    if content_key is None and not calls:
        raise RowRejected(msg("{place} has no 'content'.{near_key}", place=place, near_key=_near_key("content", item)))
    content = _content(item.get(content_key) if content_key else None, place, empty=bool(calls) or role != "assistant")
    return Message(
        role, "\n".join(part for part in (content, calls) if part) if calls else content, _trained(item, place)
    )


def _role(name: object, where: str) -> Role:
    known = ROLE_NAMES.get(name.strip().lower()) if isinstance(name, str) else None
    if known is None:
        hint = did_you_mean(str(name), list(ROLE_NAMES)) or (
            msg(
                " Known: {names}. If it is a person's name, choose whose turns to learn: --assistant NAME",
                names=", ".join(_SHOWN_ROLES),
            )
        )
        raise RowRejected(msg("{where} has role {role}.{hint}", where=where, role=repr(name), hint=hint))
    return known


def _content(value: object, place: str, *, empty: bool) -> str:
    if value is None:
        if empty:
            return ""
        raise RowRejected(msg("{place} has no content.", place=place))
    if not isinstance(value, list):
        return text_of(value, place, empty=empty)
    texts = []
    for part in value:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type", "text") if isinstance(part, Mapping) else kind_of(part)
        if not isinstance(part, Mapping) or kind not in ("text", "input_text", "output_text"):
            raise RowRejected(
                msg("{place} has a part of type {kind}; only text can be learned.", place=place, kind=repr(kind))
            )
        texts.append(
            text_of(part.get("text", part.get("value")), msg("a text part of {place}", place=place), empty=True)
        )
    return text_of("".join(texts), place, empty=empty)


def _trained(item: Mapping[str, Any], place: str) -> bool:
    for key in ("weight", "loss_weight"):
        weight = item.get(key)
        if weight is None:
            continue
        if not isinstance(weight, bool | int | float) or weight < 0:
            raise RowRejected(
                msg("{place} has {key} {weight}, expected 0 or 1.", place=place, key=key, weight=repr(weight))
            )
        if weight not in (0, 1):
            raise RowRejected(
                msg(
                    "{place} has {key} {weight}; an answer is learned (1) or not (0), with nothing in between.",
                    place=place,
                    key=key,
                    weight=repr(weight),
                )
            )
        return bool(weight)
    return True


def _calls(item: Mapping[str, Any], place: str) -> str:
    """Calls as text, one JSON object {"name", "arguments"} per line, as in function_call turns."""
    calls = item.get("tool_calls") or ([item["function_call"]] if item.get("function_call") else [])
    if not isinstance(calls, list):
        raise RowRejected(
            msg("{place} has tool_calls that are {kind}, expected a list.", place=place, kind=kind_of(calls))
        )
    lines = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RowRejected(msg("{place} has a tool call without a function name.", place=place))
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = parse_json(arguments or "{}")
            except ForeignTextError as error:
                raise RowRejected(
                    msg(
                        "{place} calls '{function}' with arguments that should be JSON, but are not ({error}).",
                        place=place,
                        function=function["name"],
                        error=error,
                    )
                ) from None
        lines.append(
            _written({"name": function["name"], "arguments": arguments}, msg("a tool call of {place}", place=place))
        )
    return text_of("\n".join(lines), msg("a tool call of {place}", place=place), empty=True)


def _tools(value: object) -> str:
    if value in (None, "", [], "[]", {}):
        return ""
    return text_of(value if isinstance(value, str) else _written(value, "'tools'"), "'tools'")


def _written(value: object, where: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise RowRejected(msg("{where} contains NaN or Infinity, which JSON does not allow.", where=where)) from None


def _near_key(key: str, item: Mapping[str, Any]) -> str:
    names = ", ".join(repr(str(k)) for k in list(item)[:6]) or "nothing"
    near = nearest(key, [str(k) for k in item])
    return msg(" It has {names}.", names=names) + (
        msg(" Rename '{name}' to '{expected}'.", name=near, expected=key) if near else ""
    )
