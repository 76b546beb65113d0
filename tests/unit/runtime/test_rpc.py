"""A child that answers requests, with a child made for these tests (tests/answering.py)."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_local.runtime.rpc import RpcClient
from finetune_local.system.errors import DataError, WorkerDied


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RpcClient]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    found = RpcClient("answering", ("5",), tmp_path / "日志 log" / "child.log")
    yield found
    found.close()


def test_a_result_comes_back_with_what_was_told_on_the_way(client: RpcClient) -> None:
    assert not client.running  # nothing is started before it is call
    call = client.stream("count", to=3, word="中文 \n x")
    assert [event["n"] for event in call] == [0, 1, 2]
    assert client.call("echo", word="中文 \n x") == "中文 \n x"


def test_an_error_of_the_app_is_raised_as_it_was(client: RpcClient) -> None:
    with pytest.raises(DataError, match="the file is empty"):
        client.call("refuse")
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        client.call("defect")
    assert client.call("echo", word="still there") == "still there"


def test_what_libraries_print_does_not_come_between(client: RpcClient) -> None:
    assert client.call("print") == "done"
    assert "a library says hello" in client.log.read_text("utf-8")


def test_a_killed_child_is_told_with_its_last_words_and_started_anew(client: RpcClient) -> None:
    client.call("print")
    call = client.stream("wait", seconds=30)
    next(call)
    assert client.pid is not None
    os.kill(client.pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="a library says hello"):
        call.result()
    assert client.call("echo", word="again") == "again"


def test_who_no_longer_wants_the_rest_stops_it(client: RpcClient) -> None:
    call = client.stream("wait", seconds=30)
    next(call)
    began = time.monotonic()
    call.cancel()
    assert call.result() == "cancelled"
    assert time.monotonic() - began < 5


def test_two_ask_at_once_and_each_has_its_own(client: RpcClient) -> None:
    found: dict[int, list[int]] = {}

    def call_it(number: int) -> None:
        found[number] = [event["n"] for event in client.stream("count", to=number)]

    threads = [threading.Thread(target=call_it, args=(number,)) for number in (4, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {4: [0, 1, 2, 3], 7: [0, 1, 2, 3, 4, 5, 6]}


def test_an_idle_child_gives_its_memory_back_and_comes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    client = RpcClient("answering", ("0.2",), tmp_path / "child.log")
    client.call("echo", word="x")
    first = client.pid
    until = time.monotonic() + 10
    while client.running and time.monotonic() < until:
        time.sleep(0.05)
    assert not client.running
    assert client.call("echo", word="y") == "y"
    assert client.pid != first
    client.close()


def test_the_child_does_not_outlive_whoever_asks(client: RpcClient) -> None:
    client.call("echo", word="x")
    process = client._process
    assert process is not None
    client.close()
    assert process.poll() is not None
