"""Parallel adapters"""

from finetune_local.spec.methods import Method

METHOD = Method(
    key="parallel-adapter",
    title="Parallel adapters",
    family="bottleneck",
    summary="A small non-linear layer beside each MLP, scaled up; reads what the MLP reads.",
    paper="arXiv:2110.04366",
    presets={"method.adapter_placing": "parallel", "method.adapter_sublayers": "mlp", "method.adapter_scale": 4.0},
)
