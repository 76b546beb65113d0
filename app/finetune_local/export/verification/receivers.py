"""The receivers: plain transformers and plain mlx-lm for a merged folder, llama.cpp for a GGUF file.

Also how an export is opened in each, and which models plain mlx-lm is known not to support, or only in part.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from finetune_local.export.engines.llama import INSTALL, LlamaCpp, LlamaFailed, available
from finetune_local.export.engines.process import Question, ReceiverReply, Request, run_receiver
from finetune_local.export.verification.candidates import TOP, FolderCandidate, GgufCandidate
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
from finetune_local.models.folder import CONFIG, read_json
from finetune_local.system.errors import VerificationFailed
from finetune_local.system.messages import msg
from finetune_local.system.paths import assets

_SCRIPTS = assets() / "receivers"

# Model families that plain mlx-lm computes as transformers does; a test opens one of each. mlx-lm supports more, but some of those
# give silently wrong results.
MLX_LM_HOLDS = frozenset(
    (
        "apertus", "cohere", "cohere2", "deepseek_v2", "deepseek_v3", "ernie4_5", "exaone4", "falcon_h1", "gemma", "gemma2",
        "gemma3", "gemma3_text", "gemma4", "gemma4_text", "glm4", "glm4_moe", "gpt_neox", "granite", "granitemoe", "helium",
        "hunyuan_v1_dense", "internlm3", "lfm2", "lfm2_moe", "llama", "ministral3", "mistral", "mixtral", "nemotron",
        "nemotron_h", "olmo2", "olmo3", "olmoe", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next",
        "seed_oss", "smollm3", "stablelm", "starcoder2",
    )
)  # fmt: skip
_HEADLESS = ("cohere", "cohere2", "gemma", "gemma2", "gpt2", "lfm2", "lfm2_moe")
_OWN_HEAD = ("deepseek_v2", "deepseek_v3", "glm4", "glm4_moe", "nemotron_h", "phi", "qwen2_moe", "stablelm")
_PATTERNED = ("cohere2", "gemma3", "gemma3_text")
_WINDOWED = ("cohere2", "exaone4", "gemma3", "gemma3_text", "gemma4", "gemma4_text", "gpt_oss", "ministral3", "olmo3")

# mlx's Linux wheels multiply matrices about 40 times slower than torch.
_FEW = None if sys.platform == "darwin" else 2
_ACCENTS = msg(
    "llama.cpp does not combine letters and accents (NFC) as this tokenizer does: texts that write them "
    "separately are tokenized differently"
)


def _no_limit(_: Mapping[str, Any]) -> str:
    return ""


@dataclass(frozen=True)
class Program:
    """A program that opens folders. `limit(config)` is the reason why it cannot run a model, "" if it can."""

    name: str
    worker: Path
    needs: Sequence[str]
    limit: Callable[[Mapping[str, Any]], str] = _no_limit
    note: Callable[[Mapping[str, Any]], str] = _no_limit
    most_prompts: int | None = None
    """Number of prompts, the shortest ones, whose answers are compared; None for all."""


def mlx_lm_limit(config: Mapping[str, Any]) -> str:
    """Why plain mlx-lm cannot run a merged folder with this config.json, as a sentence; "" if it can."""
    text = config.get("text_config")
    text = text if isinstance(text, Mapping) else config
    family, kind = str(config.get("model_type")), str(text.get("model_type"))
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    if family not in MLX_LM_HOLDS:
        return msg(
            "mlx-lm's class for models of the family '{family}' has not been verified against transformers",
            family=family,
        )
    if tied is False and kind in _HEADLESS:
        return msg(
            "mlx-lm's class for {family} has no separate head, and this model's head is not the embedding", family=kind
        )
    if tied and kind in _OWN_HEAD:
        return msg(
            "mlx-lm's class for {family} needs a separate head, and this model's head is the embedding", family=kind
        )
    types = text.get("layer_types")
    if isinstance(types, list) and "sliding_attention" in types:
        if kind in _PATTERNED and "sliding_window_pattern" not in text:
            return msg(
                "mlx-lm's class for {family} cannot compute this model's pattern of sliding-window layers", family=kind
            )
        if kind in _WINDOWED and "full_attention" not in types:
            return msg(
                "mlx-lm's class for {family} cannot compute a model whose layers all have a sliding window", family=kind
            )
    return ""


def mlx_lm_note(config: Mapping[str, Any]) -> str:
    """A note on partial support: a sliding window that mlx-lm's class ignores matters only for texts longer than the window."""
    text = config.get("text_config")
    text = text if isinstance(text, Mapping) else config
    window, kind = text.get("sliding_window"), str(text.get("model_type"))
    if not isinstance(window, int) or text.get("use_sliding_window") is False or kind in _WINDOWED:
        return ""
    types = text.get("layer_types")
    if isinstance(types, list) and "sliding_attention" not in types:
        return ""
    return msg(
        "mlx-lm's class for {family} has no sliding window: it is exact only for texts of up to {n} tokens",
        family=kind,
        n=window,
    )


TRANSFORMERS = Program("transformers", _SCRIPTS / "open_with_transformers.py", ("torch", "transformers"))
MLX_LM = Program("mlx-lm", _SCRIPTS / "open_with_mlx_lm.py", ("mlx", "mlx_lm"), mlx_lm_limit, mlx_lm_note, _FEW)
PROGRAMS: Sequence[Program] = (TRANSFORMERS, MLX_LM)


