"""LongLoRA"""

from finetune_local.spec.methods import Method

METHOD = Method(
    key="longlora",
    title="LongLoRA",
    family="low_rank",
    summary="LoRA on attention, whole embeddings and norms; long rows are trained in shifted groups.",
    paper="arXiv:2309.12307",
    presets={
        "method.targets": ("attention",),
        "method.also_train": ("embeddings", "norms"),
        "training.attention": "shifted",
    },
)
