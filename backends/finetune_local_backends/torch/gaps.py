"""What torch cannot do here, one line each; shown to the user and asserted by a test. Full training on a quantised base is
refused by tuners/full.py, since it is a mix of two settings and not a value of one."""

from __future__ import annotations

from finetune_local.backend import Gap
from finetune_local.system.messages import msg

OPTIMIZER = "training.optimizer"
_PAGED = msg("paging moves optimizer states between a card and the machine's memory, and here both are the same")

AFFINE = msg("bitsandbytes, which quantises for torch, has no affine 4-bit groups; only MLX has them")

GAPS: tuple[Gap, ...] = (
    Gap("model.quantisation", "affine", "", AFFINE, "nf4"),
    Gap(OPTIMIZER, "paged-adamw", "cpu", _PAGED, "adamw"),
    Gap(OPTIMIZER, "paged-adamw-8bit", "cpu", _PAGED, "adamw-8bit"),
)
