"""A chat template run in a guarded child: if it hangs, exhausts memory or raises, the result is an error sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, cast

from finetune_local.data.conversation import Message, RowRejected
from finetune_local.data.encoding.chat_template import Rendered, Span, TemplateFacts
from finetune_local.system.messages import as_message, message_of, msg
from finetune_local.system.untrusted.guarded import Guarded, GuardedError, Limits, Raised, Setup

SECONDS, SECONDS_PER_MESSAGE, MOST_SECONDS = 2.0, 0.02, 60.0
"""CPU seconds per chat. Real templates take a millisecond, but a chat is rendered once per answer, so 700 messages take two
seconds.
"""

MOST_BYTES = 2**30

_PATIENCE = 3
"""After this many chats that timed out, no more are tried: a file may have a million."""

_MOST_AHEAD = 500

_child = Guarded("finetune_local.data.encoding.rendering", Limits(SECONDS, MOST_BYTES))
"""Shared by all templates of this process."""


class GuardedTemplate:
    """The template `text` with its variables, such as bos_token. `stops` are the texts of the end-of-turn tokens."""

    def __init__(self, text: str, variables: Mapping[str, Any]) -> None:
        """Does not run the template yet."""
        self._setup = Setup(json.dumps({"template": text, "variables": dict(variables)}))
        self.stops: Sequence[str] = ()
        self._failed, self._why = 0, ""
        self._facts: TemplateFacts | None = None
        self._rendered: dict[tuple[Message, ...], Rendered] = {}

    def render(self, messages: Sequence[Message], generation_prompt: bool = False) -> str:
        """The rendered chat. Raises RowRejected if the template refuses the messages or fails."""
        request = {"do": "text", "messages": _plain(messages), "generation_prompt": generation_prompt}
        return str(self._request(request, len(messages))["text"])

    def render_chat(
        self,
        chat: Sequence[Mapping[str, Any]],
        generation_prompt: bool = False,
        tools: Sequence[Any] | None = None,
        day: date | None = None,
        variables: Mapping[str, bool] | None = None,
    ) -> str:
        """The chat as transformers renders it, with any keys in its messages and nothing bridged. `day` replaces today, like 2021-03-04;
        `variables` are passed to the template too. Raises RowRejected.
        """
        request = {
            "do": "chat",
            "chat": [dict(m) for m in chat],
            "generation_prompt": generation_prompt,
            "tools": tools,
        }
        request["variables"] = dict(variables or {})
        return str(self._request({**request, "day": day.isoformat() if day else None}, len(chat))["text"])

    def spans(self, messages: Sequence[Message], generation_prompt: bool = False) -> tuple[str, list[Span]]:
        """The rendered chat and the span of every assistant turn; see ChatTemplate.spans. Raises RowRejected."""
        found = None if generation_prompt else self._rendered.pop(tuple(messages), None)
        if found is None:
            request = {"do": "spans", "messages": _plain(messages), "generation_prompt": generation_prompt}
            found = _rendered(self._request({**request, "stops": list(self.stops)}, len(messages)))
        if found.refused:
            raise RowRejected(as_message(found.refused))
        return found.text, list(found.spans)

    def ahead(self, chats: Sequence[Sequence[Message]]) -> None:
        """Compute the spans of chats that will be needed soon. If that fails, each is tried individually later."""
        if self._failed or not chats:
            return
        request = {"do": "many", "chats": [_plain(m) for m in chats], "stops": list(self.stops)}
        try:
            found = self._request(request, sum(map(len, chats)))
        except RowRejected:
            return
        if len(self._rendered) > _MOST_AHEAD:  # of rows that were given up before
            self._rendered.clear()
        self._rendered.update(zip(map(tuple, chats), map(_rendered, found["found"]), strict=True))

    def after_answer(self) -> str | None:
        """The text the template puts after an answer; None if it refuses or fails."""
        return self._facts_of_template().after_answer

    @property
    def knows_system(self) -> bool:
        """Whether the template shows system texts."""
        return self._facts_of_template().knows_system

    @property
    def knows_tool(self) -> bool:
        """Whether the template shows tool results."""
        return self._facts_of_template().knows_tool

    def _facts_of_template(self) -> TemplateFacts:
        if self._facts is None:
            try:
                self._facts = _template_facts(self._request({"do": "facts"}))
            except RowRejected:
                # A template that does not end with a chat of two words is not tried again.
                self._failed = max(self._failed, _PATIENCE)
                self._facts = TemplateFacts()
        return self._facts

    def _request(self, request: Mapping[str, Any], messages: int = 0) -> Mapping[str, Any]:
        """The child's reply; its keys are listed in rendering.py. Raises RowRejected."""
        if self._failed < _PATIENCE:
            seconds = min(_child.limits.seconds + messages * SECONDS_PER_MESSAGE, MOST_SECONDS)
            try:
                reply = _child.ask(request, self._setup, answering=seconds)
            except GuardedError as error:
                self._failed, self._why = self._failed + (not isinstance(error, Raised)), message_of(error)
            else:
                if "refused" in reply:
                    raise RowRejected(as_message(reply["refused"]))
                return cast(Mapping[str, Any], reply)
        raise RowRejected(
            msg(
                "the model's chat template cannot be used with it: {error}. Use another template, or --template raw.",
                error=self._why,
            )
        )


def _plain(messages: Sequence[Message]) -> list[list[str]]:
    return [[m.role, m.content] for m in messages]


def _template_facts(reply: Mapping[str, Any]) -> TemplateFacts:
    """The child's reply to "facts"; unknown keys are ignored. Raises RowRejected: the template may have tampered with the child."""
    system, tool, after = (reply.get(name) for name in ("knows_system", "knows_tool", "after_answer"))
    if not isinstance(system, bool) or not isinstance(tool, bool) or not isinstance(after, str | None):
        raise RowRejected(msg("the model's chat template returned an invalid reply"))
    return TemplateFacts(system, tool, after)


def _rendered(reply: Mapping[str, Any]) -> Rendered:
    """The child's reply to "spans"."""
    if "refused" in reply:
        return Rendered(refused=reply["refused"])
    return Rendered(str(reply["text"]), tuple(Span(*span) for span in reply["spans"]))
