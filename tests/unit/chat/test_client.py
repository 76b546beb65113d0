"""Requests under way, as the window follows them: they grow, are stopped, fail, and outlive the page that began them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from finetune_local.chat.client import ChatClient
from finetune_local.system.errors import OutOfMemory, SpecError, WorkerDied

FACTS = {"model": "m", "memory_bytes": 1}


class FakeRpcCall:
    def __init__(self, client: FakeRpcClient) -> None:
        self.client = client

    def __next__(self) -> dict[str, Any]:
        event = self.client.events.get(timeout=5)
        if isinstance(event, Exception):
            raise event
        if "result" in event:
            raise StopIteration(event["result"])
        return event  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def cancel(self) -> None:
        self.client.stops += 1
        self.client.events.put({"result": {"opened": FACTS}})


class FakeRpcClient:
    """Tells what the test puts into it."""

    def __init__(self) -> None:
        self.events: queue.Queue[Any] = queue.Queue()
        self.stops, self.closed, self.pid = 0, 0, 77
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.hold = threading.Event()
        self.hold.set()

    def stream(self, procedure: str, **values: Any) -> FakeRpcCall:
        self.hold.wait(5)
        self.calls.append((procedure, values))
        return FakeRpcCall(self)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def client() -> FakeRpcClient:
    return FakeRpcClient()


@pytest.fixture
def chat(client: FakeRpcClient) -> ChatClient:
    return ChatClient(client)  # type: ignore[arg-type]


def until_ended(chat: ChatClient, conversation: str) -> Any:
    call = chat.of(conversation)
    assert call is not None
    version = -1
    while not call.ended:
        version = call.wait(version, 5)
    return call


def test_an_answer_grows_under_the_names_it_was_asked_by(client: FakeRpcClient, chat: ChatClient) -> None:
    path = "/adapters/诗人"
    chat.begin("answer", "c1", {"conversation": "c1"}, [None, path])
    for event in (
        {"event": "progress", "text": "loading the model", "done": 0.5},
        {"event": "opened", "opened": FACTS, "names": {path: "诗人"}},
        {"event": "begin", "adapter": "诗人", "ms": 3.0},
        {"event": "text", "adapter": "诗人", "piece": "ab", "tokens": 2, "seconds": 0.5},
        {"event": "text", "adapter": "诗人", "piece": "c", "tokens": 3, "seconds": 1.0},
        {"event": "turn", "turn": {"adapter": "诗人", "text": "abc", "tokens": 3}},
        {"result": {"opened": FACTS, "turns": []}},
    ):
        client.events.put(event)
    call = until_ended(chat, "c1")
    assert (call.error, call.doing, call.done) == (None, "loading the model", 0.5)
    assert list(call.answers) == [None, path]
    poet = call.answers[path]
    assert (poet.text, poet.tokens, poet.seconds, poet.swap_ms) == ("abc", 3, 1.0, 3.0)
    assert poet.turn is not None and not call.answers[None].begun
    assert chat.opened == FACTS
    client.pid = 78
    assert chat.opened is None, "another process holds nothing of it"


def test_one_conversation_is_answered_once_at_a_time(client: FakeRpcClient, chat: ChatClient) -> None:
    chat.begin("answer", "c1", {})
    chat.begin("answer", "c2", {})
    with pytest.raises(SpecError, match="being answered"):
        chat.begin("answer", "c1", {})
    assert {call.conversation for call in chat.active()} == {"c1", "c2"}
    chat.forget("c1")
    assert chat.of("c1") is not None, "what is under way is not forgotten"
    for _ in range(2):
        client.events.put({"result": {"opened": FACTS}})
    until_ended(chat, "c1")
    until_ended(chat, "c2")
    chat.forget("c1")
    assert chat.of("c1") is None and chat.active() == []


def test_a_failure_stays_to_be_shown_until_the_next_try(client: FakeRpcClient, chat: ChatClient) -> None:
    for error in (WorkerDied("it ended"), OutOfMemory("no space")):
        client.events.put(error)
        chat.begin("answer", "c1", {})
        assert until_ended(chat, "c1").error is error
    client.events.put({"result": {"opened": FACTS}})
    chat.begin("answer", "c1", {})
    assert until_ended(chat, "c1").error is None


def test_a_stop_before_the_worker_was_asked_counts(client: FakeRpcClient, chat: ChatClient) -> None:
    client.hold.clear()
    call = chat.begin("answer", "c1", {})
    call.stop()
    client.hold.set()
    assert until_ended(chat, "c1").error is None
    assert client.stops >= 1


def test_unloading_stops_what_is_under_way_and_ends_the_process(client: FakeRpcClient, chat: ChatClient) -> None:
    chat.begin("answer", "c1", {})
    while not client.calls:
        threading.Event().wait(0.01)
    chat.unload()
    call = chat.of("c1")
    assert call is not None and call.ended and call.stopped
    assert (client.stops, client.closed, chat.opened) == (1, 1, None)


def test_a_model_that_is_only_loading_is_left_off_by_ending_its_process(
    client: FakeRpcClient, chat: ChatClient
) -> None:
    call = chat.begin("answer", "c1", {})
    client.events.put({"event": "progress", "text": "loading the model", "done": None})
    while call.phase != "loading":
        call.wait(call.version, 5)
    client.close = lambda: client.events.put(WorkerDied("it ended without a word"))  # type: ignore[method-assign]
    chat.stop(call)
    assert until_ended(chat, "c1").error is None, "who stopped it knows why it ended"
