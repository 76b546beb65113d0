"""VeRA"""

from finetune_local.spec.methods import Method

METHOD = Method(
    key="vera",
    title="VeRA",
    family="vera",
    summary="LoRA with frozen random matrices that all layers share; trains two vectors per layer, merges.",
    paper="arXiv:2310.11454",
    presets={"method.rank": 256},
)
