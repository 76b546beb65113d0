"""From a run folder to everything the loop needs: data prepared, automatic values settled, model loaded, adapter attached."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_local import backend as port
from finetune_local.adapters.asked_files import write_beside_adapter
from finetune_local.adapters.companions import asked_in_training
from finetune_local.adapters.identity import check_same_base
from finetune_local.models.memory.estimate import estimate, verdict
from finetune_local.spec import defaults
from finetune_local.spec.numerics.shifted import check_shifted, one_group
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import RunSpec, plan_method, preset_of, section_name
from finetune_local.spec.tuners import Tuner, tuner_of, tuners
from finetune_local.system import checksums
from finetune_local.system.errors import AdapterError, DamagedRun, SpecError, Unsupported, told_of
from finetune_local.system.fields import flag_of
from finetune_local.system.files import written_aside
from finetune_local.system.machine import nvidia_cards
from finetune_local.system.paths import Home, located
from finetune_local.training import base_weights, calibration, checkpoint, restore
from finetune_local.training.checkpoint import Loaded, LoopState
from finetune_local.training.events import Event, Note, Phase
from finetune_local.training.run_folder.runs import Run

if TYPE_CHECKING:
    from finetune_local.data.conversation import Conversation
    from finetune_local.data.dataset.prepare import Prepared
    from finetune_local.data.tokenizers.tokenizer import Tokenizer
    from finetune_local.models.folder import ModelFolder

SHORTEST = 8
"""Tokens that must stay free for a text beside a method's own positions."""

ADAPTER = "training"
"""Name of the adapter being trained, inside the session."""


@dataclass
class Ready:
    """All that the loop works with."""

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


def check_before_loading(
    spec: RunSpec, home: Home, progress: Callable[[str, float | None], None]
) -> tuple[RunSpec, list[str]]:
    """Everything that can be wrong without loading a model: files, backend, gaps, targets, ranks.

    Returns the spec with backend and device settled and gaps of presets replaced, and notes for the user.
    Raises UserErrors; fetches the small default model if it is the one wanted and not there yet.
    """
    from finetune_local.models.resolve import resolve_for

    check_files(spec)
    backend, why = port.choose(spec.backend)
    notes = [f"backend = {why}"]
    device = _device(backend, spec.device)
    if device.kind == "cpu" and spec.device is None and (cards := nvidia_cards()):
        notes.append(f"this machine has an {cards[0].name}, but it is not used: `finetune-local doctor` says why")
    spec = spec.model_copy(update={"backend": backend.name, "device": device.id})
    spec, settled = settle(spec, backend, device)
    model = resolve_for(spec.model, home, progress)
    plan_for(spec, model)
    if located(spec.model.id).exists():
        # A folder or file named from where the user stood must be found from anywhere later.
        installed = model.path.parent == home.models
        lasting = model.path.name if installed else str(model.path.resolve())
        spec = spec.model_copy(update={"model": spec.model.model_copy(update={"id": lasting})})
    return spec, notes + settled


def settle(spec: RunSpec, backend: port.Backend, device: port.Device) -> tuple[RunSpec, list[str]]:
    """The spec with what follows from backend and device alone, and a note for each: the base's precision, the kind of 4 bits,
    what stands in for a preset that the backend lacks. Raises Unsupported. Nothing is loaded."""
    notes = []
    if spec.model.precision is None:
        precision, reason = defaults.precision(spec, device.kind, device.fast_bf16)
        spec = spec.model_copy(update={"model": spec.model.model_copy(update={"precision": precision})})
        notes.append(f"model.precision = {precision}: {reason}")
    if spec.model.precision == "4-bit" and spec.model.quantisation == "auto":
        kind, reason = port.automatic_quantisation(backend)
        spec = spec.model_copy(update={"model": spec.model.model_copy(update={"quantisation": kind})})
        notes.append(f"model.quantisation = {kind}: {reason}")
    spec, replaced = _bridge_gaps(spec, backend, device)
    return spec, notes + replaced


