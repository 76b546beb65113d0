"""Bottleneck adapters as Pfeiffer et al. place them"""

from finetune_local.spec.methods import Method

METHOD = Method(
    key="adapter-pfeiffer",
    title="Bottleneck adapters (Pfeiffer)",
    family="bottleneck",
    summary="One small non-linear layer per block, after the MLP: half of Houlsby's cost.",
    paper="arXiv:2005.00247",
    presets={"method.adapter_sublayers": "mlp"},
)
