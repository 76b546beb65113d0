"""PiSSA"""

from finetune_local.spec.methods import Method

METHOD = Method(
    key="pissa",
    title="PiSSA",
    family="low_rank",
    summary="LoRA that starts from the weights' largest singular values instead of from nothing.",
    paper="arXiv:2404.02948",
    presets={"method.start": "pissa"},
)
