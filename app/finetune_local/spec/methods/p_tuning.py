"""P-tuning"""

from types import MappingProxyType

from finetune_local.spec.methods import Method

METHOD = Method(
    key="p-tuning",
    title="P-tuning",
    family="prompt",
    summary="Trains a small network that makes the prompt; the result is a plain prompt, not mergeable.",
    paper="arXiv:2103.10385",
    presets=MappingProxyType({"method.prompt_encoder": "mlp"}),
)
