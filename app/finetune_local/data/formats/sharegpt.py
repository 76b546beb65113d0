"""ShareGPT: {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}."""

from __future__ import annotations

from finetune_local.data.conversation import Conversation, Source
from finetune_local.data.formats import Row
from finetune_local.data.turns import turns, with_system
from finetune_local.spec.objectives import ExampleKind
from finetune_local.system.messages import msg


class ShareGPT:
    """Also with function_call turns (supervised like answers) and observation turns (not supervised), "system" and "tools"."""

    key = "sharegpt"
    kind: ExampleKind = "conversation"
    title = msg("ShareGPT conversations")
    example = '{"conversations": [{"from", "value"}]}'
    order = 11
    keys = frozenset({"conversations", "conversation", "system", "tools"})

    def recognises(self, row: Row) -> bool:
        """Rows with "conversations", or "conversation" as a list."""
        return "conversations" in row or isinstance(row.get("conversation"), list)

    def read(self, row: Row, source: Source) -> Conversation:
        """Read one row."""
        key = "conversations" if "conversations" in row else "conversation"
        return Conversation(with_system(turns(row.get(key), key), row), source)


FORMAT = ShareGPT()
