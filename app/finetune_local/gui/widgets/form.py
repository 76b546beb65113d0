"""The form of a run: one control for each setting that the spec declares, by group.

The form's value is {dotted path: typed value} of the settings that the user changed. It is stored in the window's draft and converted
to the tables that parse_spec() reads. Settings of methods and objectives are visible if the chosen one has them, with its defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic.fields import FieldInfo

from finetune_local.gui.widgets import controls
from finetune_local.gui.widgets.html import h
from finetune_local.spec import walk
from finetune_local.spec.objectives import objective_named
from finetune_local.spec.run import DEFAULT_OBJECTIVE
from finetune_local.spec.tuners import preset_named
from finetune_local.system.fields import extra_of

if TYPE_CHECKING:
    from finetune_local.gui.i18n.strings import Strings

ELSEWHERE = ("model.id", "data.", "method.key", "goal", "name")
"""Prefixes of the settings that are not in this form but on the pages of model and data, or on cards."""

COMMON, GENERAL = "main", "run"
"""Groups of the form: the settings that people change first, from any table, and those that belong to no table."""

Value = dict[str, Any]


def fields() -> dict[str, FieldInfo]:
    """All settings of the form by dotted path."""
    return {path: field for path, field in walk.spec_fields() if not path.startswith(ELSEWHERE)}


def objective_of(form: Mapping[str, Any]) -> str:
    """The key of the objective in a form's value."""
    return str(form.get(walk.OBJECTIVE_KEY) or DEFAULT_OBJECTIVE)


def with_objective(form: Mapping[str, Any], key: str) -> Value:
    """A form's value with another objective. Raises SpecError for one that does not exist."""
    rest = {path: value for path, value in form.items() if path != walk.OBJECTIVE_KEY}
    return rest if objective_named(key).key == DEFAULT_OBJECTIVE else {**rest, walk.OBJECTIVE_KEY: key}


def default_of(key: str, path: str, field: FieldInfo) -> Any:
    """A setting's default with a method: the preset's, else the field's."""
    return preset_named(key).defaults.get(path, field.default)


class Form:
    """The controls of one page."""

    def __init__(self, t: Strings) -> None:
        self.t = t
        self.fields = fields()
        self.controls: dict[str, Any] = {}

    def build(self) -> None:
        """Add the controls, with a heading for each group, to the current Gradio block."""
        import gradio as gr

        for group, paths in self.groups().items():
            title = self.t.get(f"train.group_{group}") or group.replace("_", " ").capitalize()
            gr.HTML(h("h3", title), elem_classes=["view", "form-heading"], js_on_load=None)
            with gr.Row(elem_classes=["form-grid"]):
                for path in paths:
                    self.controls[path] = controls.control(self.t, path, self.fields[path], min_width=230)

    def groups(self) -> Mapping[str, Sequence[str]]:
        """Paths by group: the common settings first, then the tables of the spec, the general settings last."""
        found: dict[str, list[str]] = {COMMON: []}
        for path, field in self.fields.items():
            table, _, _ = path.rpartition(".")
            found.setdefault(COMMON if extra_of(field).get("common") else table or GENERAL, []).append(path)
        found[GENERAL] = found.pop(GENERAL, [])
        return {group: paths for group, paths in found.items() if paths}

    def listed(self) -> list[Any]:
        """The controls in the order of the fields."""
        return [self.controls[path] for path in self.fields]

    def read(self, values: Sequence[Any], key: str) -> Value:
        """The form's value: the controls' values that differ from their defaults."""
        typed = dict(zip(self.fields, values, strict=True))
        own = walk.own_fields(key, objective_of(typed))
        found: Value = {}
        for path, field in self.fields.items():
            value = typed[path]
            if walk.of_one(path) and path not in own:
                continue
            declared = own.get(path, field)
            kind, optional = controls.kind_of(declared)
            if kind is bool and not optional:
                usual = bool(default_of(key, path, declared))
                if bool(value) != usual:
                    found[path] = bool(value)
            elif (setting := controls.setting_value(declared, value)) is not None:
                usual = controls.control_value(declared, default_of(key, path, declared))
                if controls.control_value(declared, setting) != usual:
                    found[path] = setting
        return found

    def updates(self, form: Mapping[str, Any], key: str, automatic: Mapping[str, Any] | None = None) -> list[Any]:
        """An update for each control: its value, its visibility, and as placeholder the automatic value of an empty field."""
        import gradio as gr

        own = walk.own_fields(key, objective_of(form))
        result = []
        for path, field in self.fields.items():
            if walk.of_one(path) and path not in own:
                result.append(gr.update(visible=False))
                continue
            declared = own.get(path, field)
            usual = default_of(key, path, declared)
            value = form.get(path)
            kind, optional = controls.kind_of(declared)
            more: dict[str, Any] = {"visible": True, "info": controls.help_of(self.t, path, declared)}
            if kind is bool and not optional:
                more["value"] = bool(usual) if value is None else bool(value)
            elif hasattr(self.controls[path], "placeholder"):
                more["value"] = controls.control_value(declared, value)
            else:  # a choice shows the method's default as chosen
                more["value"] = controls.control_value(declared, usual if value is None else value)
            if hasattr(self.controls[path], "placeholder"):
                more["placeholder"] = self._placeholder(declared, usual, (automatic or {}).get(path))
            result.append(gr.update(**more))
        return result

    def placeholders(self, form: Mapping[str, Any], key: str, automatic: Mapping[str, Any]) -> list[Any]:
        """Updates while the user types: automatic values as placeholders, and the visibility of the objective's settings."""
        import gradio as gr

        own = walk.own_fields(key, objective_of(form))
        result: list[Any] = []
        for path, field in self.fields.items():
            declared = own.get(path, field)
            value = automatic.get(path)
            if path.startswith(f"{walk.OBJECTIVE}.") and walk.of_one(path):
                result.append(gr.update(visible=path in own))
            elif value is None or not hasattr(self.controls[path], "placeholder"):
                result.append(gr.skip())
            else:
                result.append(
                    gr.update(placeholder=self._placeholder(declared, default_of(key, path, declared), value))
                )
        return result

    def _placeholder(self, field: FieldInfo, usual: Any, automatic: Any) -> str:
        if automatic is not None:
            value = f"{automatic:g}" if isinstance(automatic, float) else str(automatic)
            return f"{self.t('common.automatic')}: {value}"
        if usual is None:
            return self.t("common.automatic")
        if isinstance(usual, tuple):
            return ", ".join(map(str, usual)) or self.t("common.none")
        return f"{usual:g}" if isinstance(usual, float) else str(usual)


def tables(
    form: Mapping[str, Any], *, model: str, data: Mapping[str, Any], key: str, goal: str, name: str = ""
) -> dict[str, object]:
    """The tables of a run, for parse_spec(), without settings that the method and objective do not have."""
    own = walk.own_fields(key, objective_of(form))
    found: dict[str, Any] = {
        "goal": goal,
        "model": {"id": model},
        "data": dict(data),
        "method": {"key": key},
        "training": {},
    }
    if name.strip():
        found["name"] = name.strip()
    for path, value in form.items():
        table, _, field = path.rpartition(".")
        if walk.of_one(path) and path not in own:
            continue
        if table:
            found.setdefault(table, {})[field] = value
        else:
            found[field] = value
    return found
