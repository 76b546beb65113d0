"""Errors of the backends' sessions."""

from __future__ import annotations

from collections.abc import Iterable

from finetune_local.system.errors import AdapterError, Unsupported
from finetune_local.system.messages import msg


def taken(name: str) -> AdapterError:
    """An adapter is attached under a name that another one has."""
    return AdapterError(msg("an adapter called '{name}' is already in memory. Detach it first.", name=name))


def unknown(name: str, known: Iterable[str]) -> AdapterError:
    """No adapter of this name is attached."""
    names = ", ".join(known) or msg("none")
    return AdapterError(msg("no adapter called '{name}' is in memory. In memory: {names}.", name=name, names=names))


def lacks_optimizer(name: str, reason: str, instead: object) -> Unsupported:
    """The backend has no such optimizer here."""
    return Unsupported(
        msg("--optimizer {name}: {reason}. Use --optimizer {instead}.", name=name, reason=reason, instead=instead)
    )


def past_window(length: int, window: int) -> Unsupported:
    """MLX's class lacks the model's sliding window, and a text is longer than it."""
    return Unsupported(
        msg(
            "a text of {tokens} tokens is longer than this model's sliding window of {window}, which MLX's class "
            "for it does not implement. Lower --max-length or use --backend torch.",
            tokens=length,
            window=window,
        )
    )
