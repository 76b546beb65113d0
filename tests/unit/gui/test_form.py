"""The whole form: it has every setting, reads back what was typed, and knows what each method has."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import pytest

from finetune_local.gui.i18n.strings import Strings
from finetune_local.gui.widgets import controls, form
from finetune_local.gui.widgets.form import ELSEWHERE, Form, default_of, tables
from finetune_local.spec.objectives import objectives
from finetune_local.spec.run import parse_spec
from finetune_local.spec.tuners import presets
from finetune_local.spec.walk import own_fields, spec_fields
from finetune_local.system.fields import setting


@pytest.fixture(scope="module")
def made() -> Form:
    with warnings.catch_warnings():
        # Gradio makes event loops at import and lets them go without closing them.
        warnings.simplefilter("ignore", ResourceWarning)
        import gradio as gr

        found = Form(Strings("en"))
        with gr.Blocks():
            found.build()
        gc.collect()
    return found


def test_every_setting_of_the_command_line_is_in_the_form_or_has_its_own_place(made: Form) -> None:
    elsewhere = {path for path, _ in spec_fields() if path.startswith(ELSEWHERE)}
    assert {path for path, _ in spec_fields()} - elsewhere == set(made.controls)


def test_any_group_of_settings_that_the_spec_declares_is_in_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    new = {
        "sampling_more.heat": setting(0.5, help="x", group="new"),
        "training.fresh": setting(1, help="x", group="training"),
    }
    monkeypatch.setattr(form.walk, "spec_fields", lambda: [*spec_fields(), *new.items()])
    groups = Form(Strings("en")).groups()
    assert groups["sampling_more"] == ["sampling_more.heat"] and "training.fresh" in groups["training"]
    assert next(iter(groups)) == "main" and "objective.key" in groups["main"] and list(groups)[-1] == "run"


@pytest.mark.parametrize("key", list(presets()))
def test_an_untouched_form_is_the_method_as_it_is(made: Form, key: str) -> None:
    values = [
        update.get("value", control.value) for update, control in zip(made.updates({}, key), made.listed(), strict=True)
    ]
    assert made.read(values, key) == {}
    plain = parse_spec({"method": key, "data": {"files": ["x"]}}, "test")
    assert (
        parse_spec(tables({}, model="smollm2-135m", data={"files": ["x"]}, key=key, goal="balanced"), "test") == plain
    )


@pytest.mark.parametrize("key", ["lora", "qlora", "adalora", "prefix", "full", "lora-fa"])
def test_what_is_typed_comes_back(made: Form, key: str) -> None:
    typed: dict[str, Any] = {"training.seed": "7", "training.learning_rate": "1e-4", "training.gradient_checkpointing": "true",
                             "model.precision": "fp32", "backend": "mlx"}  # fmt: skip
    own = own_fields(key)
    for path, field in own.items():
        kind, optional = controls.kind_of(field)
        if kind is int:
            typed[path] = "3"
        elif kind is bool and not optional:
            typed[path] = not default_of(key, path, field)
    updates = dict(zip(made.fields, made.updates(typed, key), strict=True))
    values = [updates[path].get("value", "") for path in made.fields]
    assert made.read(values, key) == typed


def test_settings_of_other_methods_are_hidden_and_never_sent(made: Form) -> None:
    updates = dict(zip(made.fields, made.updates({"method.rank": "4"}, "full"), strict=True))
    assert updates["method.rank"]["visible"] is False
    assert "rank" not in tables({"method.rank": "4"}, model="m", data={}, key="full", goal="quick")["method"]


def test_open_fields_tell_what_they_come_to(made: Form) -> None:
    updates = dict(zip(made.fields, made.updates({}, "lora", {"training.batch_size": 8}), strict=True))
    assert updates["training.batch_size"]["placeholder"] == "automatic: 8"
    assert updates["method.rank"]["placeholder"] == "16"


def test_a_list_is_typed_with_commas_or_lines() -> None:
    field = form.fields()["method.targets"]
    assert controls.setting_value(field, "q_proj, v_proj\no_proj ,") == ["q_proj", "v_proj", "o_proj"]
    assert controls.setting_value(field, "  ") is None


def test_the_objective_is_one_control_and_brings_its_settings(made: Form) -> None:
    assert [value for _, value in made.controls["objective.key"].choices] == list(objectives())
    for typed, visible in (({}, False), ({"objective.key": "dpo"}, True)):
        updates = dict(zip(made.fields, made.updates(typed, "lora"), strict=True))
        while_typing = dict(zip(made.fields, made.placeholders(typed, "lora", {}), strict=True))
        assert updates["objective.beta"]["visible"] is while_typing["objective.beta"]["visible"] is visible
    typed = {"objective.key": "dpo", "objective.beta": "0.3"}
    updates = dict(zip(made.fields, made.updates(typed, "lora"), strict=True))
    assert made.read([updates[path].get("value", "") for path in made.fields], "lora") == typed
    values = tables(typed, model="m", data={"files": ["x"]}, key="lora", goal="balanced")
    assert parse_spec(values, "test").objective.settings.model_dump() == {"cache_reference": False, "beta": 0.3}
    assert "objective" not in tables({"objective.beta": "0.3"}, model="m", data={}, key="lora", goal="balanced")
