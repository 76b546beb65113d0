"""The chats every receiver has to render: everything templates are known to treat differently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ChatMessage = Mapping[str, Any]

_SYSTEM: ChatMessage = {"role": "system", "content": "Answer in one line."}
_TOOLS: Sequence[Mapping[str, Any]] = (
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a town.",
            "parameters": {
                "type": "object",
                "properties": {"town": {"type": "string", "description": "Its name."}},
                "required": ["town"],
            },
        },
    },
)
_CALL: Mapping[str, Any] = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "weather", "arguments": {"town": "Paris"}},
}
TEXTS: Sequence[str] = (
    "The quick brown fox, 12345 times.\n\n  Indented — “quoted”.\tTab",
    " leading and trailing spaces  ",
    "中文和 English 混排。🙂 café",
)
CUTS: Sequence[str] = (
    "Hello world",
    " leading and trailing  ",
    "two  spaces   three\tand a tab",
    "lines\nbreak\n\ntwice\r\n\r\n    indented\n",
    "def f(x):\n    return  x['a'] + 12345  # don't, we've, I'LL",
    "中文和 English 混排，日本語も。한국어",
    "emoji 🙂👩‍👩‍👧 and naïve café — “quotes”… €5.00",
    "Привет, مرحبا, שלום, ไทย",
    "A\u00a0b\u2003c ▁ <0x0A> [INST] hi [/INST] <s> </s> <|im_start|>",
    "1 12 123 1234 12345678 3.14 1e-5",
)
"""Texts that tokenizers are known to split differently."""


@dataclass(frozen=True)
class Chat:
    """Messages and tools as programs pass them to a template; `plain`: without tools and thoughts."""

    title: str
    messages: Sequence[ChatMessage]
    generation_prompt: bool = True
    tools: Sequence[Mapping[str, Any]] | None = None
    plain: bool = True


def _user(text: str) -> ChatMessage:
    return {"role": "user", "content": text}


def _assistant(text: str, **more: Any) -> ChatMessage:
    return {"role": "assistant", "content": text, **more}


CHATS: Sequence[Chat] = (
    Chat("a question", [_user("What is the capital of France?")]),
    Chat("a system text", [_SYSTEM, _user("Hi")]),
    Chat("several turns", [_SYSTEM, _user("Hi"), _assistant("Hello."), _user("And now?")]),
    # Spaces and line breaks around a text: some templates trim them.
    Chat("spaces around texts", [_user("  two  spaces\n\n中文 🙂 \n"), _assistant(" ok "), _user("\nnext")]),
    Chat("an answer at the end", [_user("Hi"), _assistant("Hello.")], generation_prompt=False),
    Chat(
        "thoughts in the text",
        [_user("Hi"), _assistant("<think>\nA greeting.\n</think>\n\nHello."), _user("Again")],
        plain=False,
    ),
    Chat(
        "thoughts beside the text",
        [_user("Hi"), _assistant("Hello.", reasoning_content="A greeting."), _user("Again")],
        plain=False,
    ),
    Chat("tools", [_SYSTEM, _user("How is the weather in Paris?")], tools=_TOOLS, plain=False),
    Chat(
        "a tool's call and result",
        [
            _user("How is the weather in Paris?"),
            _assistant("", tool_calls=[_CALL]),
            {"role": "tool", "name": "weather", "tool_call_id": "call00001", "content": "sunny"},
        ],
        tools=_TOOLS,
        plain=False,
    ),
)
