"""Command-line options made from the spec's fields: every `setting()` is an option, with its help and bounds."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
from pydantic.fields import FieldInfo

from finetune_local.spec import walk
from finetune_local.spec.config_file import read_config, section_name, sections
from finetune_local.spec.run import DEFAULT_METHOD, DEFAULT_OBJECTIVE, RunSpec, parse_spec
from finetune_local.spec.tuners import preset_named, presets
from finetune_local.spec.walk import spec_fields
from finetune_local.system.errors import SpecError, errors_at
from finetune_local.system.fields import Settings, extra_of, flag_of, parse
from finetune_local.system.messages import msg

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S", bound=Settings)


HEADINGS = {"model": "Base model", "data": "Data", "training": "Training"}


class SpecOption(click.Option):
    """An option listed under a heading in the help."""

    def __init__(self, *names: Any, heading: str, **rest: Any) -> None:
        self.heading = heading
        super().__init__(*names, **rest)


class SpecCommand(click.Command):
    """A verb whose help lists settings under headings, and settings of methods under the methods that have them."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See click. Options that are not settings come first, settings of methods last, the most common ones first."""
        parts: dict[str, list[tuple[str, str]]] = {"Options": [], **{title: [] for title in HEADINGS.values()}}
        for title in _headings_of_methods():
            parts[title] = []
        for option in self.get_params(ctx):
            if (shown := option.get_help_record(ctx)) is not None:
                parts[option.heading if isinstance(option, SpecOption) else "Options"].append(shown)
        for title, rows in parts.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def _headings_of_methods() -> list[str]:
    paths = [path for path, _ in spec_fields() if walk.of_one(path)]
    return list(dict.fromkeys(_heading(path) for path in sorted(paths, key=lambda path: -len(walk.owners(path)))))


def _heading(path: str) -> str:
    table = path.rpartition(".")[0]
    if not walk.of_one(path):
        return HEADINGS.get(table, "Options")
    having = walk.owners(path)
    if table == walk.OBJECTIVE:
        return f"Objective {', '.join(having)}"
    lacking = [key for key in presets() if key not in having]
    if len(lacking) < len(having) / 2:
        return f"Methods but {', '.join(lacking)}" if lacking else "All methods"
    return f"Method {', '.join(having)}"


def spec_options(function: F) -> F:
    """Add --config, --method and one option per setting; the verb receives them as keywords for `spec_from`.

    Its class is SpecCommand.
    """
    for path, field in reversed(list(spec_fields())):
        function = _option(path, field, _heading(path))(function)
    function = click.option(
        "--method", "method__key", type=click.Choice(list(presets())), default=None, metavar="METHOD",
        help=f"{', '.join(presets())}; `methods METHOD` explains one and its settings. [lora]",
    )(function)  # fmt: skip
    return click.option(
        "--config", type=click.Path(path_type=Path), default=None, help="A run.toml, or the run.json of a run."
    )(function)


def spec_from(
    values: Mapping[str, Any], config: Path | None, base: Mapping[str, Any] | None = None, source: str = ""
) -> RunSpec:
    """The spec from a config file (or the tables in `base`, read from `source`) and the given options, which take precedence.

    Raises SpecError.
    """
    tables: dict[str, Any] = dict(base or {})
    if config is not None:
        tables = read_config(config)
    where = str(config) if config else source or "command line"
    parse_spec(tables, where)  # report a mistake in the file before options override it
    merged: dict[str, Any] = {k: (dict(v) if isinstance(v, Mapping) else v) for k, v in walk.keyed(tables).items()}
    options = {name: value for name, value in values.items() if value is not None and value != ()}
    _forget_what_followed(merged, options)
    for name, value in options.items():
        table, _, field = name.rpartition("__")
        if table:
            merged.setdefault(table, {})[field] = value
        else:
            merged[field] = value
    return parse_spec(merged, where)


