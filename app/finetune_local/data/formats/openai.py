"""OpenAI chat: {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}."""

from __future__ import annotations

from finetune_local.data.conversation import Conversation, Source
from finetune_local.data.formats import Row
from finetune_local.data.turns import turns, with_system
from finetune_local.spec.objectives import ExampleKind
from finetune_local.system.messages import msg


class OpenAI:
    """Content is a text or a list of text parts; a weight (or loss_weight) of 0 excludes an answer from training."""

    key = "openai"
    kind: ExampleKind = "conversation"
    title = msg("OpenAI messages")
    example = '{"messages": [{"role", "content"}]}'
    order = 10
    keys = frozenset({"messages", "system", "tools"})

    def recognises(self, row: Row) -> bool:
        """Rows with "messages"."""
        return "messages" in row

    def read(self, row: Row, source: Source) -> Conversation:
        """Read one row."""
        return Conversation(with_system(turns(row.get("messages"), "messages"), row), source)


FORMAT = OpenAI()
