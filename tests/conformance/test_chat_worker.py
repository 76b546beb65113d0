"""The process that answers for the window: what is loaded when, who answers, what is on disk, what a kill leaves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from finetune_local.backend import Backend, backends
from finetune_local.chat import history
from finetune_local.chat.record import Record
from finetune_local.runtime.rpc import RpcClient
from finetune_local.system import paths
from finetune_local.system.errors import AdapterError, SpecError, WorkerDied
from made import made_adapter
from tiny import tiny_model

SAMPLING = {"temperature": "0.8", "seed": "1", "max_tokens": "8"}


USABLE = [name for name, backend in backends().items() if backend.missing() is None]


@pytest.fixture(scope="module", params=USABLE)
def backend(request: pytest.FixtureRequest) -> Backend:
    """As everywhere, but one worker serves all of this file: it takes seconds to begin."""
    return backends()[request.param]


@pytest.fixture(scope="module")
def home(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> paths.Home:
    home = paths.Home(tmp_path_factory.mktemp("home") / "my home 主页")
    base = tiny_model(home.models / "tiny 小")
    for seed, name in enumerate(("formal", "诗人")):
        made_adapter(base, home.adapters / name, seed)
    return home


@pytest.fixture(scope="module")
def worker(home: paths.Home) -> Iterator[RpcClient]:
    client = RpcClient("finetune_local.chat.worker", (str(home.root),), home.window / "chat.log")
    yield client
    client.close()


def asked(home: paths.Home, text: str = "one") -> Record:
    record = Record(history.new(home, {"model": "tiny 小"}))
    record.ask(text)
    return record


def answered(
    worker: RpcClient, backend: Backend, record: Record, answerers: list[str | None], leading: str | None, **more: Any
) -> dict[str, Any]:
    assert record.history is not None
    values = {"conversation": record.history.id, "model": "tiny 小", "backend": backend.name, "sampling": SAMPLING,
              "adapters": [name for name in answerers if name], "answerers": answerers, "leading": leading}  # fmt: skip
    events, result = [], None
    asking = worker.stream("answer", **{**values, **more})
    while result is None:
        try:
            events.append(next(asking))
        except StopIteration as end:
            result = end.value
    return {**result, "events": events, "exchange": Record(record.history).exchanges[-1]}


def test_answers_side_by_side_swaps_and_a_base_that_stays(
    home: paths.Home, backend: Backend, worker: RpcClient
) -> None:
    record = asked(home)
    first = answered(worker, backend, record, [None, "formal", "诗人"], "formal")
    exchange = first["exchange"]
    assert [a.adapter for a in exchange.answers] == [None, "formal", "诗人"] and exchange.chosen == 1
    assert len({a.content for a in exchange.answers}) == 3, "each answers by itself"
    said = {t["adapter"]: t["text"] for t in first["turns"]}
    streamed: dict[Any, str] = {}
    for event in first["events"]:
        if event["event"] == "text":
            streamed[event["adapter"]] = streamed.get(event["adapter"], "") + event["piece"]
    assert streamed == said == {a.adapter: a.content for a in exchange.answers}
    assert first["opened"]["active"] == "formal" and first["opened"]["memory_bytes"] > 1e6
    assert all(turn["swap_ms"] >= 0 for turn in first["turns"] if "swap_ms" in turn) and "swap_ms" in first["turns"][1]

    alone = answered(worker, backend, asked(home), ["诗人"], "诗人")
    assert alone["turns"][0]["text"] == said["诗人"], "the same seed says the same, whoever answered before"
    assert not any(e["event"] == "progress" for e in alone["events"]), "nothing was loaded again"
    used = worker.call("use", model="tiny 小", adapters=["formal"], answerer="formal")
    assert used["ms"] < 1000 and used["opened"]["active"] == "formal"

    record = asked(home)
    record.add({"role": "assistant", "content": said["formal"]})
    record.ask("two")
    went_on = answered(worker, backend, record, ["诗人", None], None)
    assert went_on["exchange"].chosen == 1
    record = asked(home)
    record.add({"role": "assistant", "content": said["formal"]})
    record.ask("two")
    worker.close()
    anew = answered(worker, backend, record, ["诗人", None], None)
    assert [t["text"] for t in anew["turns"]] == [t["text"] for t in went_on["turns"]], "no cache was another adapter's"


def test_another_base_takes_the_place_of_the_first(home: paths.Home, backend: Backend, worker: RpcClient) -> None:
    tiny_model(home.models / "other", "qwen3", seed=3)
    first = answered(worker, backend, asked(home), [None], None)
    other = answered(worker, backend, asked(home), [None], None, model="other")
    assert (first["opened"]["model"], other["opened"]["model"]) == ("tiny 小", "other")
    with pytest.raises(AdapterError, match="trained on 'tiny 小'"):
        answered(worker, backend, asked(home), ["formal"], "formal", model="other")


def test_what_cannot_be_answered_is_said_and_the_question_stays(
    home: paths.Home, backend: Backend, worker: RpcClient
) -> None:
    record = asked(home)
    with pytest.raises(SpecError, match="temperature"):
        answered(worker, backend, record, [None], None, sampling={"temperature": "warm"})
    with pytest.raises(AdapterError, match="nobody"):
        answered(worker, backend, record, ["nobody"], "nobody")
    assert record.history is not None and Record(record.history).conversation.open
    too_long = asked(home, "很长" * 600)
    with pytest.raises(SpecError, match="context is 512"):
        answered(worker, backend, too_long, [None], None)
    assert too_long.history is not None and Record(too_long.history).exchanges == [], "it is taken back"
    assert answered(worker, backend, record, [None], None)["turns"]
    with pytest.raises(SpecError, match="ask something"):
        answered(worker, backend, record, [None], None)


def test_a_stopped_answer_is_kept_as_far_as_it_came(home: paths.Home, backend: Backend, worker: RpcClient) -> None:
    worker.call("open", model="tiny 小", backend=backend.name)
    record = asked(home)
    assert record.history is not None
    asking = worker.stream(
        "answer", conversation=record.history.id, model="tiny 小", answerers=[None], leading=None,
        sampling={**SAMPLING, "max_tokens": "400"},
    )  # fmt: skip
    pieces = ""
    for event in asking:
        pieces += event.get("piece", "")
        if len(pieces) > 3:
            asking.cancel()
            break
    (turn,) = asking.result()["turns"]
    assert turn["stop"] == "interrupted" and turn["tokens"] < 400 and turn["text"].startswith(pieces)
    (kept,) = Record(record.history).exchanges
    assert kept.answers[0].content == turn["text"]


def test_a_killed_worker_leaves_the_question_and_the_next_one_answers(
    home: paths.Home, backend: Backend, worker: RpcClient
) -> None:
    worker.call("open", model="tiny 小", backend=backend.name)
    record = asked(home)
    assert record.history is not None and worker.pid is not None
    asking = worker.stream("answer", conversation=record.history.id, model="tiny 小", answerers=[None], leading=None,
                           sampling={"max_tokens": "450"})  # fmt: skip
    next(asking)
    psutil.Process(worker.pid).kill()
    with pytest.raises(WorkerDied, match="Try again"):
        asking.result()
    assert Record(record.history).conversation.open
    assert answered(worker, backend, record, [None], None)["exchange"].answers


def test_an_adapter_that_was_trained_further_is_loaded_again(
    home: paths.Home, backend: Backend, worker: RpcClient
) -> None:
    before = answered(worker, backend, asked(home), ["formal"], "formal")["turns"][0]["text"]
    made_adapter(home.models / "tiny 小", home.adapters / "formal", seed=9)
    os.utime(home.adapters / "formal" / "adapter_model.safetensors", (1, 1))
    after = answered(worker, backend, asked(home), ["formal"], "formal")
    assert after["turns"][0]["text"] != before
    assert after["opened"]["adapters"] == ["formal"]
