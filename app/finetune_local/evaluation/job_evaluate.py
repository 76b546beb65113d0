"""Job kind: an evaluation, as `evaluate` runs it. A stopped one saves nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_local.evaluation.report import Choices
from finetune_local.runtime.kinds import JobKind, Reporter
from finetune_local.system.errors import SpecError
from finetune_local.system.messages import msg
from finetune_local.system.paths import Home


def run(arguments: Mapping[str, Any], home: Home, report: Reporter) -> Mapping[str, Any]:
    """`arguments`: model, adapter, backend, precision, and the fields of Choices as plain JSON; all are optional.

    Progress reports loading, then each condition's name. The result has evaluation (its name), folder, verdict and rows. Raises what
    evaluate.run() raises.
    """
    from finetune_local.evaluation.evaluate import run as evaluate

    options = dict(arguments)
    named = {key: options.pop(key, None) for key in ("model", "adapter", "precision")}
    backend = str(options.pop("backend", None) or "auto")
    try:
        choices = choices_of(options)
    except TypeError as error:
        raise SpecError(msg("these evaluation settings cannot be used: {reason}.", reason=error)) from None
    report(msg("loading the model"))
    done = evaluate(
        home,
        named["model"],
        named["adapter"],
        choices,
        backend=backend,
        precision=named["precision"],
        note=report.note,
        opening=report,
        progress=lambda name, share: report(name, share),
    )
    result = done.saved.result
    return {
        "evaluation": done.saved.name,
        "folder": str(done.saved.folder),
        "verdict": result["verdict"],
        "rows": result["rows"],
    }


def choices_of(options: Mapping[str, Any]) -> Choices:
    """Choices from plain JSON. Raises TypeError for an unknown name."""
    values: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    values |= {key: tuple(values[key]) for key in ("columns", "scrub") if key in values}
    values |= {"data": tuple(Path(name) for name in values.get("data", ()))}
    if "examples" in values:
        values["examples"] = Path(values["examples"])
    return Choices(**values)


KIND = JobKind("evaluate", run)
