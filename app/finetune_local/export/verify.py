"""The gate behind every export: it must read prompts, stop and answer as base + adapter do in the app.

The reference is a session of the chosen backend with base and adapter, in fp32 where memory allows. Compared are
    the token ids of a few prompts, the chat template, the tokens that end an answer;
    the greedy answers, token by token, for formats that keep the weights (quantised ones may word things otherwise);
    the mean KL divergence of the next token's distribution along the reference's answers.
Where greedy answers part at two tokens that the reference itself holds for nearly equal, that is no failure but a near-tie.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from finetune_local.adapters.companions import asking, tokenizer_of
from finetune_local.backend import Backend, Device, choose
from finetune_local.errors import GateFailed, OutOfMemory
from finetune_local.export import Progress, silent
from finetune_local.export.candidates import TOP, Candidate, FolderCandidate, GgufCandidate, Reference, log_softmax
from finetune_local.export.llama import INSTALL, LlamaCpp, LlamaFailed, available
from finetune_local.export.probes import Probe, probes
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.run import Precision

TOKENS = 32


@dataclass(frozen=True)
class Limits:
    """What an export in one number format may differ by.

    kl: mean, in nats per token. tie: two tokens whose reference logits are closer than this may change places; None where
    answers may differ anyway.
    """

    kl: float
    tie: float | None


# Measured on SmolLM2-135M, the least forgiving of models, with a LoRA of its own (docs/export.md): what is written well stays far
# below each limit, and what is written wrongly is beyond.
LIMITS = {
    "f32": Limits(1e-3, 0.05),
    "f16": Limits(2e-3, 0.05),
    "bf16": Limits(2e-2, 0.25),
    "q8_0": Limits(5e-2, None),
    "q6_k": Limits(1e-1, None),
    **dict.fromkeys(("q5_k_m", "q5_1", "q5_0"), Limits(0.3, None)),
    **dict.fromkeys(("q4_k_m", "q4_1", "q4_0"), Limits(0.6, None)),
}


@dataclass
class Gate:
    """The verdict: passed, failed (raised as GateFailed instead) or None, not checked, with the reason."""

    passed: bool | None
    reason: str = ""
    backend: str = ""
    precision: str = ""
    prompts: int = 0
    tokens: int = 0
    equal_texts: int = 0
    near_ties: list[str] = field(default_factory=list)
    kl_mean: float | None = None
    kl_max: float | None = None
    kl_limit: float | None = None
    kl_over: str = ""
    tie_tolerance: float | None = None
    tensors: int = 0
    """Of an adapter alone, which is not run: how many read back equal."""
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """A plain object."""
        return asdict(self)


def verify(
    target: str,
    out: Path,
    kind: str,
    model: ModelFolder,
    adapter: Path | None,
    backend: str = "auto",
    progress: Progress = silent,
) -> Gate:
    """Check an export at `out` in the number format `kind` ("f32", "f16", "bf16", "q8_0").

    Raises GateFailed saying which check, which prompt, at which token. Returns a gate that was not passed (None) where
    it cannot be checked here: xllamacpp missing, or too little memory.
    """
    from finetune_local.data.tokenizer import Tokenizer

    started = time.monotonic()
    if target == "gguf" and not available():
        return Gate(None, f"not checked: llama.cpp is needed to run a GGUF and is not installed. {INSTALL}")
    asked = asking(model.path, adapter)
    tokenizer, template = asked.tokenizer, asked.template
    found = probes(tokenizer, adapter, model.context_length, asked.raw)
    stop_ids = sorted(asked.stop_ids)
    engine, _ = choose(backend)
    precision = _precision(model, engine.devices()[0])
    limits = LIMITS[kind] if precision == "fp32" else max(LIMITS[kind], LIMITS["bf16"], key=lambda limit: limit.kl)
    gate = Gate(
        None,
        backend=engine.name,
        precision=precision,
        prompts=len(found),
        tie_tolerance=limits.tie,
        kl_limit=limits.kl,
    )

    def text(ids: Sequence[int]) -> str:
        return tokenizer.text(ids, special=True)

    try:
        progress("answering as base + adapter", None)
        references = _references(engine, model, adapter, precision, found, stop_ids)
        gc.collect()  # torch's modules hold each other in circles: without this both models would be in memory
        progress("checking the export", 0.0)
        if target == "gguf":
            context = max(len(r.probe.ids) + len(r.answer) for r in references) + 64
            gate.kl_over = f"the {TOP} likeliest tokens and all others as one"
            with LlamaCpp(out, context, tokenizer.ids("a")[-1]) as llama:
                _compare(GgufCandidate(llama, out), references, stop_ids, template, limits, gate, text, progress)
        else:
            gate.kl_over = "the whole vocabulary"
            candidate = FolderCandidate(engine.load(out, precision), Tokenizer.load(out))
            _compare(candidate, references, stop_ids, template, limits, gate, text, progress)
    except LlamaFailed as error:
        raise GateFailed(f"llama.cpp cannot run the export: {error}") from error
    except OutOfMemory as error:
        gate.reason = f"not checked: there is not enough memory for base + adapter in {precision} ({error})"
        return gate
    gate.passed, gate.seconds = True, round(time.monotonic() - started, 1)
    return gate


def _references(
    engine: Backend,
    model: ModelFolder,
    adapter: Path | None,
    precision: Precision,
    found: Sequence[Probe],
    stop_ids: Sequence[int],
) -> list[Reference]:
    """The answers of base + adapter; the session is gone afterwards."""
    from finetune_local.adapters.attach import attach
    from finetune_local.chat.generate import greedy_batch

    session = engine.load(model.path, precision, rope_factor=model.rope_factor)
    if adapter is not None:
        attach(session, model, tokenizer_of(model.path, adapter), adapter, "export")
    answers = greedy_batch(session, [probe.ids for probe in found], TOKENS, stop_ids)
    references = []
    for probe, answer in zip(found, answers, strict=True):
        logprobs = log_softmax(session.logits([*probe.ids, *answer])[len(probe.ids) - 1 :])
        references.append(Reference(probe, (*answer, int(logprobs[-1].argmax())), logprobs))
    return references


def _compare(
    candidate: Candidate,
    references: Sequence[Reference],
    stop_ids: Sequence[int],
    template: str | None,
    limits: Limits,
    gate: Gate,
    text: Callable[[Sequence[int]], str],
    progress: Progress,
) -> None:
    """Fill the gate's figures. Raises GateFailed at the first check that fails."""
    if candidate.template() != template:
        raise GateFailed("chat template: the export's is another than the base's.")
    if missing := candidate.stop_tokens(references[0].probe, stop_ids):
        raise GateFailed(
            f"stop tokens: the export does not stop at {_quoted(text(missing[:1]))} (id {missing[0]}), where the app does."
        )
    divergences = []
    for number, reference in enumerate(references, 1):
        where = f"prompt {number} ({_quoted(reference.probe.title)})"
        if difference := candidate.prompt(reference.probe):
            raise GateFailed(f"prompt ids: {where}: {difference}")
        divergence, given = candidate.follow(reference)
        divergences.append(divergence)
        if limits.tie is not None:
            _compare_text(reference, given, where, limits.tie, gate, text)
        progress("checking the export", number / len(references))
    joined = np.concatenate(divergences)
    gate.tokens, gate.kl_mean, gate.kl_max = len(joined), float(joined.mean()), float(joined.max())
    if not gate.kl_mean <= limits.kl:
        worst = int(np.argmax([d.mean() for d in divergences]))
        advice = " So few bits are too few for this model: choose q8_0 or f16." if limits.kl > LIMITS["q8_0"].kl else ""
        raise GateFailed(
            f"probabilities: the mean KL divergence from base + adapter is {gate.kl_mean:.4g} nats per token over "
            f"{gate.tokens} tokens, and {limits.kl:g} is allowed; the worst is prompt {worst + 1} "
            f"({_quoted(references[worst].probe.title)}), token {int(divergences[worst].argmax()) + 1}.{advice}"
        )


