"""Prepare a run for the loop: encode the data, settle automatic values, load the model, attach the adapter."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_local import backend as port
from finetune_local.adapters.companions import prompt_setup_in_training, write_beside_adapter
from finetune_local.adapters.identity import check_same_base
from finetune_local.models.memory.estimate import estimate, verdict
from finetune_local.spec import defaults
from finetune_local.spec.numerics.shifted import group_of
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import RunSpec
from finetune_local.spec.tuners import tuner_of, tuners
from finetune_local.system import checksums
from finetune_local.system.errors import AdapterError, DamagedRun, SpecError
from finetune_local.system.files import written_aside
from finetune_local.system.messages import message_of, msg
from finetune_local.system.paths import Home
from finetune_local.training import calibration, reference
from finetune_local.training.check import check_before_loading, device_for, facts_for, plan_for, tuner_key
from finetune_local.training.checkpoints import checkpoint, restore
from finetune_local.training.checkpoints.checkpoint import Loaded, LoopState
from finetune_local.training.events import Event, Note, Phase
from finetune_local.training.run_folder.runs import Run

if TYPE_CHECKING:
    from finetune_local.data.conversation import Conversation
    from finetune_local.data.dataset.prepare import Prepared
    from finetune_local.data.tokenizers.tokenizer import Tokenizer
    from finetune_local.models.folder import ModelFolder


ADAPTER = "training"
"""Name of the trained adapter in the session."""


@dataclass
class Ready:
    """What the loop needs to train one run."""

    run: Run
    spec: RunSpec
    model: ModelFolder
    tokenizer: Tokenizer
    data: Prepared
    samples: list[Conversation]
    session: port.Session
    plan: AdapterPlan
    state: LoopState
    backend: str
    adapter: str = ADAPTER


def make_ready(run: Run, home: Home, beside: Ready | None = None) -> Iterator[Event | Ready]:
    """Prepare a run, from its newest checkpoint if it has one. Yields events, and last the Ready.

    `beside` is a prepared run on the same base, whose session is shared. Raises FinetuneError subclasses.
    """
    from finetune_local.data.dataset.prepare import conversations
    from finetune_local.data.tokenizers.tokenizer import Tokenizer
    from finetune_local.models.resolve import resolve_for

    spec = yield from _checked(run, home)
    backend, _ = port.choose(spec.backend)
    yield Phase(name=msg("loading the model"))
    model = resolve_for(spec.model, home, lambda _text, _done: None)
    yield from restore.same_as_begun(run, model, beside.run if beside is not None else None)
    tokenizer = Tokenizer.load(model.path)
    spec = yield from _row_length(run, spec, model)
    data = yield from restore.open_data(
        run, model.vocabulary, lambda folder: _prepare_data(run, spec, tokenizer, folder)
    )
    spec = yield from _automatic(run, spec, model, backend, data)
    if beside is None:
        session = yield from _loaded(spec, model, backend)
    else:
        session = beside.session
    samples = (
        conversations(run.data, "validation", limit=spec.training.sample_rows) if spec.training.sample_rows else []
    )
    plan = plan_for(spec, model)
    state = LoopState(micro_batch_tokens=spec.training.micro_batch_tokens or 1024)
    adapter = ADAPTER if beside is None else f"{ADAPTER} {run.name}"
    ready = Ready(run, spec, model, tokenizer, data, samples, session, plan, state, backend.name, adapter)
    yield from _attach(ready)
    objective, group = ready.spec.objective.objective, group_of(ready.spec.training)
    yield from reference.keep(ready.run, session, objective, data, state.micro_batch_tokens, group)
    _keep_tokenizer(ready)
    yield ready


def _checked(run: Run, home: Home) -> Generator[Event, None, RunSpec]:
    """The run's spec, checked here if it has not been: the window cannot check devices without loading a framework."""
    spec = run.spec
    if all(isinstance(event, Phase) for event in run.history()):
        yield Phase(name=msg("checking the settings"))
        spec, notes = check_before_loading(spec, home, _progress_to(run))
        run.write_spec(spec)
        yield from notes
    return spec


def _automatic(
    run: Run, spec: RunSpec, model: ModelFolder, backend: port.Backend, data: Prepared
) -> Generator[Event, None, RunSpec]:
    """The spec with every automatic value settled; notes report the values and the memory estimate. Raises SpecError."""
    if spec.training.early_stopping and not len(data.validation):
        raise SpecError(
            msg(
                "--early-stopping needs a validation loss, but no rows are held out. Add --validation 0.1 or "
                "--validation-data FILE, or remove --early-stopping."
            )
        )
    plan, device = plan_for(spec, model), device_for(backend, spec.device)
    facts = facts_for(spec, model, plan, device, len(data.train), int(data.train.lengths.max()), len(data.validation))
    spec, chosen = defaults.resolve(spec, facts)
    for choice in chosen:
        yield Note.chosen(choice.setting, choice.value, choice.reason)
    if chosen:
        run.write_spec(spec)
    expected = estimate(model, spec, plan, device.kind, facts.largest)
    yield Note(
        text=msg(
            "memory: about {expected} GB expected, {there} GB available ({verdict})",
            expected=f"{expected.total / 1e9:.1f}",
            there=f"{device.memory_bytes / 1e9:.1f}",
            verdict=verdict(expected, device.memory_bytes),
        )
    )
    return spec


