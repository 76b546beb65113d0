"""Automatic values: what the user gave stays, what is chosen is told, and sizes make sense."""

from __future__ import annotations

import pytest

from finetune_local.spec.defaults import Facts, precision, resolve
from finetune_local.spec.run import parse_spec


def facts(**changes: object) -> Facts:
    known = {
        "device": "cpu", "memory_bytes": 8 << 30, "hidden_size": 576, "fixed_bytes": 1 << 30, "activation_bytes": 1 << 30,
        "rows": 900, "longest": 300,
    }  # fmt: skip
    return Facts(**{**known, **changes})  # type: ignore[arg-type]


def test_everything_automatic_is_settled_and_told() -> None:
    spec, chosen = resolve(parse_spec({}, "x"), facts())
    told = {c.setting for c in chosen}
    for name in (
        "epochs",
        "max_steps",
        "batch_size",
        "learning_rate",
        "micro_batch_tokens",
        "validate_every",
        "checkpoint_every",
    ):
        assert getattr(spec.training, name) is not None
        assert f"training.{name}" in told
    assert spec.training.max_steps == 3 * 113


def test_what_was_given_stays() -> None:
    given = {"max_steps": 5, "batch_size": 2, "learning_rate": 1e-5, "micro_batch_tokens": 64}
    spec, chosen = resolve(parse_spec({"training": given}, "x"), facts())
    assert {k: getattr(spec.training, k) for k in given} == given
    assert not {f"training.{k}" for k in given} & {c.setting for c in chosen}
    assert spec.training.epochs is None


def test_the_rate_falls_with_width_and_is_a_tenth_for_full() -> None:
    def rate(method: str, hidden: int) -> float:
        value = resolve(parse_spec({"method": method}, "x"), facts(hidden_size=hidden))[0].training.learning_rate
        assert value is not None
        return value

    assert rate("lora", 576) > rate("lora", 4096) > rate("lora", 8192)
    assert rate("lora", 4096) == pytest.approx(2.9e-4, rel=0.05)
    assert rate("full", 4096) == pytest.approx(rate("lora", 4096) / 10, rel=0.05)


@pytest.mark.parametrize(
    ("chosen", "same"),
    [
        ({"key": "norms", "train_weights": "all"}, {"key": "full"}),
        ({"key": "full", "train_weights": "norms"}, {"key": "norms"}),
        ({"key": "prompt", "prompt_encoder": "mlp"}, {"key": "p-tuning"}),
        ({"key": "p-tuning", "prompt_encoder": "none"}, {"key": "prompt"}),
        ({"key": "lora", "b_rate_ratio": 16.0}, {"key": "lora-plus"}),
        ({"key": "lora-plus", "b_rate_ratio": 1.0}, {"key": "lora"}),
        ({"key": "adapter", "adapter_placing": "parallel"}, {"key": "parallel-adapter"}),
    ],
)
def test_the_rate_is_that_of_the_settings_by_whatever_name(chosen: dict[str, object], same: dict[str, object]) -> None:
    rates = [resolve(parse_spec({"method": m}, "x"), facts())[0].training.learning_rate for m in (chosen, same)]
    assert rates[0] == rates[1]


def test_each_method_s_rate_by_lora_s() -> None:
    wanted = {
        "full": 0.1, "last-layers": 0.1, "p-tuning": 0.25, "lora-plus": 0.25, "prefix": 1.0, "parallel-adapter": 1.0, "pissa": 1.0,
        "adalora": 2.0, "adapter": 2.0, "adapter-pfeiffer": 2.0, "bitfit": 5.0, "norms": 5.0, "ia3": 10.0, "vera": 10.0,
        "prompt": 20.0, "prompt-ensemble": 20.0,
    }  # fmt: skip
    lora = resolve(parse_spec({"method": "lora"}, "x"), facts())[0].training.learning_rate or 0.0
    for method, factor in wanted.items():
        rate = resolve(parse_spec({"method": method}, "x"), facts())[0].training.learning_rate
        assert rate == pytest.approx(lora * factor, rel=0.05), method


