"""BitFit"""

from finetune_local.spec.methods import Method

METHOD = Method(
    key="bitfit",
    title="BitFit",
    family="bias",
    summary="Trains a bias for each linear layer, adding one where the model has none: very few parameters.",
    paper="arXiv:2106.10199",
)
