"""The Gradio control of a setting, built from what `setting()` declares: label, help, choices, default.

The value of a control is what a user would type. An empty one means the default (automatic, if that is None). It is validated by the
same parser as on the command line.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic.fields import FieldInfo

from finetune_local.spec.tuners import preset_named

if TYPE_CHECKING:
    from finetune_local.gui.i18n.strings import Strings

EMPTY = ""


def kind_of(field: FieldInfo) -> tuple[Any, bool]:
    """A field's type without None, and whether None is allowed."""
    annotation = field.annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(annotation) if part is not type(None)]
        return parts[0], len(parts) < len(typing.get_args(annotation))
    return annotation, False


def label_of(t: Strings, path: str) -> str:
    """A setting's label; the last part of its path if the strings have none."""
    return t.get(f"settings.{path}") or path.rpartition(".")[2].replace("_", " ").capitalize()


def value_text(t: Strings, value: Any) -> str:
    """A setting's value as text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return t("common.on" if value else "common.off")
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or t("common.none")
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:g}" if isinstance(value, float) else str(value)


def help_of(t: Strings, path: str, field: FieldInfo) -> str:
    """A setting's help: in English as declared, in Chinese from the strings."""
    return t.get(f"help.{path}") or field.description or ""


def method_title(t: Strings, key: str) -> str:
    """A method's title."""
    return t.get(f"methods.{key}.title") or preset_named(key).title


def method_summary(t: Strings, key: str) -> str:
    """A sentence that says what a method does."""
    return t.get(f"methods.{key}.summary") or preset_named(key).summary


def control(t: Strings, path: str, field: FieldInfo, *, id: str | None = None, **more: Any) -> Any:  # noqa: A002
    """The control of the setting at a dotted path ("training.seed"). `more` overrides options of the Gradio component."""
    import gradio as gr

    kind, optional = kind_of(field)
    options: dict[str, Any] = {
        "label": label_of(t, path),
        "info": help_of(t, path, field),
        "elem_id": id or element_id(path),
        "interactive": True,
        **more,
    }
    if typing.get_origin(kind) is Literal:
        choices = [(t.get(f"choices.{path}.{value}") or str(value), str(value)) for value in typing.get_args(kind)]
        if optional:
            choices.insert(0, (t("common.automatic"), EMPTY))
        return gr.Dropdown(choices, value=EMPTY if optional else str(field.default), **options)
    if kind is bool:
        if optional:
            choices = [(t("common.automatic"), EMPTY), (t("common.on"), "true"), (t("common.off"), "false")]
            return gr.Dropdown(choices, value=EMPTY, **options)
        return gr.Checkbox(value=bool(field.default), **options)
    several = typing.get_origin(kind) is tuple
    if several:
        options["lines"] = 2
    return gr.Textbox(value=EMPTY, placeholder=placeholder(t, field, optional), **options)


def placeholder(t: Strings, field: FieldInfo, optional: bool) -> str:
    """The placeholder of an empty field."""
    if optional or field.default is None:
        return t("common.automatic")
    if isinstance(field.default, tuple):
        return ", ".join(map(str, field.default)) or t("common.none")
    return str(field.default)


def setting_value(field: FieldInfo, value: Any) -> Any:
    """The setting in a control's value; None if it is empty or the default."""
    kind, _ = kind_of(field)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if typing.get_origin(kind) is tuple:
        parts = [part.strip() for line in str(value).splitlines() for part in line.split(",")]
        return [part for part in parts if part]
    if kind is bool and isinstance(value, bool) and value == field.default:
        return None
    if isinstance(value, str) and typing.get_origin(kind) is Literal and value == str(field.default):
        return None
    return value.strip() if isinstance(value, str) else value


def control_value(field: FieldInfo, value: Any) -> Any:
    """The control's value for a setting; None is shown as empty."""
    kind, optional = kind_of(field)
    if typing.get_origin(kind) is tuple:
        return "\n".join(map(str, value or ()))
    if kind is bool:
        if optional:
            return EMPTY if value is None else "true" if value in (True, "true") else "false"
        return bool(field.default) if value is None else bool(value)
    if typing.get_origin(kind) is Literal:
        return (EMPTY if optional else str(field.default)) if value is None else str(value)
    if value is None:
        return EMPTY
    return f"{value:g}" if isinstance(value, float) else str(value)


def element_id(path: str) -> str:
    """The HTML id of a setting's control."""
    return "set-" + path.replace(".", "-").replace("_", "-")
