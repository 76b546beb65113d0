"""Preference data (DPO, KTO), recognised so that it is refused with a sentence instead of learned as if all were good."""

from __future__ import annotations

from finetune_local.data.conversation import Conversation, RowRejected, Source, pair_refused
from finetune_local.data.formats import Row
from finetune_local.spec.objectives import ExampleKind
from finetune_local.system.messages import msg


class Preference:
    """{"chosen", "rejected"} beside a prompt, or {"messages", "label": true or false}."""

    key = "preference"
    kind: ExampleKind = "pair"
    title = msg("Preference data (not supported)")
    example = ""
    order = 0
    keys = frozenset(
        {"chosen", "rejected", "label", "messages", "conversations", "prompt", "completion", "system", "tools"}
    )

    def recognises(self, row: Row) -> bool:
        """Rows with a good and a bad answer, or with a verdict on the one answer."""
        if "chosen" in row and "rejected" in row:
            return True
        return isinstance(row.get("label"), bool) and any(k in row for k in ("messages", "conversations", "completion"))

    def read(self, row: Row, source: Source) -> Conversation:
        """Always raises RowRejected, with what to do."""
        if "chosen" in row:
            raise RowRejected(pair_refused())
        raise RowRejected(
            msg(
                "it is preference data (a 'label' of true or false), but fine-tuning on answers learns every answer. "
                "Keep the rows with label true and remove 'label', or use --format openai to learn all of them."
            )
        )


FORMAT = Preference()
