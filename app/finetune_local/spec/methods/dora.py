"""DoRA"""

from finetune_local.spec.methods import Method

METHOD = Method(
    key="dora",
    title="DoRA",
    family="low_rank",
    summary="LoRA that trains magnitude and direction apart; closer to full fine-tuning, slower.",
    paper="arXiv:2402.09353",
    presets={"method.use_dora": True},
)
