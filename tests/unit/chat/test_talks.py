"""Requests under way, as the window follows them: they grow, are stopped, fail, and outlive the page that began them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from finetune_local.chat.client import Talks
from finetune_local.system.errors import OutOfMemory, SpecError, WorkerDied

FACTS = {"model": "m", "memory_bytes": 1}


class FakeAsked:
    def __init__(self, service: FakeService) -> None:
        self.service = service

    def __next__(self) -> dict[str, Any]:
        event = self.service.events.get(timeout=5)
        if isinstance(event, Exception):
            raise event
        if "result" in event:
            raise StopIteration(event["result"])
        return event  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def stop(self) -> None:
        self.service.stops += 1
        self.service.events.put({"result": {"opened": FACTS}})


class FakeService:
    """Tells what the test puts into it."""

    def __init__(self) -> None:
        self.events: queue.Queue[Any] = queue.Queue()
        self.stops, self.closed, self.pid = 0, 0, 77
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.hold = threading.Event()
        self.hold.set()

    def follow(self, do: str, **values: Any) -> FakeAsked:
        self.hold.wait(5)
        self.asked.append((do, values))
        return FakeAsked(self)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def talks(service: FakeService) -> Talks:
    return Talks(service)  # type: ignore[arg-type]


def until_ended(talks: Talks, conversation: str) -> Any:
    talk = talks.of(conversation)
    assert talk is not None
    version = -1
    while not talk.ended:
        version = talk.wait(version, 5)
    return talk


def test_an_answer_grows_under_the_names_it_was_asked_by(service: FakeService, talks: Talks) -> None:
    path = "/adapters/诗人"
    talks.begin("answer", "c1", {"conversation": "c1"}, [None, path])
    for event in (
        {"event": "progress", "text": "loading the model", "done": 0.5},
        {"event": "opened", "opened": FACTS, "names": {path: "诗人"}},
        {"event": "begin", "adapter": "诗人", "ms": 3.0},
        {"event": "text", "adapter": "诗人", "piece": "ab", "tokens": 2, "seconds": 0.5},
        {"event": "text", "adapter": "诗人", "piece": "c", "tokens": 3, "seconds": 1.0},
        {"event": "turn", "turn": {"adapter": "诗人", "text": "abc", "tokens": 3}},
        {"result": {"opened": FACTS, "turns": []}},
    ):
        service.events.put(event)
    talk = until_ended(talks, "c1")
    assert (talk.error, talk.doing, talk.done) == (None, "loading the model", 0.5)
    assert list(talk.answers) == [None, path]
    poet = talk.answers[path]
    assert (poet.text, poet.tokens, poet.seconds, poet.swap_ms) == ("abc", 3, 1.0, 3.0)
    assert poet.turn is not None and not talk.answers[None].begun
    assert talks.opened == FACTS
    service.pid = 78
    assert talks.opened is None, "another process holds nothing of it"


def test_one_conversation_is_answered_once_at_a_time(service: FakeService, talks: Talks) -> None:
    talks.begin("answer", "c1", {})
    talks.begin("answer", "c2", {})
    with pytest.raises(SpecError, match="being answered"):
        talks.begin("answer", "c1", {})
    assert {talk.conversation for talk in talks.under_way()} == {"c1", "c2"}
    talks.forget("c1")
    assert talks.of("c1") is not None, "what is under way is not forgotten"
    for _ in range(2):
        service.events.put({"result": {"opened": FACTS}})
    until_ended(talks, "c1")
    until_ended(talks, "c2")
    talks.forget("c1")
    assert talks.of("c1") is None and talks.under_way() == []


def test_a_failure_stays_to_be_shown_until_the_next_try(service: FakeService, talks: Talks) -> None:
    for error in (WorkerDied("it ended"), OutOfMemory("no room")):
        service.events.put(error)
        talks.begin("answer", "c1", {})
        assert until_ended(talks, "c1").error is error
    service.events.put({"result": {"opened": FACTS}})
    talks.begin("answer", "c1", {})
    assert until_ended(talks, "c1").error is None


def test_a_stop_before_the_worker_was_asked_counts(service: FakeService, talks: Talks) -> None:
    service.hold.clear()
    talk = talks.begin("answer", "c1", {})
    talk.stop()
    service.hold.set()
    assert until_ended(talks, "c1").error is None
    assert service.stops >= 1


def test_unloading_stops_what_is_under_way_and_ends_the_process(service: FakeService, talks: Talks) -> None:
    talks.begin("answer", "c1", {})
    while not service.asked:
        threading.Event().wait(0.01)
    talks.unload()
    talk = talks.of("c1")
    assert talk is not None and talk.ended and talk.stopped
    assert (service.stops, service.closed, talks.opened) == (1, 1, None)


def test_a_model_that_is_only_loading_is_left_off_by_ending_its_process(service: FakeService, talks: Talks) -> None:
    talk = talks.begin("answer", "c1", {})
    service.events.put({"event": "progress", "text": "loading the model", "done": None})
    while talk.phase != "loading":
        talk.wait(talk.version, 5)
    service.close = lambda: service.events.put(WorkerDied("it ended without a word"))  # type: ignore[method-assign]
    talks.stop(talk)
    assert until_ended(talks, "c1").error is None, "who stopped it knows why it ended"
