"""QDoRA"""

from finetune_local.spec.methods import Method

METHOD = Method(
    key="qdora",
    title="QDoRA",
    family="low_rank",
    summary="DoRA on a base held in 4-bit.",
    paper="arXiv:2402.09353",
    presets={"model.precision": "4-bit", "training.optimizer": "paged-adamw", "method.use_dora": True},
)
