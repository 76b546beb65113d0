"""Prompt tuning"""

from finetune_local.spec.methods import Method

METHOD = Method(
    key="prompt",
    title="Prompt tuning",
    family="prompt",
    summary="Trains a few vectors that stand before every text like tokens; the smallest file, not mergeable.",
    paper="arXiv:2104.08691",
)