def specs_from(values: Mapping[str, Any], config: Path | None) -> list[RunSpec]:
    """As spec_from(), for a config with [[adapters]] that are trained together; options apply to all of them."""
    if config is None:
        return [spec_from(values, None)]
    tables = read_config(config)
    parts = sections(tables, str(config))
    if len(parts) > 1 and values.get("name"):
        raise SpecError(
            msg(
                "--run names one run, and this config has several: write a name into each of its [[adapters]] sections."
            )
        )
    if len(parts) == 1:
        return [spec_from(values, None, parts[0], str(config))]
    parse(RunSpec, {key: value for key, value in tables.items() if key != "adapters"}, str(config))  # is no section's
    result = []
    for number, part in enumerate(parts, 1):
        place = f"{config}, {section_name(number, part.get('name'))}"
        with errors_at(place):
            result.append(spec_from(values, None, part, place))
    return result


def _forget_what_followed(tables: dict[str, Any], options: Mapping[str, Any]) -> None:
    """Drop automatic values of a config that depend on a setting which an option changes; a run.json contains automatic values too.

    A different method has its own precision, optimizer and learning rate, a different objective its own learning rate, different
    epochs another number of steps, and a different precision or backend another 4-bit type.
    """
    before = str(tables.get("method", {}).get("key", DEFAULT_METHOD))
    after = str(options.get("method__key", before))
    training = tables.get("training", {})
    if after != before:
        tables["method"] = {}
        for path in (*preset_named(before).defaults, *preset_named(after).defaults):
            table, _, name = path.partition(".")
            if table in tables:
                tables[table].pop(name, None)
        if preset_named(before).tuner != preset_named(after).tuner:
            training.pop("learning_rate", None)
    if (
        options.get("objective__key", objective := tables.get("objective", {}).get("key", DEFAULT_OBJECTIVE))
        != objective
    ):
        tables["objective"] = {}
        training.pop("learning_rate", None)
    model = tables.get("model", {})
    precision = (
        options.get("model__precision") or model.get("precision") or preset_named(after).defaults.get("model.precision")
    )
    moved = options.get("backend", tables.get("backend")) != tables.get("backend")
    if precision != "4-bit" or (moved and model.get("quantisation") == "affine"):
        model.pop("quantisation", None)
    if "training__epochs" in options:
        training.pop("max_steps", None)


def settings_options(kind: type[Settings], only: Collection[str] = ()) -> Callable[[F], F]:
    """Add one option per setting of a group (or the named ones); the verb passes them to `settings_from`."""

    def decorate(function: F) -> F:
        for name, field in reversed(list(kind.model_fields.items())):
            if not only or name in only:
                function = _option(name, field)(function)
        return function

    return decorate


def settings_from(kind: type[S], values: Mapping[str, Any]) -> S:
    """The settings of a group from the given options, the others at their defaults. Raises SpecError."""
    return parse(kind, {name: value for name, value in values.items() if value is not None}, "command line")


def _option(path: str, field: FieldInfo, heading: str = "") -> Callable[[F], F]:
    name = path.rpartition(".")[2]
    flag = flag_of(name, field)
    options: dict[str, Any] = {"help": _help(field), "default": None, "metavar": extra_of(field).get("metavar")}
    kind = _without_none(field.annotation)
    if typing.get_origin(kind) is Literal:
        options.update(type=click.Choice([str(v) for v in typing.get_args(kind)]), metavar=None)
    elif typing.get_origin(kind) is tuple:
        (of, *_) = typing.get_args(kind)
        choices = [str(v) for v in typing.get_args(of)] if typing.get_origin(of) is Literal else []
        options.update(multiple=True, type=click.Choice(choices) if choices else str, default=())
    elif kind is bool:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    else:
        options.update(type=kind)
    if heading:
        options.update(cls=SpecOption, heading=heading)
    return click.option(flag, path.replace(".", "__"), **options)


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next(part for part in typing.get_args(kind) if part is not type(None))
    return kind


def _help(field: FieldInfo) -> str:
    text = field.description or ""
    if field.default is None or field.default == () or "utomatic" in text:
        return text
    return f"{text} [{shown_default(field.default)}]"


def shown_default(value: object) -> str:
    """A default in readable form; "" if it is automatic or None."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ", ".join(str(part) for part in value)
    return "" if value is None else str(value)
