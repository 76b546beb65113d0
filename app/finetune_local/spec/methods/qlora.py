"""QLoRA"""

from finetune_local.spec.methods import Method

METHOD = Method(
    key="qlora",
    title="QLoRA",
    family="low_rank",
    summary="LoRA on a base held in 4-bit, with paged optimizer states: the least memory.",
    paper="arXiv:2305.14314",
    presets={"model.precision": "4-bit", "training.optimizer": "paged-adamw"},
)
