"""LoRA-FA"""

from finetune_local.spec.methods import Method

METHOD = Method(
    key="lora-fa",
    title="LoRA-FA",
    family="low_rank",
    summary="LoRA with a frozen A: half the trained numbers, and less memory for activations.",
    paper="arXiv:2308.03303",
    presets={"method.freeze_a": True},
)
