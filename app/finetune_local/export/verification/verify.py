"""Verifies an export: the programs it is for must read prompts, stop and answer as base + adapter do in the app.

The reference is a session of the chosen backend with base and adapter, in fp32 if memory allows. The export is opened by its
receivers, each in a separate process that imports nothing of the app: a folder by plain transformers and plain mlx-lm, a GGUF by
llama.cpp. Compared are
    the token ids of texts and of chats that the receiver renders with the template it finds (never the templates themselves);
    where it stops: every end token is forced on it, and one token that ends nothing;
    the greedy answers, token by token, for unquantized formats (quantized ones may word answers differently);
    the mean KL divergence of the next token's distribution along the reference's answers.
If greedy answers differ at two tokens the reference itself rates nearly equal, that is a near-tie, not a failure.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from finetune_local.adapters.companions import tokenizer_of
from finetune_local.backend import Backend, Device, choose
from finetune_local.export.verification.candidates import Reference, log_softmax
from finetune_local.export.verification.compare import BF16, Limits, ReceiverCheck
from finetune_local.export.verification.expected import Expected, Probe, expected
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.run import Precision
from finetune_local.system.errors import OutOfMemory
from finetune_local.system.messages import Progress, msg, silent

TOKENS = 32


@dataclass
class Verification:
    """The verdict: passed, failed (raised as VerificationFailed instead) or None, not checked, with the reason.

    `receivers` has a result for each program that the export is for; the figures are those of the first that opened it.
    """

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
    """For an adapter alone, which is not run: the number of tensors that read back equal."""
    receivers: list[ReceiverCheck] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Ground:
    """The reference for every receiver: the app's reading of texts, its answers, the limits and how to load the export."""

    expected: Expected
    references: Sequence[Reference]
    limits: Limits
    dtype: str
    device: str


@dataclass(frozen=True)
class Receiver:
    """A program that opens exports. `check` runs it on the export at a path and fills in the result; raises VerificationFailed."""

    name: str
    check: Callable[[Path, Ground, ReceiverCheck], None]
    kl_over: str
    """The tokens over which its KL divergence is computed, as words."""
    missing: Callable[[], str] = str
    """Why it cannot run on this machine; "" if it can."""


@dataclass(frozen=True)
class Prepared:
    """The answers of base + adapter, computed before anything is written. `lack` is the reason if they could not be computed."""

    expected: Expected
    backend: str
    device: str
    precision: Precision
    references: Sequence[Reference] = ()
    lack: str = ""


def prepare(model: ModelFolder, adapter: Path | None, backend: str = "auto", progress: Progress = silent) -> Prepared:
    """Compute the answers of base + adapter.

    Raises ModelError, AdapterError, Unsupported, SpecError: for a model that cannot run here, an adapter that does not fit it, or a
    template that refuses all prompts.
    """
    expectation = expected(model, adapter)
    engine, _ = choose(backend)
    device = engine.devices()[0]
    precision = _precision(model, device)
    known = Prepared(expectation, engine.name, device.id if engine.name == "torch" else "cpu", precision)
    try:
        progress(msg("computing the answers of base + adapter"), None)
        references = _references(engine, model, adapter, precision, expectation.probes, expectation.stop_ids)
    except OutOfMemory as error:
        return replace(
            known,
            lack=msg(
                "not verified: there is not enough memory for base + adapter in {precision} ({error})",
                precision=precision,
                error=error,
            ),
        )
    gc.collect()  # torch modules form reference cycles: without a collection both models would be in memory
    return replace(known, references=references)


def verify(
    receivers: Sequence[Receiver],
    out: Path,
    limits: Limits,
    model: ModelFolder,
    adapter: Path | None,
    backend: str = "auto",
    progress: Progress = silent,
    skip: Collection[str] = (),
    prepared: Prepared | None = None,
) -> Verification:
    """Have every receiver open the export at `out` and compare it with base + adapter, within the limits of its quantization type.

    `skip` names receivers to omit; `prepared` is the result of prepare() if it ran before. Raises VerificationFailed with the receiver,
    the check, the prompt and the token. The verdict is None (not checked) if no receiver could run here: not installed, or too little
    memory.
    """
    started = time.monotonic()
    missing = [ReceiverCheck(receiver.name, reason=reason) for receiver in receivers if (reason := receiver.missing())]
    if len(missing) == len(receivers):
        return Verification(None, missing[0].reason, receivers=missing)
    known = prepared or prepare(model, adapter, backend, progress)
    if known.precision != "fp32":
        limits = max(limits, BF16, key=lambda limit: limit.kl)
    verification = Verification(
        None,
        backend=known.backend,
        precision=known.precision,
        prompts=len(known.expected.probes),
        tie_tolerance=limits.tie,
        kl_limit=limits.kl,
        kl_over=receivers[0].kl_over,
    )
    if known.lack:
        verification.reason = known.lack
        return verification
    dtype = "float32" if known.precision == "fp32" else "bfloat16"
    ground = Ground(known.expected, known.references, limits, dtype, known.device)
    for number, receiver in enumerate(receivers):
        verification.receivers.append(_timed(receiver, out, ground, skip, progress, number / len(receivers)))
    progress(msg("verifying the export"), 1.0)
    _conclude(verification)
    verification.seconds = round(time.monotonic() - started, 1)
    return verification


def _timed(
    receiver: Receiver, out: Path, ground: Ground, skip: Collection[str], progress: Progress, done: float
) -> ReceiverCheck:
    check, started = ReceiverCheck(receiver.name), time.monotonic()
    progress(msg("verifying the export"), done)
    if receiver.name in skip:
        check.reason = msg("not verified: skipped as requested")
        return check
    if reason := receiver.missing():
        check.reason = reason
        return check
    receiver.check(out, ground, check)
    check.seconds = round(time.monotonic() - started, 1)
    return check


def _conclude(verification: Verification) -> None:
    """Fill in the overall verdict and the figures of the first receiver that passed."""
    seen = next((check for check in verification.receivers if check.passed), None)
    if seen is None:
        verification.reason = verification.receivers[0].reason
        return
    verification.passed = True
    verification.tokens, verification.equal_texts, verification.near_ties = (
        seen.tokens,
        seen.equal_texts,
        seen.near_ties,
    )
    verification.kl_mean, verification.kl_max = seen.kl_mean, seen.kl_max


def _references(
    engine: Backend,
    model: ModelFolder,
    adapter: Path | None,
    precision: Precision,
    found: Sequence[Probe],
    stop_ids: Sequence[int],
) -> list[Reference]:
    """The answers of base + adapter; the session is closed afterwards."""
    from finetune_local.adapters.attach import attach
    from finetune_local.inference.generate import greedy_batch

    session = engine.load(model.path, precision, rope_factor=model.rope_factor)
    if adapter is not None:
        attach(session, model, tokenizer_of(model.path, adapter), adapter, "export")
    answers = greedy_batch(session, [probe.ids for probe in found], TOKENS, stop_ids)
    references = []
    for probe, answer in zip(found, answers, strict=True):
        logprobs = log_softmax(session.logits([*probe.ids, *answer])[len(probe.ids) - 1 :])
        references.append(Reference(probe, (*answer, int(logprobs[-1].argmax())), logprobs))
    return references


def _precision(model: ModelFolder, device: Device) -> Precision:
    """fp32 if the base and its activations fit comfortably into the device's memory, else bf16."""
    import psutil

    free = psutil.virtual_memory().available if device.kind == "cpu" else device.memory_bytes
    return "fp32" if 4 * model.parameters < 0.6 * free else "bf16"
