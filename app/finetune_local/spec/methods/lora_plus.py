"""LoRA+"""

from finetune_local.spec.methods import Method

METHOD = Method(
    key="lora-plus",
    title="LoRA+",
    family="low_rank",
    summary="LoRA whose B learns 16 times as fast as its A: reaches the same loss in fewer steps.",
    paper="arXiv:2402.12354",
    presets={"method.b_rate_ratio": 16.0},
)
