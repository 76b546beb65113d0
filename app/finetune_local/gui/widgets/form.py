"""The form of a run: one control for every setting that the spec declares, in the groups that it declares.

The form's value is {dotted path: what was typed}, only of what the user set; it is kept in the window's draft, and becomes the
tables that parse_spec() takes. Settings of methods and objectives are shown where the chosen one has them, with its own defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic.fields import FieldInfo

from finetune_local.gui.widgets import controls
from finetune_local.gui.widgets.html import h
from finetune_local.spec import walk
from finetune_local.spec.run import DEFAULT_OBJECTIVE
from finetune_local.spec.tuners import preset_named
from finetune_local.system.fields import extra_of

if TYPE_CHECKING:
    from finetune_local.gui.i18n.strings import Strings

ELSEWHERE = ("model.id", "data.", "method.key", "goal", "name")
"""Paths (or beginnings of them) that have their own place outside this form: the pages of model and data, the cards."""

COMMON, GENERAL = "main", "run"
"""Groups of the form: settings that people change first, whatever table they are in, and those that are in no table."""

Value = dict[str, Any]


def fields() -> dict[str, FieldInfo]:
    """Every setting of the form by its dotted path."""
    return {path: field for path, field in walk.spec_fields() if not path.startswith(ELSEWHERE)}


def objective_of(form: Mapping[str, Any]) -> str:
    """The objective that a form's value says."""
    return str(form.get(walk.OBJECTIVE_KEY) or DEFAULT_OBJECTIVE)


def default_of(key: str, path: str, field: FieldInfo) -> Any:
    """The default of a setting with a method: the preset's, else the field's."""
    return preset_named(key).defaults.get(path, field.default)


class Form:
    """The controls, made once for a page."""

    def __init__(self, t: Strings) -> None:
        self.t = t
        self.fields = fields()
        self.controls: dict[str, Any] = {}

    def build(self) -> None:
        """Make the controls under their headings, within whatever is open in Gradio."""
        import gradio as gr

        for group, paths in self.groups().items():
            title = self.t.get(f"train.group_{group}") or group.replace("_", " ").capitalize()
            gr.HTML(h("h3", title), elem_classes=["view", "form-heading"], js_on_load=None)
            with gr.Row(elem_classes=["form-grid"]):
                for path in paths:
                    self.controls[path] = controls.control(self.t, path, self.fields[path], min_width=230)

    def groups(self) -> Mapping[str, Sequence[str]]:
        """Paths by group: the common settings first, then a group for each table of the spec, the general ones last."""
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
        """What the user set, of what the controls hold."""
        given_by_path = dict(zip(self.fields, values, strict=True))
        own = walk.own_fields(key, objective_of(given_by_path))
        found: Value = {}
        for path, field in self.fields.items():
            value = given_by_path[path]
            if walk.of_one(path) and path not in own:
                continue
            declared = own.get(path, field)
            kind, optional = controls.kind_of(declared)
            if kind is bool and not optional:
                usual = bool(default_of(key, path, declared))
                if bool(value) != usual:
                    found[path] = bool(value)
            elif (given := controls.given(declared, value)) is not None:
                usual = controls.shown(declared, default_of(key, path, declared))
                if controls.shown(declared, given) != usual:
                    found[path] = given
        return found

    def updates(self, form: Mapping[str, Any], key: str, automatic: Mapping[str, Any] | None = None) -> list[Any]:
        """An update for every control: its value, whether the method has it, and what an open field will come to."""
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
                more["value"] = controls.shown(declared, value)
            else:  # of a choice the method's own is shown as chosen
                more["value"] = controls.shown(declared, usual if value is None else value)
            if hasattr(self.controls[path], "placeholder"):
                more["placeholder"] = self._placeholder(declared, usual, (automatic or {}).get(path))
            result.append(gr.update(**more))
        return result

    def placeholders(self, form: Mapping[str, Any], key: str, automatic: Mapping[str, Any]) -> list[Any]:
        """Updates while the user types: what open fields will come to, and which settings the chosen objective has."""
        import gradio as gr

        own = walk.own_fields(key, objective_of(form))
        result: list[Any] = []
        for path, field in self.fields.items():
            declared = own.get(path, field)
            told = automatic.get(path)
            if path.startswith(f"{walk.OBJECTIVE}.") and walk.of_one(path):
                result.append(gr.update(visible=path in own))
            elif told is None or not hasattr(self.controls[path], "placeholder"):
                result.append(gr.skip())
            else:
                result.append(gr.update(placeholder=self._placeholder(declared, default_of(key, path, declared), told)))
        return result

    def _placeholder(self, field: FieldInfo, usual: Any, automatic: Any) -> str:
        if automatic is not None:
            told = f"{automatic:g}" if isinstance(automatic, float) else str(automatic)
            return f"{self.t('common.automatic')}: {told}"
        if usual is None:
            return self.t("common.automatic")
        if isinstance(usual, tuple):
            return ", ".join(map(str, usual)) or self.t("common.none")
        return f"{usual:g}" if isinstance(usual, float) else str(usual)


def tables(
    form: Mapping[str, Any], *, model: str, data: Mapping[str, Any], key: str, goal: str, name: str = ""
) -> dict[str, object]:
    """The tables of a run, as parse_spec() takes them. What only other methods have is left out."""
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