def facts_for(
    spec: RunSpec, model: ModelFolder, plan: AdapterPlan, device: port.Device, rows: int, longest: int, held_out: int
) -> defaults.Facts:
    """What automatic values are computed from."""
    open_spec = spec.training.model_copy(update={"micro_batch_tokens": 1024, "gradient_checkpointing": False})
    needs = estimate(model, spec.model_copy(update={"training": open_spec}), plan, device.kind)
    return defaults.Facts(
        device=device.kind,
        memory_bytes=device.memory_bytes,
        hidden_size=model.hidden_size,
        fixed_bytes=needs.total - needs.activations,
        activation_bytes=needs.activations,
        rows=rows,
        longest=longest,
        validation_rows=held_out,
    )


def check_together(
    specs: Sequence[RunSpec], home: Home, progress: Callable[[str, float | None], None]
) -> list[tuple[RunSpec, list[str]]]:
    """check_before_loading() of each, and that they can be trained at once: one base held in one way, rows of their own.

    Raises SpecError where they cannot.
    """
    from finetune_local.models.resolve import resolve_for

    if len(specs) == 1:
        return [check_before_loading(specs[0], home, progress)]
    _device(port.choose(specs[0].backend)[0], specs[0].device)  # shared, so no section is told of it
    checked = []
    for number, spec in enumerate(specs, 1):
        with told_of(section_name(number, spec.name)):
            checked.append(check_before_loading(spec, home, progress))
    first = checked[0][0]
    names = [spec.name for spec, _ in checked if spec.name]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SpecError(f"two of the [[adapters]] are called '{twice[0]}'. Give each a name of its own.")
    for number, (spec, _) in enumerate(checked, 1):
        if spec.model != first.model:
            differs = next(n for n, v in spec.model.model_dump().items() if v != getattr(first.model, n))
            raise SpecError(
                f"adapters trained at once share one base, but number {number} ({spec.method.key}) wants model.{differs} = "
                f"{getattr(spec.model, differs)} and number 1 ({first.method.key}) {getattr(first.model, differs)}. "
                f"Write model.{differs} outside the sections."
            )
        plan = plan_for(spec, resolve_for(spec.model, home, progress))
        if reason := tuners()[method_family(spec)].sharing_refusal(plan):
            raise SpecError(f"method '{spec.method.key}' (number {number}) cannot be trained beside others: {reason}")
    if one_group([spec.training for spec, _ in checked]) and first.training.attention_group is None:
        raise SpecError(
            "--attention shifted: the automatic --attention-group goes by the rows, which are not the same for all adapters that "
            "are trained at once. Give one for all of them."
        )
    return checked


def plan_for(spec: RunSpec, model: ModelFolder) -> AdapterPlan:
    """What the method attaches to this model. Raises SpecError where nothing matches or a rank is too high."""
    tuner = tuners()[method_family(spec)]
    if reason := tuner.refusal(spec.method.settings, spec.model.precision or "fp32"):
        raise SpecError(f"method '{spec.method.key}' does not work here: {reason}")
    plan = plan_method(spec.method, model.info())
    check_shifted(plan, spec.training, [])
    if (taken := tuner.virtual_tokens(plan)) > model.context_length - SHORTEST:
        raise SpecError(
            f"method '{spec.method.key}' takes {taken} positions for itself, and {model.name} reads at most "
            f"{model.context_length}: no room is left for a text. Lower {_length_flag(tuner)}."
        )
    return plan


def _length_flag(tuner: Tuner) -> str:
    """The setting that says how many positions a family takes."""
    fields = tuner.settings.model_fields
    return next((flag_of(name, field) for name, field in fields.items() if name.endswith("length")), "its length")


def method_family(spec: RunSpec) -> str:
    """The family the spec's method belongs to."""
    from finetune_local.spec.presets import preset_named

    return preset_named(spec.method.key).tuner