def _loaded(spec: RunSpec, model: ModelFolder, backend: port.Backend) -> Generator[Event, None, port.Session]:
    yield Phase(name=msg("loading the model"))
    return backend.load(
        model.path,
        spec.model.precision or "fp32",
        spec.device,
        quantisation=spec.model.quantisation,
        rope_factor=model.rope_factor,
    )


def _attach(ready: Ready) -> Generator[Event, None, None]:
    """Attach the run's adapter: from its newest intact checkpoint, or a new one, calibrated first if its tuner requires that."""
    session, model = ready.session, ready.model

    def resume(loaded: Loaded) -> None:
        try:
            if loaded.identity is not None:
                check_same_base(loaded.identity, model)
            session.attach(ready.adapter, ready.plan, ready.spec.training.seed, loaded.tensors)
            session.prepare(ready.adapter, ready.spec.training)
            session.restore_optimizer(loaded.optimizer, ready.adapter)
        except AdapterError as error:
            if loaded.summed:  # the checkpoint is intact, so the base or the settings have changed since
                raise
            if ready.adapter in session.adapters():
                session.detach(ready.adapter)
            raise DamagedRun(message_of(error)) from error

    loaded = yield from restore.newest_intact(ready.run, resume)
    if loaded is not None:
        ready.state = loaded.state
        return
    tuner = tuner_of(ready.plan)
    if (request := tuner.calibration(ready.plan)) is not None:
        sizes = yield from calibration.update_sizes(session, ready.plan, request, ready.spec, ready.data.train)
        settings, text = tuner.calibrated(ready.plan, sizes)
        method = ready.spec.method.model_copy(update={"settings": settings})
        ready.spec = ready.spec.model_copy(update={"method": method})
        ready.run.write_spec(ready.spec)
        ready.plan = plan_for(ready.spec, model)
        yield Note(text=text)
    session.attach(
        ready.adapter,
        ready.plan,
        ready.spec.training.seed,
        ids=ready.tokenizer.ids,
        stored=model.read,
        value_head=ready.spec.objective.objective.value_kind is not None,
    )
    session.prepare(ready.adapter, ready.spec.training)


def _keep_tokenizer(ready: Ready) -> None:
    """Copy the tokenizer's files into the run folder, from which they are published with the adapter."""
    run, model = ready.run, ready.model
    if run.tokenizer.is_dir() and not checksums.problem(run.tokenizer):
        return
    with written_aside(run.tokenizer, checkpoint.RESUME) as place:
        place.mkdir()
        prompt_setup = prompt_setup_in_training(ready.tokenizer, model.path, ready.spec.data.template == "raw")
        write_beside_adapter(prompt_setup, {**model.config, **model.text_config}, place)
        checksums.write(place)


def _row_length(run: Run, spec: RunSpec, model: ModelFolder) -> Generator[Event, None, RunSpec]:
    """The spec with data.max_length settled. Raises SpecError if it exceeds the model's context."""
    context = model.context_length
    taken = tuners()[tuner_key(spec)].virtual_tokens(plan_for(spec, model))
    length, reason = defaults.max_length(spec, context - taken)
    if length + taken > context:
        beside = msg(", {taken} of which the method uses", taken=taken) if taken else ""
        raise SpecError(
            msg(
                "--max-length is {length}, but {name} reads at most {context} tokens{beside}. Lower it.",
                length=length,
                name=model.name,
                context=context,
                beside=beside,
            )
        )
    if spec.data.max_length is None:
        yield Note.chosen("data.max_length", length, reason)
        spec = spec.model_copy(update={"data": spec.data.model_copy(update={"max_length": length})})
        run.write_spec(spec)
    return spec


def _prepare_data(run: Run, spec: RunSpec, tokenizer: Tokenizer, folder: Path) -> Generator[Event, None, Prepared]:
    """Encode the data files into `folder`."""
    from finetune_local.data.dataset.prepare import prepare

    assert spec.data.max_length is not None
    data = prepare(
        spec.data, tokenizer, spec.training.seed, folder, spec.data.max_length, _progress_to(run), spec.objective.key
    )
    report = data.report
    yield Note(
        text=msg(
            "data: {used} of {rows} rows used ({format}), {train} for training, {validation} for validation",
            used=report.used,
            rows=report.rows,
            format=report.format,
            train=len(data.train),
            validation=len(data.validation),
        )
        + (
            msg(
                "; {rejected_count} rejected, see {path}",
                rejected_count=report.rejected_count,
                path=run.data / "rejected.jsonl",
            )
            if report.rejected_count
            else ""
        )
    )
    return data


def _progress_to(run: Run) -> Callable[[str, float | None], None]:
    """A progress callback that appends to the run's events, at most twice per second."""
    last = [0.0]

    def report(text: str, done: float | None) -> None:
        if time.monotonic() - last[0] > 0.5:
            last[0] = time.monotonic()
            run.append(Phase(name=text, done=done))

    return report
