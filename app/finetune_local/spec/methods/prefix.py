"""Prefix tuning"""

from finetune_local.spec.methods import Method

METHOD = Method(
    key="prefix",
    title="Prefix tuning",
    family="prefix",
    summary="Trains keys and values that stand before every text in every layer; a tiny file, not mergeable.",
    paper="arXiv:2101.00190",
)
