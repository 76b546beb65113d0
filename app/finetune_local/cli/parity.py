"""`parity`: train one spec on both backends in fp32; print both curves and the largest difference."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from finetune_local.cli.common import emit, home_option, json_option, note, table
from finetune_local.cli.spec_options import SpecCommand, spec_from, spec_options
from finetune_local.spec.run import parse_spec
from finetune_local.system import paths
from finetune_local.system.messages import msg
from finetune_local.system.paths import Home
from finetune_local.training.check import check_before_loading
from finetune_local.training.events import Step
from finetune_local.training.run_folder import follow, runs

TOLERANCE = 1e-3
STEPS = 20


@click.command("parity", cls=SpecCommand, short_help="Train one spec on both backends and compare the curves.")
@spec_options
@click.option(
    "--steps", type=click.IntRange(1), default=None, help=f"Steps to train; --max-steps is the same. [{STEPS}]"
)
@home_option
@json_option
def command(config: Path | None, steps: int | None, home: str | None, as_json: bool, **settings: Any) -> None:
    """Train one spec on every backend in fp32 with no dropout and compare the losses, step by step.

    Fails (exit code 1) if they differ by more than 1e-3. Given "--precision 4-bit --quantisation nf4", both train on the same
    quantized base; CUDA and Metal compute with it in bf16, so use that on CPUs.
    """
    from finetune_local.spec.run import as_tables
    from finetune_local.system.errors import RunError, SpecError

    if settings.get("backend") not in (None, "auto") or settings.get("device") is not None:
        note("--backend and --device count for nothing here: parity trains on every backend, each on its first device")
    steps = steps or settings.get("training__max_steps") or STEPS
    spec = spec_from(settings, config)
    tables = as_tables(spec)
    if spec.model.quantisation != "nf4":
        if spec.model.precision not in (None, "fp32"):
            note(f"model.precision = fp32 instead of {spec.model.precision}: rounding would hide what is compared")
        tables["model"] |= {"precision": "fp32", "quantisation": "auto"}
    tables["training"] |= {"max_steps": steps, "validate_every": steps, "checkpoint_every": steps, "sample_rows": 0}
    if tables["training"]["optimizer"] != "adamw":
        tables["training"]["optimizer"] = "adamw"
        note("training.optimizer = adamw, the one that both backends have")
    if tables["method"].get("dropout"):
        raise SpecError(msg("--dropout: random numbers differ between backends, so parity needs --dropout 0."))
    place = paths.home(home)
    curves = {}
    with tempfile.TemporaryDirectory(prefix="parity-", dir=place.cache, ignore_cleanup_errors=True) as scratch:
        for name in ("torch", "mlx"):
            note(f"training {steps} steps on {name} …")
            curves[name] = curve_of({**tables, "backend": name, "device": None, "name": name}, place, Path(scratch))
    differences = [abs(a - b) for a, b in zip(curves["torch"], curves["mlx"], strict=True)]
    largest = max(differences)
    if as_json:
        emit(
            {
                "steps": steps,
                **curves,
                "max_difference": largest,
                "tolerance": TOLERANCE,
                "passed": largest <= TOLERANCE,
            }
        )
    else:
        rows = zip(range(1, steps + 1), curves["torch"], curves["mlx"], differences, strict=True)
        table(["step", "torch", "mlx", "difference"], [[s, f"{a:.6f}", f"{b:.6f}", f"{d:.2e}"] for s, a, b, d in rows])
        click.echo(f"largest difference: {largest:.2e} (allowed: {TOLERANCE:g})")
    if largest > TOLERANCE:
        at = differences.index(largest) + 1
        raise RunError(
            msg(
                "the backends differ by {largest} at step {at}, more than {tolerance}.",
                largest=f"{largest:.2e}",
                at=at,
                tolerance=f"{TOLERANCE:g}",
            )
        )


def curve_of(tables: Mapping[str, Any], home: Home, scratch: Path) -> list[float]:
    """The losses of all steps, trained in a separate worker; models come from `home`, the run goes to `scratch`."""
    spec, _ = check_before_loading(parse_spec(tables, "parity"), home, lambda _text, _done: None)
    run = runs.create(Home(scratch), spec)
    position = follow.start(run, home)
    losses: dict[int, float] = {}
    event = None
    try:
        for event in follow.follow(run, position):
            if isinstance(event, Step):
                losses[event.step] = event.loss
    except KeyboardInterrupt:
        run.kill()
        raise
    assert event is not None
    follow.raise_for(event, run)
    return [losses[step] for step in sorted(losses)]