def _open_folder(program: Program, out: Path, ground: Ground, check: ReceiverCheck) -> None:
    """Have one program open a merged folder. Raises the verification's error."""
    config = read_json(out / CONFIG, "")
    if limit := program.limit(config):
        check.reason = msg("not verified: {reason}", reason=limit)
        return
    expected = ground.expected
    shortest = sorted(ground.references, key=lambda r: len(r.probe.ids) + len(r.answer))[: program.most_prompts]
    references = [reference for reference in ground.references if any(reference is one for one in shortest)]
    reply = run_receiver(
        program.worker,
        program.needs,
        Request(
            out,
            ground.dtype,
            ground.device,
            expected.chats,
            expected.texts,
            [Question(r.probe.ids, r.answer[:-1]) for r in references],
            expected.stop_ids,
            expected.plain_token,
        ),
    )
    if reply.absent:
        check.reason = msg("not verified: {reason}", reason=reply.absent)
        return
    if reply.failed:
        raise VerificationFailed(
            msg("{receiver} cannot load the export: {error}", receiver=program.name, error=reply.failed)
        )
    check.version = reply.version
    if note := program.note(config):
        check.notes.append(note)
    if len(references) < len(ground.references):
        check.notes.append(
            msg(
                "{program} was tested with only the {count} shortest of {all} prompts, because it is slow here",
                program=program.name,
                count=len(references),
                all=len(ground.references),
            )
        )
    candidate = FolderCandidate(reply, expected.chats, expected.texts, [reference.probe for reference in references])
    chats = [chat for chat in expected.chats if not _renders_with_thinking(check, reply, expected, candidate, chat)]
    compare_reading(check, candidate, expected, chats)
    compare_stops(check, candidate, expected)
    compare_answers(check, candidate, expected, references, ground.limits)
    check.passed = not check.reason


def _renders_with_thinking(
    check: ReceiverCheck, reply: ReceiverReply, expected: Expected, candidate: FolderCandidate, chat: Any
) -> bool:
    """Whether mlx-lm renders a chat differently because it passes enable_thinking to the template, which no file can turn off; noted
    once."""
    if reply.thinks is None:
        return False
    (found,) = candidate.renderings([chat])
    if not differing(expected, chat, found) or differing(expected, chat, found, enable_thinking=reply.thinks):
        return False
    check.reason = check.reason or (
        msg(
            "{receiver} renders this template with enable_thinking={value}, so the prompt differs from the one "
            "in training",
            receiver=check.name,
            value=reply.thinks,
        )
    )
    return True


def receivers_of(programs: Sequence[Program]) -> tuple[Receiver, ...]:
    """Programs as receivers of merged folders."""
    return tuple(
        Receiver(program.name, partial(_open_folder, program), msg("the whole vocabulary")) for program in programs
    )


FOLDER_RECEIVERS = receivers_of(PROGRAMS)


def _open_gguf(out: Path, ground: Ground, check: ReceiverCheck) -> None:
    """Open a GGUF in llama.cpp. Raises the verification's error."""
    expected = ground.expected
    context = max(len(r.probe.ids) + len(r.answer) for r in ground.references) + 64
    try:
        with LlamaCpp(out, context, expected.plain_token) as llama:
            candidate = GgufCandidate(llama)
            _check_stored_template(out, expected)
            # llama.cpp continues an answer at the end of a chat instead of closing it.
            chats = [chat for chat in expected.chats if chat.generation_prompt and expected.template is not None]
            compare_reading(check, candidate, expected, [chat for chat in chats if chat.plain])
            for chat in chats:
                if chat.plain:
                    continue
                (found,) = candidate.renderings([chat])
                if difference := differing(expected, chat, found):
                    check.notes.append(
                        msg(
                            "llama.cpp renders a chat with {title} differently: {difference}",
                            title=quoted(chat.title),
                            difference=difference,
                        )
                    )
                else:
                    check.chats += 1
            compare_stops(check, candidate, expected)
            compare_answers(check, candidate, expected, ground.references, ground.limits)
            if expected.composes:
                check.notes.append(_ACCENTS)
    except LlamaFailed as error:
        raise VerificationFailed(msg("llama.cpp cannot run the export: {error}", error=error)) from error
    check.passed = True


def _check_stored_template(out: Path, expected: Expected) -> None:
    """Check that the template stored in a GGUF renders every chat as the app's does. Raises the verification's error."""
    from gguf import GGUFReader

    entry = GGUFReader(out).get_field("tokenizer.chat_template")
    stored = str(entry.contents()) if entry is not None else None
    if (stored is None) != (expected.template is None):
        whose = (
            msg("the app has one and the export none") if stored is None else msg("the export has one and the app none")
        )
        raise VerificationFailed(msg("chat template: {whose}.", whose=whose))
    theirs = replace(expected, template=stored)
    for chat in expected.chats:
        if difference := differing(expected, chat, theirs.rendering(chat)):
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
        else msg("not verified: llama.cpp is needed to run a GGUF and is not installed. {install}", install=INSTALL)
    )


LLAMA_CPP = Receiver(
    "llama.cpp",
    _open_gguf,
    kl_over=msg("the {number} most likely tokens, with all others as one", number=TOP),
    missing=_missing,
)
