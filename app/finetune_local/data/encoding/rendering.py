"""The guarded child for chat templates (system/untrusted/guarded.py): compile a template, render chats, find the answers.

A setup is JSON: the template's text and its variables. A request's "do" is one of

    facts    ->  knows_system, knows_tool, after_answer (None if the template refuses an answer after a question)
    text     messages, generation_prompt                         ->  text
    spans    messages, generation_prompt, stops                  ->  text, spans
    many     chats, stops                                        ->  found: for each chat the result of "spans"
    chat     chat, generation_prompt, tools, day                 ->  text of a chat as transformers renders it; `day` replaces today

A reply has these keys, or "refused": the reason, a sentence without its full stop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import jinja2

from finetune_local.data.conversation import Message, RowRejected
from finetune_local.data.encoding import template_engine
from finetune_local.data.encoding.chat_template import ChatTemplate, TemplateFacts
from finetune_local.system.messages import as_message, message_of, msg
from finetune_local.system.untrusted.guarded_child import line_of
from finetune_local.system.untrusted.text import parse_json_object


class Prepared:
    """A template in the child; `wrong` is the reason why it cannot be used at all."""

    def __init__(self, text: str, variables: Mapping[str, Any]) -> None:
        self.variables = variables
        self.wrong = as_message("")
        self._template: jinja2.Template | None = None
        self._chat: ChatTemplate | None = None
        try:
            self._template = template_engine.compiled(text)
        except MemoryError:
            raise
        except jinja2.TemplateSyntaxError as error:
            self.wrong = msg(
                "the model's chat template cannot be read (line {line}: {error})",
                line=error.lineno,
                error=line_of(error),
            )
        except Exception as error:  # noqa: BLE001 - a foreign program
            self.wrong = msg("the model's chat template cannot be read ({error})", error=_kind(error))

    @property
    def chat(self) -> ChatTemplate:
        """The template with missing roles bridged; created on first use, since it runs the template to see what it supports."""
        if self._chat is None:
            self._chat = ChatTemplate(self._messages)
        return self._chat

    def values(
        self,
        chat: template_engine.Chat,
        generation_prompt: bool,
        more: Mapping[str, Any],
        tools: Sequence[Any] | None = None,
    ) -> str:
        """The rendered text. Raises RowRejected if the template does anything but render, and MemoryError."""
        if self._template is None:
            raise RowRejected(self.wrong)
        try:
            return template_engine.render(self._template, chat, generation_prompt, {**self.variables, **more}, tools)
        except MemoryError:
            raise
        except jinja2.TemplateError as error:  # raise_exception() of the template itself, most often
            raise RowRejected(
                msg("the model's chat template rejects it: {line_of}", line_of=line_of(error) or _kind(error))
            ) from None
        except Exception as error:  # noqa: BLE001 - a foreign program
            raise RowRejected(msg("the model's chat template fails with {error}", error=_kind(error))) from None

    def _messages(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        return self.values([{"role": m.role, "content": m.content} for m in messages], generation_prompt, {})


def prepare(setup: str) -> Prepared:
    """Compile the template of a setup."""
    values = parse_json_object(setup)
    return Prepared(values["template"], values["variables"])


def answer(prepared: Prepared, request: dict[str, Any]) -> dict[str, object]:
    """See the table above."""
    try:
        return _ANSWERS[request["do"]](prepared, request)
    except RowRejected as error:
        return {"refused": message_of(error)}


def _facts(prepared: Prepared, _: dict[str, Any]) -> dict[str, object]:
    chat = prepared.chat
    try:
        after = chat.after_answer()
    except RowRejected:
        after = None
    return asdict(TemplateFacts(chat.knows_system, chat.knows_tool, after))


def _text(prepared: Prepared, request: dict[str, Any]) -> dict[str, object]:
    return {"text": prepared.chat.render(_given(request["messages"]), request["generation_prompt"])}


def _spans(prepared: Prepared, request: dict[str, Any]) -> dict[str, object]:
    prepared.chat.stops = request["stops"]
    text, spans = prepared.chat.spans(_given(request["messages"]), request["generation_prompt"])
    return {"text": text, "spans": [[s.message, s.start, s.end, s.closed] for s in spans]}


def _many(prepared: Prepared, request: dict[str, Any]) -> dict[str, object]:
    rest = {"do": "spans", "stops": request["stops"], "generation_prompt": False}
    return {"found": [answer(prepared, {**rest, "messages": messages}) for messages in request["chats"]]}


def _chat(prepared: Prepared, request: dict[str, Any]) -> dict[str, object]:
    day = request["day"]
    more = dict(request.get("variables") or {})
    if day is not None:
        more["strftime_now"] = lambda _: day
    return {"text": prepared.values(request["chat"], request["generation_prompt"], more, request["tools"])}


def _given(messages: Sequence[Sequence[Any]]) -> list[Message]:
    return [Message(role, content) for role, content in messages]


def _kind(error: Exception) -> str:
    line = line_of(error)
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


_ANSWERS = {"facts": _facts, "text": _text, "spans": _spans, "many": _many, "chat": _chat}
