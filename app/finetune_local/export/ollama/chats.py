"""The conversations on which Ollama's rendering is compared with the model's own template, and what a difference in each would show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from finetune_local.system.messages import msg

Chat = Sequence[Mapping[str, Any]]

DAYS = (date(2021, 3, 4), date(2033, 11, 25))
"""Two days on which a conversation must be rendered equally, since a TEMPLATE has no access to the date."""

TOOLS: Sequence[Mapping[str, Any]] = (
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Look a word up.",
            "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
        },
    },
)


@dataclass(frozen=True)
class Probe:
    """A conversation. `shows`: what the model's template does if the two renderings differ, as the end of a sentence."""

    shows: str
    chat: Chat
    tools: Sequence[Mapping[str, Any]] = ()


def _turn(role: str, content: str, **more: Any) -> dict[str, object]:
    return {"role": role, "content": content, **more}


def _ordinary() -> list[Probe]:
    said = [
        _turn("user", "What is {{ this }}?\n\nTwo lines, please."),
        _turn("assistant", 'A "quoted" word, 和中文。'),
        _turn("user", "再问一次：1 + 1 = ?"),
        _turn("assistant", "2"),
        _turn("user", "Thanks <b>!</b> {% raw %} {{ .System }}"),
    ]
    rules = _turn("system", "You are terse.\nAnswer in one line.")
    shows = msg("it writes some turns otherwise than others")
    return [
        probe
        for n in (1, 3, 5)
        for probe in (Probe(shows, said[:n]), Probe(msg("it puts the system text elsewhere"), [rules, *said[:n]]))
    ]


_USER, _ANSWER, _AGAIN = _turn("user", "a"), _turn("assistant", "b"), _turn("user", "c")
_CALL = [{"type": "function", "id": "call12345", "function": {"name": "look_up", "arguments": {"word": "数"}}}]

PROBES: Sequence[Probe] = (
    *_ordinary(),
    Probe(msg("it cuts white space off the ends of a text"), [_turn("user", " at both ends \n")]),
    Probe(msg("it cuts white space off the ends of a text"), [_USER, _turn("assistant", "\n b \n"), _AGAIN]),
    Probe(msg("it cuts white space off the ends of a text"), [_turn("system", " S\n"), _USER]),
    Probe(msg("it treats an empty text otherwise than others"), [_turn("system", ""), _USER]),
    Probe(msg("it treats an empty text otherwise than others"), [_turn("user", "")]),
    Probe(msg("it treats a later system text otherwise than the first"), [_USER, _ANSWER, _turn("system", "later"), _AGAIN]),
    Probe(
        msg("it leaves the thoughts of earlier answers out"),
        [_USER, _turn("assistant", "<think>\nhm\n</think>\n\nb"), _AGAIN],
    ),
    Probe(
        msg("it writes the thoughts of earlier answers"),
        [_USER, _turn("assistant", "b", reasoning_content="hm", thinking="hm"), _AGAIN],
    ),
    Probe(msg("it ends or opens an answer that was begun otherwise"), [_USER, _ANSWER]),
    Probe(msg("it writes the tools that can be called"), [_USER], TOOLS),
    Probe(msg("it writes the tools that can be called"), [_turn("system", "S"), _USER], TOOLS),
    Probe(msg("it writes calls of tools"), [_USER, _turn("assistant", "", tool_calls=_CALL), _turn("tool", "42", name="look_up")], TOOLS),
    Probe(
        msg("it writes calls of tools"),
        [_USER, _turn("assistant", "", tool_calls=_CALL), _turn("tool", "42"), _turn("assistant", "b"), _AGAIN],
    ),
    Probe(msg("it writes results of tools in a way of its own"), [_USER, _ANSWER, _turn("tool", "42"), _turn("tool", "43")]),
)  # fmt: skip
