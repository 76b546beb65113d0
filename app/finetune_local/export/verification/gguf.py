"""How a GGUF file is verified: opened by llama.cpp, with the template that the file holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from finetune_local.export.engines.llama import INSTALL, LlamaCpp, LlamaFailed, available
from finetune_local.export.verification.candidates import TOP, GgufCandidate
from finetune_local.export.verification.compare import (
    ReceiverCheck,
    compare_answers,
    compare_reading,
    compare_stops,
    differing,
    quoted,
)
from finetune_local.export.verification.expected import Expected
from finetune_local.export.verification.verify import Ground, Receiver
from finetune_local.system.errors import VerificationFailed
from finetune_local.system.messages import msg

_ACCENTS = msg(
    "llama.cpp does not put letters and accents together (NFC) as this tokenizer does: texts that write "
    "them apart are read as other tokens"
)


def _open(out: Path, ground: Ground, check: ReceiverCheck) -> None:
    """Open a GGUF in llama.cpp. Raises the verification's error."""
    wanted = ground.expected
    context = max(len(r.probe.ids) + len(r.answer) for r in ground.references) + 64
    try:
        with LlamaCpp(out, context, wanted.plain_token) as llama:
            candidate = GgufCandidate(llama)
            _check_stored_template(out, wanted)
            # llama.cpp continues an answer at the end of a chat instead of closing it.
            chats = [chat for chat in wanted.chats if chat.generation_prompt and wanted.template is not None]
            compare_reading(check, candidate, wanted, [chat for chat in chats if chat.plain])
            for chat in chats:
                if chat.plain:
                    continue
                (found,) = candidate.renderings([chat])
                if difference := differing(wanted, chat, found):
                    check.notes.append(
                        msg(
                            "llama.cpp renders a chat with {title} otherwise: {difference}",
                            title=quoted(chat.title),
                            difference=difference,
                        )
                    )
                else:
                    check.chats += 1
            compare_stops(check, candidate, wanted)
            compare_answers(check, candidate, wanted, ground.references, ground.limits)
            if wanted.composes:
                check.notes.append(_ACCENTS)
    except LlamaFailed as error:
        raise VerificationFailed(msg("llama.cpp cannot run the export: {error}", error=error)) from error
    check.passed = True


def _check_stored_template(out: Path, wanted: Expected) -> None:
    """Check that the template stored in a GGUF renders every chat as the app's does. Raises the verification's error."""
    from gguf import GGUFReader

    entry = GGUFReader(out).get_field("tokenizer.chat_template")
    stored = str(entry.contents()) if entry is not None else None
    if (stored is None) != (wanted.template is None):
        whose = (
            msg("the app has one and the export none") if stored is None else msg("the export has one and the app none")
        )
        raise VerificationFailed(msg("chat template: {whose}.", whose=whose))
    theirs = replace(wanted, template=stored)
    for chat in wanted.chats:
        if difference := differing(wanted, chat, theirs.rendering(chat)):
            raise VerificationFailed(
                msg(
                    "chat template: the file's own: a chat with {title}: {difference}",
                    title=quoted(chat.title),
                    difference=difference,
                )
            )


def _missing() -> str:
    return (
        ""
        if available()
        else msg("not checked: llama.cpp is needed to run a GGUF and is not installed. {install}", install=INSTALL)
    )


LLAMA_CPP = Receiver(
    "llama.cpp", _open, kl_over=msg("the {number} likeliest tokens and all others as one", number=TOP), missing=_missing
)
