"""LoRA"""

from finetune_local.spec.methods import Method

METHOD = Method(
    key="lora",
    title="LoRA",
    family="low_rank",
    summary="Trains a small low-rank update beside each linear layer; the base stays as it is.",
    paper="arXiv:2106.09685",
)
