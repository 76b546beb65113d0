"""Job: what `evaluate` does. Stopped, nothing of it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_local.evaluation.evaluate import run as evaluate
from finetune_local.evaluation.report import Choices
from finetune_local.runtime.kinds import Tell
from finetune_local.system.errors import SpecError
from finetune_local.system.messages import msg
from finetune_local.system.paths import Home


def run(arguments: Mapping[str, Any], home: Home, tell: Tell) -> dict[str, Any]:
    """`arguments`: model, adapter, backend, precision, and those of Choices that are plain; all may be left out.

    The progress's texts are "opening: …" and then the conditions' names. The result has evaluation (its name), folder, verdict,
    rows. Raises what evaluating raises.
    """
    given = dict(arguments)
    named = {key: given.pop(key, None) for key in ("model", "adapter", "precision")}
    backend = str(given.pop("backend", None) or "auto")
    try:
        choices = choices_of(given)
    except TypeError as error:
        raise SpecError(msg("an evaluation cannot be asked for so: {reason}.", reason=error)) from None
    tell(msg("opening the model"))
    done = evaluate(
        home,
        named["model"],
        named["adapter"],
        choices,
        backend=backend,
        precision=named["precision"],
        note=tell.note,
        opening=tell,
        progress=lambda name, share: tell(name, share),
    )
    result = done.saved.result
    return {
        "evaluation": done.saved.name,
        "folder": str(done.saved.folder),
        "verdict": result["verdict"],
        "rows": result["rows"],
    }


def choices_of(given: Mapping[str, Any]) -> Choices:
    """Choices from plain JSON. Raises TypeError for a name there is not."""
    values: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    values |= {key: tuple(values[key]) for key in ("columns", "scrub") if key in values}
    values |= {"data": tuple(Path(name) for name in values.get("data", ()))}
    if "examples" in values:
        values["examples"] = Path(values["examples"])
    return Choices(**values)
