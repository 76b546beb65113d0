"""Which base a chat begins with, and which adapters fit it."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_local.chat import choices
from finetune_local.spec.run import DEFAULT_MODEL
from finetune_local.system import paths
from finetune_local.system.errors import ModelError
from made import made_adapter
from tiny import tiny_model


def test_the_base_is_the_adapters_own_else_the_wanted_else_one_that_is_here(home: paths.Home, tiny: Path) -> None:
    assert choices.base(home, None) is None
    tiny_model(home.models / "b")
    assert choices.base(home, None) == "b"
    tiny_model(home.models / DEFAULT_MODEL)
    assert choices.base(home, None) == DEFAULT_MODEL
    assert choices.base(home, "b") == "b"
    made_adapter(home.models / "b", home.adapters / "一", seed=1)
    assert choices.base(home, DEFAULT_MODEL, ["一"]) == "b"
    assert choices.base(home, DEFAULT_MODEL, ["gone"]) == DEFAULT_MODEL


def test_adapters_that_do_not_fit_are_offered_with_the_reason_and_come_last(home: paths.Home) -> None:
    base = tiny_model(home.models / "base 小")
    made_adapter(tiny_model(home.models / "qwen", "qwen3"), home.adapters / "a stranger", seed=1)
    made_adapter(base, home.adapters / "own", seed=2)
    made_adapter(base, home.adapters / "plain", seed=3, plain=True)
    outside = made_adapter(base, home.models.parent / "elsewhere 外", seed=4)
    found = choices.offers(home, choices.opened(home, "base 小"), [str(outside), "gone"])
    assert [(o.name, bool(o.problem)) for o in found] == [
        ("own", False),
        ("plain", False),
        (str(outside), False),
        ("a stranger", True),
        ("gone", True),
    ]
    problems = {o.name: o.problem for o in found}
    assert "trained on 'qwen'" in problems["a stranger"] and "no adapter 'gone'" in problems["gone"]


def test_a_replaced_adapter_is_looked_at_again(home: paths.Home) -> None:
    base, other = tiny_model(home.models / "base"), tiny_model(home.models / "qwen", "qwen3")
    made_adapter(base, home.adapters / "one", seed=1)
    model = choices.opened(home, "base")
    assert choices.offers(home, model)[0].problem == ""
    made_adapter(other, home.adapters / "one", seed=1, strength=0.2)
    assert choices.offers(home, model)[0].problem


def test_a_base_that_is_gone_and_one_that_is_damaged(home: paths.Home, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'nothing 无' is not on this machine"):
        choices.opened(home, "nothing 无")
    with pytest.raises(ModelError, match="is not on this machine"):
        choices.opened(home, str(tmp_path / "gone"))
    damaged = tiny_model(home.models / "damaged")
    (damaged / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        choices.opened(home, "damaged")
