"""What is checked and said before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune_local.backend import Device
from finetune_local.spec.run import parse_spec
from finetune_local.system.machine import Card
from finetune_local.system.paths import Home
from finetune_local.training import check


@pytest.mark.parametrize(("device", "told"), [(None, True), ("cpu", False)])
def test_a_card_that_is_not_used_is_told(
    home: Home, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str | None, told: bool
) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n", "utf-8")
    monkeypatch.setattr(check, "nvidia_cards", lambda: (Card("NVIDIA RTX 4090", 24 << 30, "580"),))
    monkeypatch.setattr(check, "device_for", lambda *_: Device("cpu", "cpu", "CPU", 1 << 34))
    tables = {"device": device, "model": {"id": str(tiny)}, "data": {"files": [str(data)]}}
    _, notes = check.check_before_loading(parse_spec(tables, "test"), home, lambda *_: None)
    assert any("NVIDIA RTX 4090" in note.text and "doctor" in note.text for note in notes) == told