def make_ready(run: Run, home: Home, beside: Ready | None = None) -> Iterator[Event | Ready]:
    """Prepare a run, telling what is done; the last thing yielded is the Ready. Resumes from the newest checkpoint.

    `beside` is another run that is ready on the same base: its session is shared.
    """
    from finetune_local.data.dataset.prepare import conversations
    from finetune_local.data.tokenizers.tokenizer import Tokenizer
    from finetune_local.models.resolve import resolve_for

    spec = run.spec
    if all(isinstance(event, Phase) for event in run.history()):
        # Whoever made the run did not check it: looking at the devices takes a framework, which the window does not load.
        yield Phase(name="checking the settings")
        spec, told = check_before_loading(spec, home, _teller(run))
        run.write_spec(spec)
        for text in told:
            yield Note(text=text)
    backend, _ = port.choose(spec.backend)
    yield Phase(name="opening the model")
    model = resolve_for(spec.model, home, lambda _text, _done: None)
    yield from base_weights.same_as_begun(run, model, beside.run if beside is not None else None)
    tokenizer = Tokenizer.load(model.path)
    spec = yield from _row_length(run, spec, model)
    data = yield from restore.open_data(
        run, model.vocabulary, lambda folder: _prepare_data(run, spec, tokenizer, folder)
    )
    if spec.training.early_stopping and not len(data.validation):
        raise SpecError(
            "--early-stopping looks at the validation loss, but no rows are held out. "
            "Give --validation 0.1 or --validation-data FILE, or leave --early-stopping out."
        )
    plan = plan_for(spec, model)
    device = _device(backend, spec.device)
    facts = facts_for(spec, model, plan, device, len(data.train), int(data.train.lengths.max()), len(data.validation))
    spec, chosen = defaults.resolve(spec, facts)
    for choice in chosen:
        shown = f"{choice.value:g}" if isinstance(choice.value, float) else choice.value
        yield Note(text=f"{choice.setting} = {shown} ({choice.reason})")
    if chosen:
        run.write_spec(spec)
    expected = estimate(model, spec, plan, device.kind)
    yield Note(
        text=f"memory: about {expected.total / 1e9:.1f} GB expected, {device.memory_bytes / 1e9:.1f} GB there "
        f"({verdict(expected, device.memory_bytes)})"
    )
    adapter = ADAPTER if beside is None else f"{ADAPTER} {run.name}"
    if beside is None:
        yield Phase(name="loading the model")
        session = backend.load(
            model.path,
            spec.model.precision or "fp32",
            spec.device,
            quantisation=spec.model.quantisation,
            rope_factor=model.rope_factor,
        )
    else:
        session = beside.session
    state = LoopState(micro_batch_tokens=spec.training.micro_batch_tokens or 1024)

    def go_on(loaded: Loaded) -> None:
        try:
            if loaded.identity is not None:
                check_same_base(loaded.identity, model)
            session.attach(adapter, plan, spec.training.seed, loaded.tensors)
            session.prepare(adapter, spec.training)
            session.restore_optimizer(loaded.optimizer, adapter)
        except AdapterError as error:
            if loaded.summed:  # as it was written: what does not fit is the base, or settings that were changed since
                raise
            if adapter in session.adapters():
                session.detach(adapter)
            raise DamagedRun(str(error)) from error

    loaded = yield from restore.newest_intact(run, go_on)
    if loaded is not None:
        state = loaded.state
    else:
        if (wanted := tuner_of(plan).calibration(plan)) is not None:
            sizes = yield from calibration.update_sizes(session, plan, wanted, spec, data.train)
            settings, text = tuner_of(plan).calibrated(plan, sizes)
            spec = spec.model_copy(update={"method": spec.method.model_copy(update={"settings": settings})})
            run.write_spec(spec)
            plan = plan_for(spec, model)
            yield Note(text=text)
        session.attach(adapter, plan, spec.training.seed, ids=tokenizer.ids, stored=model.read)
        session.prepare(adapter, spec.training)
    if not run.tokenizer.is_dir() or checksums.problem(run.tokenizer):
        with written_aside(run.tokenizer, checkpoint.RESUME) as place:
            place.mkdir()
            asked = asked_in_training(tokenizer, model.path, spec.data.template == "raw")
            write_beside_adapter(asked, {**model.config, **model.text_config}, place)
            checksums.write(place)
    samples = (
        conversations(run.data, "validation", limit=spec.training.sample_rows) if spec.training.sample_rows else []
    )
    yield Ready(run, spec, model, tokenizer, data, samples, session, plan, state, backend.name, adapter)


