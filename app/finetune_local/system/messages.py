"""Sentences for the user that keep the template and the values they were made from.

    raise SpecError(msg("--rank is {rank}, but {module} is {rows} × {columns}.", rank=rank, ...))

The str itself is the finished English. `template` and `values` travel with it: through errors, other processes and files, so that a
window finds its Chinese by the template (gui/i18n/strings.py) and no finished sentence has to be parsed. A template is a
literal of the source; assets/messages has each of them. A value is text as it is shown (a name, a formatted number), or a Message.

An operation that only str knows (strip, slicing, an f-string, str.join) returns a plain str, which is shown as it is in any
language. Use msg(), + and join_messages() to compose.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

PLACE = re.compile(r"\{([A-Za-z]\w*)\}")
"""A place in a template. Braces around anything else are text."""

SAID = "said"
"""The key under which a JSON object carries the templates and values of the sentences in it."""

_DEEPEST = 16


class Message(str):
    """A finished English text with the template and the values it was made from."""

    __slots__ = ("template", "values")
    template: str
    values: Mapping[str, str]

    def __new__(cls, template: str, values: Mapping[str, str]) -> Message:
        self = super().__new__(cls, PLACE.sub(lambda place: values[place[1]], template))
        self.template = template
        self.values = values
        return self

    def __add__(self, other: str) -> Message:
        if _is_punctuation(other):
            return Message("{part1}" + other, {"part1": self}) if other else self
        return join_messages("", (self, other))

    def __radd__(self, other: str) -> Message:
        if _is_punctuation(other):
            return Message(other + "{part1}", {"part1": self}) if other else self
        return join_messages("", (other, self))

    def __reduce__(self) -> tuple[type[Message], tuple[str, dict[str, str]]]:
        return Message, (self.template, dict(self.values))

    def __copy__(self) -> Message:
        return self

    def __deepcopy__(self, memo: object) -> Message:
        return self

    def with_values(self, old: object, new: object) -> Message:
        """The same sentence with a value, or the start of one, replaced: for a path that the user knows by another name."""
        values = {
            name: value.with_values(old, new) if isinstance(value, Message) else value.replace(str(old), str(new))
            for name, value in self.values.items()
        }
        return Message(self.template, values)

    def as_json(self) -> dict[str, object]:
        """{"text", "template", "values"}; a value that is a Message is such an object too."""
        values = {name: value.as_json() if isinstance(value, Message) else value for name, value in self.values.items()}
        return {"text": str(self), "template": self.template, "values": values}


NOTHING = Message("", {})
"""No text."""


def msg(template: str, /, **values: object) -> Message:
    """A sentence from a literal template. Values are shown by str(), errors by message_of()."""
    return Message(template, {name: _shown(value) for name, value in values.items()})


def as_message(text: str) -> Message:
    """A foreign text as a Message that is not translated; a Message is returned unchanged."""
    return text if isinstance(text, Message) else Message("{text}", {"text": _whole(text)})


def quoted(text: str) -> Message:
    """Words of Python or the system ("Permission denied"), whose text is the template if assets/messages has it."""
    return Message(text, {}) if not PLACE.search(text) else as_message(text)


def system_reason(error: OSError) -> Message:
    """The system's reason for an error: "Permission denied"."""
    return quoted(error.strerror or (os.strerror(error.errno) if error.errno else type(error).__name__))


def message_of(error: BaseException) -> Message:
    """An error's message."""
    text = getattr(error, "message", None) or (error.args[0] if error.args else None)
    if isinstance(text, Message):
        return text
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        values = {"number": error.errno, "said": system_reason(error)}
        if error.filename is None:
            return msg("[Errno {number}] {said}", **values)
        return msg("[Errno {number}] {said}: {path}", **values, path=repr(error.filename))
    if isinstance(error, json.JSONDecodeError):
        place = {"line": error.lineno, "column": error.colno, "at": error.pos}
        return msg("{said}: line {line} column {column} (char {at})", said=quoted(error.msg), **place)
    return as_message(str(error))


def join_messages(separator: str, parts: Iterable[str]) -> Message:
    """The parts joined by a separator, like str.join(). A separator such as ", " is translated too."""
    values = {
        f"part{number}": part if isinstance(part, Message) else _whole(part) for number, part in enumerate(parts, 1)
    }
    return Message(separator.join(f"{{{name}}}" for name in values), values)


def parts(text: str) -> list[str]:
    """The parts that + and join_messages() combined, without separators; any other text is a single part."""
    if not (isinstance(text, Message) and text.values and all(name.startswith("part") for name in text.values)):
        return [text]
    return [part for value in text.values.values() for part in parts(value) if part.strip()]


def without_full_stop(text: str) -> Message:
    """The sentence without its full stop, for use inside another one."""
    if not isinstance(text, Message) or text.template == "{text}":
        return as_message(str(text).removesuffix("."))
    return Message(text.template.removesuffix("."), text.values)


def from_json(value: Any) -> Message:
    """The inverse of as_json(). Raises ValueError for anything else."""
    return _read(value, _DEEPEST)


def carrying(record: Mapping[str, Any]) -> dict[str, object]:
    """A JSON object with the templates and values of all its Messages added under "said"."""
    found = {str(message): message.as_json() for message in _messages(record)}
    return {**record, SAID: list(found.values())} if found else dict(record)


def carried(record: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of carrying(): texts that were Messages are Messages again. Without "said" the object is unchanged."""
    rest = dict(record)
    found = {}
    for one in stored if isinstance(stored := rest.pop(SAID, None), list) else ():
        try:
            message = from_json(one)
        except ValueError:
            continue
        found[str(message)] = message
    return {key: _with(value, found) for key, value in rest.items()} if found else rest


def _is_punctuation(text: str) -> bool:
    return not isinstance(text, Message) and not any(letter.isalnum() or letter in "{}" for letter in text)


def _shown(value: object) -> str:
    if isinstance(value, Message):
        return value
    return message_of(value) if isinstance(value, BaseException) else _whole(str(value))


def _whole(text: str) -> str:
    """Without the halves of surrogate pairs that a file's name may hold: no terminal and no JSON could show them."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


def _read(value: Any, deepest: int) -> Message:
    if not (isinstance(value, Mapping) and deepest):
        raise ValueError("no message")
    template, values = value.get("template"), value.get("values")
    if not (isinstance(template, str) and isinstance(values, Mapping)):
        raise ValueError("no message")
    read = {str(name): one if isinstance(one, str) else _read(one, deepest - 1) for name, one in values.items()}
    if not set(PLACE.findall(template)) <= set(read):
        raise ValueError("a place of the template has no value")
    return Message(template, read)


def _messages(value: object) -> Iterator[Message]:
    if isinstance(value, Message):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _messages(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _messages(one)


def _with(value: Any, found: Mapping[str, Message]) -> Any:
    if isinstance(value, str):
        return found.get(value, value)
    if isinstance(value, Mapping):
        return {key: _with(one, found) for key, one in value.items()}
    return [_with(one, found) for one in value] if isinstance(value, list) else value


Progress = Callable[[str, float | None], None]
"""Called with the current activity and the completed fraction from 0 to 1 (None: unknown)."""


def silent(what: str, done: float | None) -> None:
    """Progress that is not shown."""
