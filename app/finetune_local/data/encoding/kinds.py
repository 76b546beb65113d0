"""What to say of an example that the objective does not learn from."""

from __future__ import annotations

from collections.abc import Mapping

from finetune_local.spec.objectives import ExampleKind, Objective, learning_from
from finetune_local.system.messages import Message, join_messages, msg

NAMES: Mapping[ExampleKind, str] = {
    "conversation": msg("a conversation"),
    "text": msg("a plain text"),
    "pair": msg("preference data ('chosen' and 'rejected')"),
}
SEVERAL: Mapping[ExampleKind, str] = {
    "conversation": msg("conversations"),
    "text": msg("plain texts"),
    "pair": msg("pairs of a chosen and a rejected answer"),
}


def other_kind(kind: ExampleKind, objective: Objective) -> Message:
    """The reason why a row of this kind is rejected, and which objectives learn from it."""
    return msg(
        "it is {names}, but --objective {key} learns from {wanted}.{instead}",
        names=NAMES[kind],
        key=objective.key,
        wanted=_learned_kinds(objective),
        instead=_instead(kind),
    )


def pair_refused() -> Message:
    """The reason why a pair of answers is rejected where each answer would be learned."""
    return msg(
        "it is preference data ('chosen' and 'rejected'), but fine-tuning on answers needs one answer per "
        "row.{instead} Make rows of the prompt and the chosen answer.",
        instead=_instead("pair"),
    )


def _learned_kinds(objective: Objective) -> Message:
    return join_messages(" and ", [SEVERAL[kind] for kind in sorted(objective.examples)])


def _instead(kind: ExampleKind) -> str:
    known = learning_from(kind)
    return msg(" Use --objective {known}.", known=" or --objective ".join(known)) if known else ""
