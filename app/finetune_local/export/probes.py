"""The prompts that the gate asks: from the adapter's own validation rows where its run is at hand, else built in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_local.data.conversation import Conversation, Message

if TYPE_CHECKING:
    from finetune_local.data.tokenizer import Tokenizer

LONGEST = 512  # tokens of a prompt
_QUESTIONS = (
    "What is the capital of France?",
    "用一句话介绍一下你自己。",
    "Write a short poem about the sea.\n\nUse simple words.",
    "计算：12 + 30 = ？ Answer in English, please. 🙂",
)


@dataclass(frozen=True)
class Probe:
    """One prompt: messages for the chat template, or a plain text; and its token ids as the app makes them."""

    messages: tuple[Message, ...]
    text: str | None
    ids: tuple[int, ...]

    @property
    def title(self) -> str:
        """Its end, short, for messages."""
        text = self.text if self.text is not None else self.messages[-1].content
        return text.strip().replace("\n", " ")[-60:]

    def asked(self) -> str | list[dict[str, str]]:
        """As llama.cpp is given it."""
        if self.text is not None:
            return self.text
        return [{"role": message.role, "content": message.content} for message in self.messages]


def probes(tokenizer: Tokenizer, adapter: Path | None, context: int, count: int = 4) -> list[Probe]:
    """At least one and at most `count` prompts, none longer than fits."""
    found: list[Probe] = []
    for messages, text in (*_of_run(adapter, 4 * count), *_built_in()):
        if text is None and tokenizer.template is None:
            text = messages[-1].content
        ids = tokenizer.ids(text, special=True) if text is not None else tokenizer.prompt_ids(messages)
        if ids and len(ids) <= min(LONGEST, context // 2) and len(found) < count:
            found.append(Probe(() if text is not None else tuple(messages), text, tuple(ids)))
    return found


def _built_in() -> Iterator[tuple[Sequence[Message], None]]:
    for question in _QUESTIONS:
        yield [Message("user", question)], None


def _of_run(adapter: Path | None, limit: int) -> Iterator[tuple[Sequence[Message], str | None]]:
    """What comes before the first answer of each validation row of the run that made an adapter."""
    if adapter is None or not (adapter.parent / "data" / "data.json").is_file():
        return
    from finetune_local.data.prepare import conversations

    raw = _is_raw(adapter.parent / "run.json")
    for row in conversations(adapter.parent / "data", split="validation", limit=limit):
        messages = _prompt(row)
        if row.text is not None:
            yield [], row.text[:200]
        elif messages and raw:
            yield [], "".join(message.content for message in messages)
        elif messages:
            yield messages, None


def _prompt(row: Conversation) -> list[Message]:
    """The messages before the first answer, which end with a question."""
    first = next((i for i, message in enumerate(row.messages) if message.role == "assistant"), len(row.messages))
    return list(row.messages[:first])


def _is_raw(spec: Path) -> bool:
    """Whether the run was trained on texts as they are, without the chat template."""
    if not spec.is_file():
        return False
    return bool(json.loads(spec.read_text("utf-8")).get("data", {}).get("template") == "raw")
