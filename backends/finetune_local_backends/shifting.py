"""Which adapters train with shifted sparse attention, and in groups of what size; see spec/shifted.py."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_local.errors import Unsupported
from finetune_local.spec.families import family_of
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import TrainingSettings
from finetune_local.spec.shifted import DEFAULT_GROUP, too_narrow


def group_of(training: TrainingSettings) -> int:
    """Positions in a group, 0 for full attention."""
    return (training.attention_group or DEFAULT_GROUP) if training.attention == "shifted" else 0


def check_shifted(plan: AdapterPlan, training: TrainingSettings, windows: Sequence[int | None]) -> None:
    """Raise Unsupported where an adapter or a base (`windows` of its layers) cannot be trained so."""
    group = group_of(training)
    if group and family_of(plan).positions(plan):
        raise Unsupported(
            f"--attention shifted: method '{plan.method}' puts positions of its own before every text, and only the first group "
            "would see them. Use --attention full, or --method longlora."
        )
    if group and (window := too_narrow(windows, group)) is not None:
        raise Unsupported(
            f"--attention shifted: layers of this model look back {window} positions only, less than a group of {group}. "
            f"Give --attention-group {window} or less, or use --attention full."
        )


def one_group(trainings: Sequence[TrainingSettings]) -> int:
    """The group of adapters that share a pass. Raises Unsupported where they want different ones."""
    groups = {group_of(training) for training in trainings}
    if len(groups) > 1:
        raise Unsupported(
            "adapters that are trained at once need the same --attention and --attention-group: one pass of the base serves "
            "all of them. Train them one after another, or with the same settings."
        )
    return groups.pop()
