"""Full fine-tuning of the last blocks"""

from finetune_local.spec.methods import Method

METHOD = Method(
    key="last-layers",
    title="Last layers",
    family="full",
    summary="Trains all weights of the last blocks; nothing below them is computed backwards, so steps are fast.",
    paper="",
    presets={"method.train_weights": "layers", "method.layers": "last:2"},
)
