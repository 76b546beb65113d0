"""Answers that are waited for without standing still."""

from __future__ import annotations

import threading
import time
from typing import Any, cast

from finetune_local.gui.shell.lookups import Answer, Answers
from finetune_local.runtime.rpc import RpcClient
from finetune_local.system.errors import AdapterError


class FakeLookups:
    """Answers when it is let."""

    def __init__(self) -> None:
        self.go, self.asked = threading.Event(), list[dict[str, Any]]()
        self.error: Exception | None = None

    def call(self, do: str, **values: Any) -> Any:
        self.asked.append(values)
        self.go.wait(5)
        if self.error is not None:
            raise self.error
        return f"{do} {values['name']} {len(self.asked)}"


def settled(answers: Answers, **values: Any) -> Answer:
    until = time.monotonic() + 5
    while (answer := answers.ask(**values)).waiting and time.monotonic() < until:
        time.sleep(0.01)
    return answer


def test_it_is_asked_once_and_again_where_it_may_have_changed() -> None:
    client = FakeLookups()
    answers = Answers(cast(RpcClient, client), "offers")
    assert answers.ask(name="a") == answers.ask(name="a") == Answer(None, None, True)
    client.go.set()
    assert settled(answers, name="a").value == "offers a 1"
    assert answers.ask(name="a").value == "offers a 1" and len(client.asked) == 1
    client.go.clear()
    assert answers.ask(again=True, name="a") == Answer("offers a 1", None, True)  # the old one stays meanwhile
    client.go.set()
    assert settled(answers, name="a").value == "offers a 2"


def test_what_went_wrong_is_kept_for_the_page() -> None:
    client = FakeLookups()
    client.go.set()
    client.error = AdapterError("there is no adapter 'x'")
    answers = Answers(cast(RpcClient, client), "offers")
    assert isinstance(settled(answers, name="x").problem, AdapterError)
    client.error = None
    answers.ask(again=True, name="x")
    assert settled(answers, name="x").problem is None
