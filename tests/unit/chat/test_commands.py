"""What each slash command does and says."""

import json
from pathlib import Path

import pytest

from finetune_local.chat import history
from finetune_local.chat.commands import COMMANDS, run_command
from finetune_local.chat.session import ChatSession
from finetune_local.inference.engine import Opened
from finetune_local.inference.sampling import Sampling
from finetune_local.system.errors import AdapterError, SpecError


@pytest.fixture
def chat(opened: Opened) -> ChatSession:
    return ChatSession(opened, Sampling(seed=1, max_tokens=4), history=history.new(opened.home))


def test_adapter_loads_swaps_and_tells_the_milliseconds(chat: ChatSession) -> None:
    assert " ms)" in run_command(chat, "/adapter 诗人").text
    assert chat.opened.active == "诗人"
    assert " ms)" in run_command(chat, "/adapter base").text
    assert chat.opened.active is None
    listed = run_command(chat, "/adapters").text.splitlines()
    assert listed == ["诗人  (in memory)", "formal  (on disk)"]
    with pytest.raises(AdapterError, match="formal"):
        run_command(chat, "/adapter formel")


def test_system_clear_undo_retry_quit(chat: ChatSession) -> None:
    run_command(chat, "/system 用中文 回答")
    assert chat.conversation.system == "用中文 回答"
    chat.ask("one")
    assert run_command(chat, "/retry").then == "retry"
    run_command(chat, "/undo")
    assert chat.turns == []
    assert "nothing" in run_command(chat, "/undo").text
    chat.ask("two")
    run_command(chat, "/clear")
    assert chat.turns == [] and chat.conversation.system == "用中文 回答"
    run_command(chat, "/system none")
    assert chat.conversation.system is None
    assert run_command(chat, "/quit").then == "quit"


def test_save_appends_a_row_that_can_be_trained_on(chat: ChatSession, tmp_path: Path) -> None:
    run_command(chat, "/system rules")
    turn = chat.ask("你好")
    target = tmp_path / "saved chats 存.jsonl"
    for _ in range(2):
        run_command(chat, f"/save {target}")
    lines = target.read_text("utf-8").splitlines()
    assert len(lines) == 2
    assert json.loads(lines[0])["messages"] == [
        {"role": "system", "content": "rules"},
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": turn.result.text},
    ]
    assert chat.history and str(chat.history.path) in run_command(chat, "/save").text


def test_set_shows_and_changes_sampling(chat: ChatSession) -> None:
    assert "temperature=0.2" in run_command(chat, "/set temperature 0.2").text
    assert "top_k=7" in run_command(chat, "/set top_k=7").text
    assert chat.sampling.top_k == 7


def test_help_lists_every_command_and_unknown_ones_are_refused(chat: ChatSession) -> None:
    text = run_command(chat, "/help").text
    assert all(f"/{name}" in text for name in COMMANDS)
    with pytest.raises(SpecError, match="Did you mean '/adapter'"):
        run_command(chat, "/adaptor x")