def _row_length(run: Run, spec: RunSpec, model: ModelFolder) -> Generator[Event, None, RunSpec]:
    """The spec with the row length settled."""
    context = model.context_length
    taken = tuners()[method_family(spec)].virtual_tokens(plan_for(spec, model))
    length, reason = defaults.max_length(spec, context - taken)
    if length + taken > context:
        beside = f", {taken} of them the method's own" if taken else ""
        raise SpecError(f"--max-length is {length}, but {model.name} reads at most {context} tokens{beside}. Lower it.")
    if spec.data.max_length is None:
        yield Note(text=f"data.max_length = {length} ({reason})")
        spec = spec.model_copy(update={"data": spec.data.model_copy(update={"max_length": length})})
        run.write_spec(spec)
    return spec


def _prepare_data(run: Run, spec: RunSpec, tokenizer: Tokenizer, folder: Path) -> Generator[Event, None, Prepared]:
    """Encode the files into a folder."""
    from finetune_local.data.dataset.prepare import prepare

    assert spec.data.max_length is not None
    data = prepare(
        spec.data, tokenizer, spec.training.seed, folder, spec.data.max_length, _teller(run), spec.objective.key
    )
    report = data.report
    yield Note(
        text=f"data: {report.used} of {report.rows} rows used ({report.format}), {len(data.train)} to train on, "
        f"{len(data.validation)} to validate on"
        + (f"; {report.rejected_count} set aside, see {run.data / 'rejected.jsonl'}" if report.rejected_count else "")
    )
    return data


def _teller(run: Run) -> Callable[[str, float | None], None]:
    """A progress callback that appends to the run's events, at most twice a second: reading big data takes a while."""
    last = [0.0]

    def tell(text: str, done: float | None) -> None:
        if time.monotonic() - last[0] > 0.5:
            last[0] = time.monotonic()
            run.append(Phase(name=text, done=done))

    return tell


def check_files(spec: RunSpec) -> None:
    """Raise SpecError where a data file is missing, or none was given."""
    if not spec.data.files:
        raise SpecError("no training data was given. Name a file: finetune-local --data my.jsonl")
    for flag, names in (("--data", spec.data.files), ("--validation-data", spec.data.validation_files)):
        for name in names:
            path = located(name)
            if not path.exists():
                raise SpecError(f"{flag} {name}: there is no such file in {path.parent.resolve()}.")
            if path.is_dir():
                raise SpecError(f"{flag} {name}: this is a folder. Name the file (or several, each with {flag}).")


def _device(backend: port.Backend, wanted: str | None) -> port.Device:
    devices = backend.devices()
    if wanted is None:
        return devices[0]
    for device in devices:
        if wanted in (device.id, device.kind):
            return device
    raise SpecError(f"--device {wanted}: {backend.name} has {', '.join(d.id for d in devices)} here.")


def _bridge_gaps(spec: RunSpec, backend: port.Backend, device: port.Device) -> tuple[RunSpec, list[str]]:
    """Replace what the backend lacks where only a preset asked for it; refuse where the user did."""
    notes = []
    for gap in backend.gaps():
        table, name = gap.setting.split(".")
        if gap.device not in ("", device.kind):
            continue
        group = spec.method.settings if table == "method" else getattr(spec, table)
        if getattr(group, name, None) != gap.value:
            continue
        if gap.instead is None or table == "method" or not preset_of(spec, gap.setting):
            hint = f" Use {gap.instead} instead." if gap.instead is not None else ""
            raise Unsupported(
                f"{gap.setting} = {gap.value} does not work with {backend.name} here: {gap.reason}.{hint}"
            )
        group = group.model_copy(update={name: gap.instead})
        spec = spec.model_copy(update={table: group})
        notes.append(f"{gap.setting} = {gap.instead} instead of {gap.value}: {gap.reason}")
    if method_family(spec) not in backend.tuners():
        raise Unsupported(
            f"method '{spec.method.key}' has not been written for {backend.name} yet. Try another --backend."
        )
    return spec, notes
