"""IA³"""

from finetune_local.spec.methods import Method

METHOD = Method(
    key="ia3",
    title="IA³",
    family="ia3",
    summary="Scales keys, values and the MLP's inner vector by learned factors: very few parameters, merges exactly.",
    paper="arXiv:2205.05638",
    presets={"method.targets": ("k_proj", "v_proj", "down_proj")},
)
