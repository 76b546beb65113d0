"""What an export is compared with: how the app reads texts and chats, where it stops, and the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_local.adapters.companions import prompt_setup
from finetune_local.data.conversation import RowRejected
from finetune_local.export.engines.chats import CHATS, TEXTS, Chat
from finetune_local.export.engines.process import Rendering
from finetune_local.export.verification.probes import Probe, probes
from finetune_local.models.folder import ModelFolder

if TYPE_CHECKING:
    from finetune_local.data.tokenizers.tokenizer import Tokenizer


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
    asked = prompt_setup(model.path, adapter)
    tokenizer = asked.tokenizer
    found = probes(tokenizer, adapter, model.context_length, asked.raw)
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
    return Expected(tokenizer, asked.template, found, chats, texts, sorted(asked.stop_ids), plain)


def _as_is(tokenizer: Tokenizer, chat: Chat) -> str | None:
    try:
        return tokenizer.render_as_is(chat.messages, chat.generation_prompt)
    except RowRejected:
        return None
