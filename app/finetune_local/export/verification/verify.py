"""The verification behind every export: the programs it is for must read prompts, stop and answer as base + adapter do in the app.

The reference is a session of the chosen backend with base and adapter, in fp32 where memory allows. The export is opened by its
receivers, each in a process of its own with nothing of ours imported: a folder by plain transformers and plain mlx-lm, a GGUF by
llama.cpp. Compared are
    the token ids of texts and of chats that the receiver renders with the template it finds (never the templates themselves);
    where it stops: every end token is forced on it, and one token that is none;
    the greedy answers, token by token, for formats that keep the weights (quantised ones may word things otherwise);
    the mean KL divergence of the next token's distribution along the reference's answers.
Where greedy answers part at two tokens that the reference itself holds for nearly equal, that is no failure but a near-tie.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from finetune_local.adapters.companions import tokenizer_of
from finetune_local.backend import Backend, Device, choose
from finetune_local.export.engines.folders import RECEIVERS, Receiver
from finetune_local.export.engines.llama import INSTALL, LlamaCpp, LlamaFailed, available
from finetune_local.export.engines.process import Heard, Question, Request, ask
from finetune_local.export.targets import Progress, silent
from finetune_local.export.verification.candidates import TOP, GgufCandidate, HeardCandidate, Reference, log_softmax
from finetune_local.export.verification.compare import (
    Limits,
    ReceiverCheck,
    compare_answers,
    compare_reading,
    compare_stops,
    differing,
    quoted,
)
from finetune_local.export.verification.expected import Expected, expected
from finetune_local.export.verification.probes import Probe
from finetune_local.models.folder import CONFIG, ModelFolder, read_json
from finetune_local.spec.run import Precision
from finetune_local.system.errors import GateFailed, OutOfMemory

TOKENS = 32
LLAMA_CPP = "llama.cpp"
RECEIVER_NAMES = (*(receiver.name for receiver in RECEIVERS), LLAMA_CPP)

_ACCENTS = (
    "llama.cpp does not put letters and accents together (NFC) as this tokenizer does: texts that write them apart are read as "
    "other tokens"
)

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
    """The verdict: passed, failed (raised as GateFailed instead) or None, not checked, with the reason.

    `receivers` tells of each program that the export is for; the figures are those of the first that opened it.
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
    """Of an adapter alone, which is not run: how many read back equal."""
    receivers: list[ReceiverCheck] = field(default_factory=list)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """A plain object."""
        return asdict(self)


@dataclass(frozen=True)
class _Ground:
    """What each receiver is held against."""

    expected: Expected
    references: Sequence[Reference]
    limits: Limits
    dtype: str
    device: str
    advice: str


@dataclass(frozen=True)
class Prepared:
    """What base + adapter do here, known before anything is written. `lack` says why their answers are not."""

    expected: Expected
    backend: str
    device: str
    precision: Precision
    references: Sequence[Reference] = ()
    lack: str = ""


def prepare(model: ModelFolder, adapter: Path | None, backend: str = "auto", progress: Progress = silent) -> Prepared:
    """Ask base + adapter. Raises ModelError, AdapterError, Unsupported, SpecError: for a model that cannot be run here, an adapter
    that does not fit it, or a template that refuses all prompts."""
    wanted = expected(model, adapter)
    engine, _ = choose(backend)
    device = engine.devices()[0]
    precision = _precision(model, device)
    known = Prepared(wanted, engine.name, device.id if engine.name == "torch" else "cpu", precision)
    try:
        progress("answering as base + adapter", None)
        references = _references(engine, model, adapter, precision, wanted.probes, wanted.stop_ids)
    except OutOfMemory as error:
        return replace(
            known, lack=f"not checked: there is not enough memory for base + adapter in {precision} ({error})"
        )
    gc.collect()  # torch's modules hold each other in circles: without this both models would be in memory
    return replace(known, references=references)


def verify(
    target: str,
    out: Path,
    kind: str,
    model: ModelFolder,
    adapter: Path | None,
    backend: str = "auto",
    progress: Progress = silent,
    skip: Collection[str] = (),
    prepared: Prepared | None = None,
) -> Gate:
    """Check an export at `out` in the number format `kind` ("f32", "f16", "bf16", "q8_0"); `skip` names receivers to leave out,
    `prepared` is what prepare() gave.

    Raises GateFailed saying which receiver, which check, which prompt, at which token. Returns a gate that was not passed (None)
    where no receiver could be asked here: not installed, or too little memory.
    """
    started = time.monotonic()
    if target == "gguf" and not available():
        reason = f"not checked: llama.cpp is needed to run a GGUF and is not installed. {INSTALL}"
        return Gate(None, reason, receivers=[ReceiverCheck(LLAMA_CPP, reason=reason)])
    known = prepared or prepare(model, adapter, backend, progress)
    limits = (
        LIMITS[kind] if known.precision == "fp32" else max(LIMITS[kind], LIMITS["bf16"], key=lambda limit: limit.kl)
    )
    gate = Gate(
        None,
        backend=known.backend,
        precision=known.precision,
        prompts=len(known.expected.probes),
        tie_tolerance=limits.tie,
        kl_limit=limits.kl,
        kl_over=f"the {TOP} likeliest tokens and all others as one" if target == "gguf" else "the whole vocabulary",
    )
    if known.lack:
        gate.reason = known.lack
        return gate
    ground = _Ground(
        known.expected,
        known.references,
        limits,
        "float32" if known.precision == "fp32" else "bfloat16",
        known.device,
        " So few bits are too few for this model: choose q8_0 or f16." if limits.kl > LIMITS["q8_0"].kl else "",
    )
    if target == "gguf":
        gate.receivers = [_timed(LLAMA_CPP, skip, partial(_llama, out, ground), progress, 0.0)]
    else:
        for number, receiver in enumerate(RECEIVERS):
            done = number / len(RECEIVERS)
            gate.receivers.append(_timed(receiver.name, skip, partial(_folder, receiver, out, ground), progress, done))
    progress("checking the export", 1.0)
    _conclude(gate)
    gate.seconds = round(time.monotonic() - started, 1)
    return gate