def _compare_text(
    reference: Reference,
    given: Sequence[int],
    where: str,
    tolerance: float,
    gate: Gate,
    text: Callable[[Sequence[int]], str],
) -> None:
    """Greedy answers are equal where the likeliest token is, after each equal beginning; past a parting nothing is."""
    answer = reference.answer
    part = next((i for i, pair in enumerate(zip(answer, given, strict=True)) if pair[0] != pair[1]), None)
    if part is None:
        gate.equal_texts += 1
        return
    ours, theirs = answer[part], given[part]
    margin = float(reference.logprobs[part, ours] - reference.logprobs[part, theirs])
    words = f"token {part + 1}: {_quoted(text([ours]))} here, {_quoted(text([theirs]))} in the export"
    if margin > tolerance:
        raise GateFailed(
            f"greedy text: {where}, {words}; the reference's logits are {margin:.3g} apart, and {tolerance:g} would pass as a tie."
        )
    gate.near_ties.append(f"{where}, {words}; the reference's logits are {margin:.2g} apart")


def _precision(model: ModelFolder, device: Device) -> Precision:
    """fp32 where the base and what it computes fit well into the memory it is loaded into, else bf16."""
    import psutil

    free = psutil.virtual_memory().available if device.kind == "cpu" else device.memory_bytes
    return "fp32" if 4 * model.parameters < 0.6 * free else "bf16"


def _quoted(text: str) -> str:
    return f"“{text}”"
