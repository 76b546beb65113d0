"""Prompt ensemble"""

from types import MappingProxyType

from finetune_local.spec.methods import Method

METHOD = Method(
    key="prompt-ensemble",
    title="Prompt ensemble",
    family="prompt",
    summary="Trains several prompts at once and lets them vote on every answer; costs as many times the computing.",
    paper="arXiv:2104.08691",
    presets=MappingProxyType({"method.prompt_members": 5}),
)