def _timed(
    name: str, skip: Collection[str], opened: Callable[[ReceiverCheck], None], progress: Progress, done: float
) -> ReceiverCheck:
    check, started = ReceiverCheck(name), time.monotonic()
    progress("checking the export", done)
    if name in skip:
        check.reason = "not checked: you left it out"
        return check
    opened(check)
    check.seconds = round(time.monotonic() - started, 1)
    return check


def _conclude(gate: Gate) -> None:
    """The verdict of all together, and the figures of the first that opened the export."""
    seen = next((check for check in gate.receivers if check.passed), None)
    if seen is None:
        gate.reason = gate.receivers[0].reason
        return
    gate.passed = True
    gate.tokens, gate.equal_texts, gate.near_ties = seen.tokens, seen.equal_texts, seen.near_ties
    gate.kl_mean, gate.kl_max = seen.kl_mean, seen.kl_max


def _folder(receiver: Receiver, out: Path, ground: _Ground, check: ReceiverCheck) -> None:
    """A merged folder in plain transformers or plain mlx-lm. Raises GateFailed."""
    config = read_json(out / CONFIG, "")
    if limit := receiver.limit(config):
        check.reason = f"not checked: {limit}"
        return
    wanted = ground.expected
    shortest = sorted(ground.references, key=lambda r: len(r.probe.ids) + len(r.answer))[: receiver.most_prompts]
    references = [reference for reference in ground.references if any(reference is one for one in shortest)]
    heard = ask(
        receiver.worker,
        receiver.needs,
        Request(
            out,
            ground.dtype,
            ground.device,
            [chat.as_json() for chat in wanted.chats],
            wanted.texts,
            [Question(r.probe.ids, r.answer[:-1]) for r in references],
            wanted.stop_ids,
            wanted.plain_token,
        ),
    )
    if heard.absent:
        check.reason = f"not checked: {heard.absent}"
        return
    if heard.failed:
        raise GateFailed(f"{receiver.name} cannot open the export: {heard.failed}")
    check.version = heard.version
    if note := receiver.note(config):
        check.notes.append(note)
    if len(references) < len(ground.references):
        check.notes.append(
            f"{receiver.name} was asked the shortest {len(references)} of {len(ground.references)} prompts: it computes slowly here"
        )
    candidate = HeardCandidate(heard, wanted.chats, wanted.texts, [reference.probe for reference in references])
    chats = [chat for chat in wanted.chats if not _own_way(check, heard, wanted, candidate, chat)]
    compare_reading(check, candidate, wanted, chats)
    compare_stops(check, candidate, wanted)
    compare_answers(check, candidate, wanted, references, ground.limits, ground.advice)
    check.passed = not check.reason


def _own_way(check: ReceiverCheck, heard: Heard, wanted: Expected, candidate: HeardCandidate, chat: Any) -> bool:
    """Whether mlx-lm renders a chat otherwise because it tells the template whether to think, which nothing in a folder can turn
    off; told once."""
    if heard.thinks is None:
        return False
    (found,) = candidate.renderings([chat])
    if not differing(wanted, chat, found) or differing(wanted, chat, found, enable_thinking=heard.thinks):
        return False
    check.reason = check.reason or (
        f"{check.name} asks this template with enable_thinking={heard.thinks}, which makes another prompt than the adapter was "
        "trained with"
    )
    return True


def _llama(out: Path, ground: _Ground, check: ReceiverCheck) -> None:
    """A GGUF in llama.cpp. Raises GateFailed."""
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
                    check.notes.append(f"llama.cpp renders a chat with {quoted(chat.title)} otherwise: {difference}")
                else:
                    check.chats += 1
            compare_stops(check, candidate, wanted)
            compare_answers(check, candidate, wanted, ground.references, ground.limits, ground.advice)
            if wanted.composes:
                check.notes.append(_ACCENTS)
    except LlamaFailed as error:
        raise GateFailed(f"llama.cpp cannot run the export: {error}") from error
    check.passed = True


def _check_stored_template(out: Path, wanted: Expected) -> None:
    """The template that lies in a GGUF renders every chat as the app's does. Raises GateFailed."""
    from gguf import GGUFReader

    entry = GGUFReader(out).get_field("tokenizer.chat_template")
    stored = str(entry.contents()) if entry is not None else None
    if (stored is None) != (wanted.template is None):
        whose = "the app has one and the export none" if stored is None else "the export has one and the app none"
        raise GateFailed(f"chat template: {whose}.")
    theirs = replace(wanted, template=stored)
    for chat in wanted.chats:
        if difference := differing(wanted, chat, theirs.rendering(chat)):
            raise GateFailed(f"chat template: the file's own: a chat with {quoted(chat.title)}: {difference}")


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
    """fp32 where the base and what it computes fit well into the memory it is loaded into, else bf16."""
    import psutil

    free = psutil.virtual_memory().available if device.kind == "cpu" else device.memory_bytes
    return "fp32" if 4 * model.parameters < 0.6 * free else "bf16"
