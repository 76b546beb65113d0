"""What to say of an example that the objective does not learn from."""

from __future__ import annotations

from collections.abc import Mapping

from finetune_local.spec.objectives import ExampleKind, Objective, learning_from

NAMES: Mapping[ExampleKind, str] = {
    "conversation": "a conversation",
    "text": "a plain text",
    "pair": "preference data ('chosen' and 'rejected')",
}


def other_kind(kind: ExampleKind, objective: Objective) -> str:
    """The reason why a row of this kind is rejected, and which objectives learn from it."""
    return f"it is {NAMES[kind]}, but --objective {objective.key} learns from {_wanted(objective)}.{_instead(kind)}"


def pair_refused() -> str:
    """The reason why a pair of answers is rejected where each answer would be learned."""
    return (
        "it is preference data ('chosen' and 'rejected'), but fine-tuning on answers needs one answer per row."
        f"{_instead('pair')} Make rows of the prompt and the chosen answer."
    )


def _wanted(objective: Objective) -> str:
    return " and ".join(sorted(NAMES[kind] for kind in objective.examples))


def _instead(kind: ExampleKind) -> str:
    known = learning_from(kind)
    return f" Use --objective {' or --objective '.join(known)}." if known else ""
