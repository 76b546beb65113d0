"""Plain documents: {"text": "..."}, and .txt files. Every token is supervised; there are no turns."""

from __future__ import annotations

from finetune_local.data.conversation import Conversation, Source
from finetune_local.data.formats import Row
from finetune_local.data.turns import text_of
from finetune_local.spec.objectives import ExampleKind
from finetune_local.system.messages import msg


class Text:
    """A true "continues" says that the text continues in the next row, like the parts of a long .txt file."""

    key = "text"
    kind: ExampleKind = "text"
    title = msg("Plain text")
    example = '{"text"}'
    order = 20
    keys = frozenset({"text", "continues"})

    def recognises(self, row: Row) -> bool:
        """Rows with "text"."""
        return "text" in row

    def read(self, row: Row, source: Source) -> Conversation:
        """Read one row."""
        return Conversation((), source, text_of(row.get("text"), "'text'"), ends=row.get("continues") is not True)


FORMAT = Text()
