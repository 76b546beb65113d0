"""Chat logs: one row, or one line of an exported text, per message; data/readers/chat_log.py groups them into conversations."""

from __future__ import annotations

from collections.abc import Mapping

from finetune_local.data.conversation import Conversation, RowRejected, Source
from finetune_local.data.formats import Row
from finetune_local.data.readers.chat_log import SPEAKERS, TEXTS, THREADS, TIMES
from finetune_local.data.turns import ROLE_NAMES, turns
from finetune_local.spec.objectives import ExampleKind
from finetune_local.system.errors import typed
from finetune_local.system.messages import msg

_SHOWN = 6


class ChatLog:
    """Supervises one speaker's turns; with speakers named user and assistant, the assistant's."""

    key = "chat_log"
    kind: ExampleKind = "conversation"
    title = msg("Chat log")
    example = '{"speaker", "text"} for each message'
    order = 19
    keys = frozenset({*SPEAKERS, *TEXTS, *TIMES, *THREADS, "chat_log", "several"})

    def recognises(self, row: Row) -> bool:
        """Rows that the reader has grouped from several messages."""
        return isinstance(row.get("chat_log"), list)

    def read(self, row: Row, source: Source) -> Conversation:
        """Read one conversation."""
        if not self.recognises(row):
            raise RowRejected(msg("it is not a chat message: it needs a speaker and a text ('speaker' and 'text')."))
        turns_of_row = [turn for turn in row["chat_log"] if isinstance(turn, Mapping)]  # turns() reports the others
        names = list(dict.fromkeys(str(turn.get("from", turn.get("role", ""))) for turn in turns_of_row))
        unknown = [name for name in names if name.lower() not in ROLE_NAMES]
        if unknown:
            listed = ", ".join(unknown[:_SHOWN]) + (" …" if len(unknown) > _SHOWN else "")
            raise RowRejected(
                msg(
                    "it is a chat between {names}. Choose whose messages to learn: --assistant {name}",
                    names=listed,
                    name=typed(unknown[0]),
                )
            )
        return Conversation(tuple(turns(row["chat_log"], "chat_log")), source)


FORMAT = ChatLog()
