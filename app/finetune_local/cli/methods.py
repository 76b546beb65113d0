"""`methods`: the fine-tuning methods and the backends that support them; one of them with its settings and its page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from finetune_local.cli.common import emit, json_option, table

if TYPE_CHECKING:
    from finetune_local.backend import Backend
    from finetune_local.spec.tuners import Preset


@click.command("methods", short_help="List the fine-tuning methods and where each works.")
@click.argument("method", required=False)
@json_option
def command(method: str | None, as_json: bool) -> None:
    """List the fine-tuning methods and the backends that support them; with METHOD, show its page and its settings."""
    from finetune_local.backend import backends
    from finetune_local.spec.tuners import preset_named, presets

    known = backends()
    if method is not None:
        _show_method(preset_named(method), known, as_json)
        return
    if as_json:
        emit([asdict(_facts(m, known)) for m in presets().values()])
        return
    marks = {True: "yes", False: "no"}
    table(
        ["method", *known, "what it does"],
        [[m.key, *(marks[m.tuner in b.tuners()] for b in known.values()), m.summary] for m in presets().values()],
    )


@dataclass(frozen=True)
class _MethodFacts:
    """What `methods --json` prints of a method: the backends by name, whether each supports it, and its default settings by path."""

    key: str
    title: str
    summary: str
    paper: str
    backends: Mapping[str, bool]
    presets: Mapping[str, object]


def _facts(method: Preset, known: Mapping[str, Backend]) -> _MethodFacts:
    supported = {name: method.tuner in backend.tuners() for name, backend in known.items()}
    return _MethodFacts(method.key, method.title, method.summary, method.paper, supported, dict(method.defaults))


def _show_method(method: Preset, known: Mapping[str, Backend], as_json: bool) -> None:
    """Show one method: its page, its preset values, and its settings with defaults."""
    from finetune_local.cli.spec_options import shown_default
    from finetune_local.spec.tuners import tuners
    from finetune_local.system.fields import flag_of
    from finetune_local.system.paths import method_page

    settings = [
        {
            "setting": name,
            "option": flag_of(name, field),
            "default": method.defaults.get(f"method.{name}", field.default),
            "help": field.description or "",
        }
        for name, field in tuners()[method.tuner].settings.model_fields.items()
    ]
    page = method_page(method.key)
    text = page.read_text("utf-8") if page.is_file() else f"# {method.title}\n\n{method.summary}\n"
    facts = _facts(method, known)
    if as_json:
        emit({**asdict(facts), "settings": settings, "text": text})
        return
    click.echo(text)
    click.echo(f"backends: {', '.join(name for name, has in facts.backends.items() if has) or 'none here'}")
    elsewhere = {path: value for path, value in method.defaults.items() if not path.startswith("method.")}
    if elsewhere:
        click.echo("the name also stands for: " + ", ".join(f"{p} = {shown_default(v)}" for p, v in elsewhere.items()))
    click.echo()
    if settings:
        table(
            ["option", "default", "what it does"],
            [[s["option"], shown_default(s["default"]), s["help"]] for s in settings],
        )
