"""LoRA-drop"""

from finetune_local.spec.methods import Method

METHOD = Method(
    key="lora-drop",
    title="LoRA-drop",
    family="lora_drop",
    summary="LoRA only where a short trial shows that it does much; the other layers share one per kind of matrix.",
    paper="arXiv:2402.07721",
)
