"""`generate`: one prompt, one answer."""

from __future__ import annotations

import sys
from typing import Any

import click

from finetune_local.cli.common import (
    backend_option,
    emit,
    home_option,
    json_option,
    model_option,
    note,
    precision_option,
    say,
    stdin_text,
)
from finetune_local.cli.spec_options import settings_from, settings_options
from finetune_local.inference.sampling import Sampling
from finetune_local.system import paths

ORDER = 5


@click.command("generate", short_help="Answer one prompt.")
@model_option
@click.option("--adapter", metavar="NAME", default=None, help="Adapter: a run, a name from `adapters`, or a folder.")
@click.option("--prompt", metavar="TEXT", required=True, help="The question; - reads it from standard input.")
@click.option("--system", metavar="TEXT", default=None, help="System prompt.")
@click.option(
    "--raw/--chat",
    default=None,
    help="Continue the text as it is, without the chat template. Automatic: as the adapter was trained.",
)
@settings_options(Sampling)
@backend_option
@precision_option
@home_option
@json_option
def command(
    model: str | None,
    adapter: str | None,
    prompt: str,
    system: str | None,
    raw: bool | None,
    backend: str,
    precision: str | None,
    home: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Answer one prompt.

    \b
    finetune-local generate --adapter my-run --prompt "What is the capital of France?"
    """
    from finetune_local.adapters.companions import trained_raw
    from finetune_local.inference.engine import open_chat, prompt_of
    from finetune_local.inference.generate import answer

    sampling = settings_from(Sampling, settings)
    text = stdin_text().read() if prompt == "-" else prompt
    opened = open_chat(
        paths.home(home),
        model,
        [adapter] if adapter else [],
        backend=backend,
        precision=precision,
        note=note,
        progress=_progress,
    )
    if raw is None:
        raw = any(trained_raw(folder) for folder in opened.adapters.values())
    result = answer(
        opened.session,
        opened.tokenizer,
        prompt_of(opened.tokenizer, text, system, raw),
        sampling,
        opened.model.context_length,
        on_text=_silent if as_json else say,
    )
    if not as_json:
        click.echo()
        return
    emit(
        {
            "text": result.text,
            "prompt_tokens": result.prompt_tokens,
            "tokens": result.tokens,
            "seconds": round(result.seconds, 3),
            "stop": result.stop,
            "model": opened.model.name,
            "adapter": opened.active,
            "backend": opened.backend,
        }
    )


def _progress(text: str, _done: float | None) -> None:
    """Show what is being loaded, on a terminal only."""
    if sys.stderr.isatty():
        note(f"{text} …")


def _silent(_piece: str) -> None:
    pass
