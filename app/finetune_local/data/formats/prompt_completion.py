"""Prompt and completion: {"prompt": "...", "completion": "..."}, also as question/answer, prompt/response, input/output."""

from __future__ import annotations

from dataclasses import replace

from finetune_local.data.conversation import Conversation, Message, RowRejected, Source
from finetune_local.data.formats import Row
from finetune_local.data.turns import text_of, turns, with_system
from finetune_local.spec.objectives import ExampleKind
from finetune_local.system.messages import msg

PROMPTS = ("prompt", "question", "query", "input")
COMPLETIONS = ("completion", "response", "answer", "output")


class PromptCompletion:
    """One prompt, one completion; either may be a list of messages. Whitespace at the boundaries is kept."""

    key = "prompt_completion"
    kind: ExampleKind = "conversation"
    title = msg("Prompt and completion")
    example = '{"prompt", "completion"}'
    order = 13
    keys = frozenset({*PROMPTS, *COMPLETIONS, "system", "tools"})

    def recognises(self, row: Row) -> bool:
        """Rows with at least one name for the prompt and one for the completion."""
        return any(k in row for k in PROMPTS) and any(k in row for k in COMPLETIONS)

    def read(self, row: Row, source: Source) -> Conversation:
        """Read one row."""
        prompt, completion = _one(row, PROMPTS), _one(row, COMPLETIONS)
        prompts = _messages(row[prompt], prompt, "user")
        # Answers within the prompt are context, not something to learn.
        before = [replace(m, train=False) if m.role == "assistant" else m for m in prompts]
        return Conversation(with_system([*before, *_messages(row[completion], completion, "assistant")], row), source)


def _one(row: Row, names: tuple[str, ...]) -> str:
    """The column to use: the first name if present, else the only one."""
    present = [name for name in names if name in row]
    if not present:
        raise RowRejected(msg("it has none of the keys {keys}.", keys=", ".join(names)))
    if len(present) > 1 and present[0] != names[0]:
        raise RowRejected(
            msg(
                "it has both '{one}' and '{other}'. Rename the one to use to '{name}'.",
                one=present[0],
                other=present[1],
                name=names[0],
            )
        )
    return present[0]


def _messages(value: object, key: str, role: str) -> list[Message]:
    if isinstance(value, list):
        return turns(value, key)
    return [Message("user" if role == "user" else "assistant", text_of(value, f"'{key}'"))]


FORMAT = PromptCompletion()
