"""Norms"""

from finetune_local.spec.methods import Method

METHOD = Method(
    key="norms",
    title="Norms",
    family="full",
    summary="Trains the factors of the layer norms and nothing else; works on a 4-bit base too.",
    paper="arXiv:2312.11420",
    presets={"method.train_weights": "norms"},
)
