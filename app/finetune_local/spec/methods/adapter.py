"""Bottleneck adapters as Houlsby et al. place them"""

from finetune_local.spec.methods import Method

METHOD = Method(
    key="adapter",
    title="Bottleneck adapters (Houlsby)",
    family="bottleneck",
    summary="Small non-linear layers after attention and MLP of each block; slower to answer, cannot be merged.",
    paper="arXiv:1902.00751",
    presets={"method.adapter_activation": "gelu"},
)
