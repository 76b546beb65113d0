"""Children of a client that end while somebody waits: nobody waits for ever, and no question is lost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from finetune_local.runtime.rpc import RpcClient
from finetune_local.system.errors import WorkerDied


@pytest.fixture(autouse=True)
def _found_by_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))


def test_whoever_waits_for_a_closed_child_is_told_even_where_another_has_begun(tmp_path: Path) -> None:
    client = RpcClient("answering", ("5",), tmp_path / "child.log")
    call = client.stream("wait", seconds=30)
    next(call)
    client.close()
    assert client.call("echo", word="new") == "new"
    with pytest.raises((WorkerDied, StopIteration)):
        while True:
            next(call)
    client.close()


def test_a_question_that_comes_while_an_idle_child_is_ending_is_answered(tmp_path: Path) -> None:
    client = RpcClient("answering", ("0.05",), tmp_path / "child.log")
    for number in range(12):  # some of them meet a child that no longer listens, and has not gone yet
        assert client.call("echo", word=number) == number
        time.sleep(0.05 + 0.004 * number)
    client.close()