def test_checkpoints_are_rare_where_they_are_big() -> None:
    def every(method: str) -> int | None:
        return resolve(parse_spec({"method": method}, "x"), facts(rows=100_000))[0].training.checkpoint_every

    assert every("lora") == every("norms") == 50
    assert every("full") == every("last-layers") and (every("full") or 0) > 1000


@pytest.mark.parametrize("rows", [1, 3, 20, 900, 6000, 100_000])
def test_any_amount_of_data_gives_a_run(rows: int) -> None:
    training = resolve(parse_spec({}, "x"), facts(rows=rows))[0].training
    assert training.max_steps and training.max_steps >= 1
    assert training.checkpoint_every and training.checkpoint_every <= max(1, training.max_steps)


def test_a_micro_batch_holds_the_longest_row() -> None:
    for device in ("cpu", "cuda", "metal"):
        tokens = resolve(parse_spec({}, "x"), facts(device=device, longest=5000))[0].training.micro_batch_tokens
        assert tokens and tokens >= 5000
        pair = facts(device=device, longest=5000, rows_per_example=2)
        assert resolve(parse_spec({}, "x"), pair)[0].training.micro_batch_tokens >= 10_000  # type: ignore[operator]


def test_memory_decides_micro_batch_and_checkpointing() -> None:
    def settled(**changes: object) -> tuple[int | None, bool | None]:
        training = resolve(parse_spec({}, "x"), facts(device="cuda", **changes))[0].training
        return training.micro_batch_tokens, training.gradient_checkpointing

    assert settled() == (5 * 1024, False)
    assert settled(memory_bytes=80 << 30) == (16 * 1024, False)
    assert settled(fixed_bytes=6 << 30) == (1024, True)
    assert settled(longest=7000) == (7000, True)


def test_precision_follows_the_device_unless_given() -> None:
    lora, full = parse_spec({}, "x"), parse_spec({"method": "full"}, "x")
    assert precision(lora, "cpu", True)[0] == "bf16"
    assert precision(lora, "cpu", False)[0] == "fp32"
    assert precision(full, "cpu", True)[0] == "fp32"
    assert precision(full, "cuda", True)[0] == "bf16"
    assert precision(parse_spec({"method": "qlora"}, "x"), "cpu", True)[0] == "4-bit"


def test_a_goal_sets_the_length_and_a_thorough_run_is_watched_and_kept_at_its_best() -> None:
    settled = {
        goal: resolve(parse_spec({"goal": goal}, "x"), facts(validation_rows=90))[0].training
        for goal in ("quick", "balanced", "thorough")
    }
    assert settled["balanced"] == resolve(parse_spec({}, "x"), facts(validation_rows=90))[0].training
    quick, usual, thorough = (settled[goal].max_steps or 0 for goal in ("quick", "balanced", "thorough"))
    assert (quick, thorough) == (usual // 3, 2 * usual)
    assert (settled["quick"].early_stopping, settled["thorough"].early_stopping) == (None, 4)
    assert (settled["thorough"].validate_every or 0) < (usual // 5)


def test_a_goal_moves_only_what_is_left_open() -> None:
    given = {"epochs": 1.0, "early_stopping": 0}
    spec, chosen = resolve(parse_spec({"goal": "thorough", "training": given}, "x"), facts(validation_rows=90))
    assert (spec.training.max_steps, spec.training.early_stopping) == (113, 0)
    assert not {"training.epochs", "training.early_stopping"} & {c.setting for c in chosen}


def test_without_held_out_rows_nothing_can_be_stopped_early() -> None:
    spec, _ = resolve(parse_spec({"goal": "thorough"}, "x"), facts(validation_rows=0))
    assert not spec.training.early_stopping
