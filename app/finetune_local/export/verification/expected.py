"""What an export is compared with: how the app reads texts and chats, where it stops, and the prompts.

The prompts come from the validation rows of the adapter's run, if that is on this machine; else they are built in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_local.adapters.companions import prompt_setup
from finetune_local.data.conversation import RowRejected
from finetune_local.export.engines.chats import CHATS, TEXTS, Chat
from finetune_local.export.engines.process import Rendering
from finetune_local.models.folder import ModelFolder

if TYPE_CHECKING:
    from finetune_local.data.tokenizers.tokenizer import Tokenizer


from collections.abc import Iterator
from typing import TYPE_CHECKING

from finetune_local.data.conversation import Conversation, Message
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import msg

if TYPE_CHECKING:
    from finetune_local.data.tokenizers.tokenizer import Tokenizer


LONGEST = 512  # tokens of a prompt
_QUESTIONS = (
    "What is the capital of France?",
    "用一句话介绍一下你自己。",
    "Write a short poem about the sea.\n\nUse simple words.",
    "计算：12 + 30 = ？ Answer in English, please. 🙂",
)


@dataclass(frozen=True)
class Probe:
    """One prompt: messages for the chat template or a plain text, with its token ids in the app."""

    messages: tuple[Message, ...]
    text: str | None
    ids: tuple[int, ...]

    @property
    def title(self) -> str:
        """The end of the prompt, shortened for messages."""
        text = self.text if self.text is not None else self.messages[-1].content
        return text.strip().replace("\n", " ")[-60:]

    def for_llama_cpp(self) -> str | list[dict[str, str]]:
        """The prompt in the form that llama.cpp accepts: a text, or messages."""
        if self.text is not None:
            return self.text
        return [{"role": message.role, "content": message.content} for message in self.messages]


def probes(tokenizer: Tokenizer, adapter: Path | None, context: int, raw: bool, count: int = 4) -> list[Probe]:
    """At most `count` prompts that fit the context; plain texts if `raw`, else rendered by the chat template."""
    from finetune_local.data.encoding.encode import prompt_ids

    found: list[Probe] = []
    for messages, plain in (*_of_run(adapter, 4 * count), *_built_in()):
        text = plain if plain is not None else "".join(m.content for m in messages) if raw else None
        try:
            if text is not None:
                ids = prompt_ids([Message("user", text)], tokenizer, "raw")
            else:
                ids = prompt_ids(messages, tokenizer, "chat")
        except RowRejected:  # a template that requires, say, a system message
            continue
        if ids and len(ids) <= min(LONGEST, context // 2) and len(found) < count:
            found.append(Probe(() if text is not None else tuple(messages), text, tuple(ids)))
    if not found:
        raise ModelError(
            msg("the chat template rejects every verification prompt. Export with --no-gate to skip verification.")
        )
    return found


def _built_in() -> Iterator[tuple[Sequence[Message], None]]:
    for question in _QUESTIONS:
        yield [Message("user", question)], None


def _of_run(adapter: Path | None, limit: int) -> Iterator[tuple[Sequence[Message], str | None]]:
    """The messages before the first answer of each validation row of the adapter's run."""
    if adapter is None or not (adapter.parent / "data" / "data.json").is_file():
        return
    from finetune_local.data.dataset.prepare import conversations

    for row in conversations(adapter.parent / "data", split="validation", limit=limit):
        messages = _prompt(row)
        if row.text is not None:
            yield [], row.text[:200]
        elif messages:
            yield messages, None


def _prompt(row: Conversation) -> list[Message]:
    """The messages before the first answer; the last one is a question."""
    first = next((i for i, message in enumerate(row.messages) if message.role == "assistant"), len(row.messages))
    return list(row.messages[:first])


@dataclass(frozen=True)
class Expected:
    """How the app prompts base + adapter.

    template: renders chats; None if prompts are plain texts. plain_token: a token that does not end an answer.
    """

    tokenizer: Tokenizer
    template: str | None
    probes: Sequence[Probe]
    chats: Sequence[Chat]
    texts: Sequence[tuple[str, bool]]
    stop_ids: Sequence[int]
    plain_token: int

    def rendering(self, chat: Chat, **variables: bool) -> Rendering:
        """A chat rendered by the template (with today's date); empty if the template refuses it or there is none."""
        if self.template is None:
            return Rendering()
        try:
            text = self.tokenizer.render_as_is(
                chat.messages, chat.generation_prompt, chat.tools, self.template, **variables
            )
        except RowRejected:
            return Rendering()
        return Rendering(text, tuple(self.tokenizer.ids(text)))

    @property
    def composes(self) -> bool:
        """Whether the tokenizer normalises letters with combining accents to composed ones."""
        return self.tokenizer.ids("cafe\u0301") == self.tokenizer.ids("caf\u00e9")

    def text_ids(self, text: str, special: bool) -> tuple[int, ...]:
        """A text's ids."""
        return tuple(self.tokenizer.ids(text, special))


def expected(model: ModelFolder, adapter: Path | None) -> Expected:
    """The expectations for a base with an adapter. Raises ModelError, AdapterError."""
    setup = prompt_setup(model.path, adapter)
    tokenizer = setup.tokenizer
    found = probes(tokenizer, adapter, model.context_length, setup.raw)
    chats, texts = list(CHATS), [(text, False) for text in TEXTS]
    for probe in found:
        if probe.text is not None:
            texts.append((probe.text, True))
            continue
        turns = [{"role": message.role, "content": message.content} for message in probe.messages]
        chat = Chat(probe.title, turns)
        if _as_is(tokenizer, chat) == (bridged := tokenizer.render(probe.messages, True)):
            chats.append(chat)
        else:  # if the template has no system turn, the app puts the system text into the user's turn; receivers get the result
            texts.append((bridged, False))
    plain = tokenizer.ids("a")[-1]
    return Expected(tokenizer, setup.template, found, chats, texts, sorted(setup.stop_ids), plain)


def _as_is(tokenizer: Tokenizer, chat: Chat) -> str | None:
    try:
        return tokenizer.render_as_is(chat.messages, chat.generation_prompt)
    except RowRejected:
        return None
