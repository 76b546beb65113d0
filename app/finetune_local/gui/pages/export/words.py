"""The words of export targets: those of assets/strings/targets.toml and quants.toml, else the ones that the target declares."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune_local.export.targets import Command, Quant, Target
    from finetune_local.gui.i18n.strings import Strings


def target_title(t: Strings, target: Target) -> str:
    """What a target is called."""
    return t.get(f"targets.{target.key}.title") or target.title


def target_summary(t: Strings, target: Target) -> str:
    """What a target is for, in a sentence."""
    return t.get(f"targets.{target.key}.summary") or target.summary


def quants_title(t: Strings, target: Target) -> str:
    """What a choice among a target's quantization types is called."""
    return t.get(f"targets.{target.key}.quants_title") or target.quants_title


def quant_title(t: Strings, quant: Quant) -> str:
    """What a quantization type is called."""
    return t.get(f"quants.{quant.key}.title") or quant.title


def quant_summary(t: Strings, quant: Quant) -> str:
    """What a quantization type is for, in a sentence."""
    return t.get(f"quants.{quant.key}.summary") or quant.summary


def command_title(t: Strings, command: Command) -> str:
    """What a command does."""
    return t.get(f"targets.commands.{command.key}") or command.title
