"""Run a spec to its end in a scratch folder and return its loss curve, for parity between backends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_local.spec.run import parse_spec
from finetune_local.system.paths import Home
from finetune_local.training.check import check_before_loading
from finetune_local.training.events import Step
from finetune_local.training.run_folder import follow, runs


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
