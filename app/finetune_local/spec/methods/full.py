"""Full fine-tuning"""

from finetune_local.spec.methods import Method

METHOD = Method(
    key="full",
    title="Full fine-tuning",
    family="full",
    summary="Trains every weight; needs about 16 bytes of memory per parameter.",
    paper="",
)
