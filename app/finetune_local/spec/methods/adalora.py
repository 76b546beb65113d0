"""AdaLoRA"""

from finetune_local.spec.methods import Method

METHOD = Method(
    key="adalora",
    title="AdaLoRA",
    family="adalora",
    summary="LoRA in SVD form that begins with a high rank and prunes it where it matters least; slower than LoRA.",
    paper="arXiv:2303.10512",
)
