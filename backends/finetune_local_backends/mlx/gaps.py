"""What the MLX backend cannot do, with the reason the user is shown."""

from __future__ import annotations

from finetune_local.backend import Gap
from finetune_local.system.messages import msg

_PAGED = msg("MLX has no paged optimizer states: CPU and GPU share one memory, so there is nothing to page to")

GAPS: tuple[Gap, ...] = (
    Gap("training.optimizer", "paged-adamw", "", _PAGED, "adamw"),
    Gap("training.optimizer", "paged-adamw-8bit", "", _PAGED, "adamw-8bit"),
)
