from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_local.system.untrusted.guarded import (
    Died,
    Guarded,
    GuardedError,
    Limits,
    Raised,
    Setup,
    TookTooLong,
    TookTooMuch,
)

WORK = """
import os

def prepare(setup):
    if setup == "bad":
        raise ValueError("no such thing")
    return setup

def answer(prepared, request):
    if request == "loop":
        while True:
            pass
    if request == "one call":
        return len(str(2 ** (2 ** 33)))
    if request == "much":
        return len("a" * 10**10)
    if request == "more and more":
        kept = []
        while True:
            kept.append("a" * 10**6)
    if request == "large":
        return "a" * 3_000_000
    if request == "abort":
        os.abort()
    if request == "exit":
        os._exit(3)
    if request == "leave":
        raise SystemExit(3)
    if request == "recurse":
        def again():
            return again()
        again()
    if request == "print":
        print("noise")
    return [prepared, request]
"""
FINE = Setup("fine")


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    (tmp_path / "guarded_work.py").write_text(WORK, "utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))
    child = Guarded("guarded_work", Limits(seconds=0.5, most_bytes=400 * 2**20, most_reply=2**20))
    yield child
    child.close()


def test_answers_come_back_as_they_are(guarded: Guarded) -> None:
    for value in (1, "x" * 10_000, "中文 \ud800", None, {"a": [1, {"b": None}]}):
        assert guarded.ask(value, FINE) == ["fine", value]
    assert guarded.ask("print", FINE) == ["fine", "print"], "what a library prints does not come between"


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ("loop", TookTooLong),
        pytest.param("one call", TookTooLong, marks=pytest.mark.skipif(os.name == "nt", reason="many seconds there")),
        ("large", TookTooMuch),
        ("exit", Died),
        ("leave", Raised),
        ("recurse", Raised),
    ],
)
def test_whatever_happens_is_an_error_and_the_next_request_is_answered(
    guarded: Guarded, request_: str, error: type[GuardedError]
) -> None:
    began = time.monotonic()
    with pytest.raises(error) as raised:
        guarded.ask(request_, FINE)
    assert time.monotonic() - began < 20
    assert str(raised.value) and not str(raised.value).endswith(".")
    assert guarded.ask("next", FINE) == ["fine", "next"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the parent looks after the memory, in time")
@pytest.mark.parametrize("request_", ["much", "more and more", "abort"])
def test_memory_is_limited(guarded: Guarded, request_: str) -> None:
    with pytest.raises(TookTooMuch, match="memory"):
        guarded.ask(request_, FINE)
    assert guarded.ask("next", FINE) == ["fine", "next"]


def test_where_addresses_are_not_limited_the_parent_looks_after_the_memory(guarded: Guarded) -> None:
    watched = Guarded("guarded_work", Limits(seconds=20, most_bytes=300 * 2**20, by_address=False))
    try:
        with pytest.raises(TookTooMuch, match="memory"):
            watched.ask("more and more", FINE)
        assert watched.ask("next", FINE) == ["fine", "next"]
    finally:
        watched.close()


def test_a_process_that_cannot_be_started_is_an_error(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", none_left)
        with pytest.raises(Died, match="Too many open files"):
            guarded.ask("x", FINE)
    assert guarded.ask("x", FINE) == ["fine", "x"]


def test_seconds_can_be_others_for_one_request(guarded: Guarded) -> None:
    began = time.monotonic()
    with pytest.raises(TookTooLong, match="within 1 second"):
        guarded.ask("loop", FINE, answering=1.0)
    assert time.monotonic() - began > 0.8


def test_a_preparation_that_fails_is_told_each_time(guarded: Guarded) -> None:
    bad = Setup("bad")
    for _ in range(2):
        with pytest.raises(Raised, match="ValueError: no such thing"):
            guarded.ask(1, bad)


def test_any_number_of_setups_and_of_threads(guarded: Guarded) -> None:
    setups = [Setup(str(number)) for number in range(20)]
    wrong: list[str] = []

    def ask_all() -> None:
        wrong.extend(setup.value for setup in setups * 2 if guarded.ask("x", setup) != [setup.value, "x"])

    threads = [threading.Thread(target=ask_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(os.name == "nt", reason="POSIX: the kernel's timer")
def test_a_child_whose_parent_is_gone_ends(guarded: Guarded) -> None:
    guarded.ask("x", FINE)
    process = guarded._process
    assert process is not None and process.stdin is not None
    process.stdin.close()
    assert process.wait(20) == 0
    assert guarded.ask("x", FINE) == ["fine", "x"], "another child is started"
