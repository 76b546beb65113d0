"""Checks of a spec that need no model in memory: data files, backend and device, gaps of the backend, targets, ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from finetune_local import backend as port
from finetune_local.models.memory.estimate import estimate
from finetune_local.spec import defaults
from finetune_local.spec.config_file import section_name
from finetune_local.spec.numerics.shifted import check_shifted, one_group
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import RunSpec, plan_method, preset_of
from finetune_local.spec.tuners import Tuner, tuners
from finetune_local.system.errors import SpecError, Unsupported, errors_at
from finetune_local.system.fields import flag_of
from finetune_local.system.machine import nvidia_cards
from finetune_local.system.messages import msg
from finetune_local.system.paths import Home, located
from finetune_local.training.events import Note

if TYPE_CHECKING:
    from finetune_local.models.folder import ModelFolder


SHORTEST = 8
"""Tokens of the context that must remain for text beside a method's virtual tokens."""


def check_before_loading(
    spec: RunSpec, home: Home, progress: Callable[[str, float | None], None]
) -> tuple[RunSpec, list[Note]]:
    """Check everything that needs no model in memory: data files, backend, device, gaps of the backend, targets, ranks.

    Returns the spec with backend and device settled and unsupported values of presets replaced, and notes for the user. Downloads
    the small default model if the spec names it and it is missing. Raises UserErrors.
    """
    from finetune_local.models.resolve import resolve_for

    check_files(spec)
    backend, why = port.choose(spec.backend)
    notes = [Note.chosen("backend", backend.name, why)]
    if spec.backend != "auto":
        notes = [Note(text=notes[0].text)]
    device = device_for(backend, spec.device)
    if device.kind == "cpu" and spec.device is None and (cards := nvidia_cards()):
        text = msg(
            "this machine has an {card}, but it is not used: `finetune-local doctor` says why", card=cards[0].name
        )
        notes.append(Note(text=text))
    spec = spec.model_copy(update={"backend": backend.name, "device": device.id})
    spec, settled = settle(spec, backend, device)
    model = resolve_for(spec.model, home, progress)
    plan_for(spec, model)
    if located(spec.model.id).exists():
        # A path relative to the current folder must be found from any folder later.
        installed = model.path.parent == home.models
        lasting = model.path.name if installed else str(model.path.resolve())
        spec = spec.model_copy(update={"model": spec.model.model_copy(update={"id": lasting})})
    return spec, notes + settled


def settle(spec: RunSpec, backend: port.Backend, device: port.Device) -> tuple[RunSpec, list[Note]]:
    """Settle what depends only on backend and device, with a note for each value. Nothing is loaded.

    These are the base's precision, its 4-bit quantization, and replacements for values of a preset that the backend lacks.
    Raises Unsupported.
    """
    notes = []
    if spec.model.precision is None:
        precision, reason = defaults.precision(spec, device.kind, device.fast_bf16)
        spec = spec.model_copy(update={"model": spec.model.model_copy(update={"precision": precision})})
        notes.append(Note.chosen("model.precision", precision, reason))
    if spec.model.precision == "4-bit" and spec.model.quantisation == "auto":
        kind, reason = port.automatic_quantisation(backend)
        spec = spec.model_copy(update={"model": spec.model.model_copy(update={"quantisation": kind})})
        notes.append(Note.chosen("model.quantisation", kind, reason))
    spec, replaced = _bridge_gaps(spec, backend, device)
    return spec, notes + replaced


def facts_for(
    spec: RunSpec, model: ModelFolder, plan: AdapterPlan, device: port.Device, rows: int, longest: int, held_out: int
) -> defaults.Facts:
    """The inputs of automatic values; `rows`, `longest` (tokens) and `held_out` describe the encoded data."""
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
        rows_per_example=spec.objective.objective.rows,
        validation_rows=held_out,
    )


def check_together(
    specs: Sequence[RunSpec], home: Home, progress: Callable[[str, float | None], None]
) -> list[tuple[RunSpec, list[Note]]]:
    """Check each spec as check_before_loading() does, and that all can be trained at once on one base.

    Raises SpecError if two names are the same, model settings differ, or a method cannot share a pass.
    """
    from finetune_local.models.resolve import resolve_for

    if len(specs) == 1:
        return [check_before_loading(specs[0], home, progress)]
    device_for(port.choose(specs[0].backend)[0], specs[0].device)  # shared, so its error names no section
    checked = []
    for number, spec in enumerate(specs, 1):
        with errors_at(section_name(number, spec.name)):
            checked.append(check_before_loading(spec, home, progress))
    first = checked[0][0]
    names = [spec.name for spec, _ in checked if spec.name]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SpecError(msg("two of the [[adapters]] are called '{name}'. Give each its own name.", name=twice[0]))
    for number, (spec, _) in enumerate(checked, 1):
        if spec.model != first.model:
            differs = next(n for n, v in spec.model.model_dump().items() if v != getattr(first.model, n))
            raise SpecError(
                msg(
                    "adapters trained at once share one base, but number {number} ({method}) requires model.{setting} = "
                    "{value} and number 1 ({first}) {other}. Write model.{setting} outside the sections.",
                    number=number,
                    method=spec.method.key,
                    setting=differs,
                    value=getattr(spec.model, differs),
                    first=first.method.key,
                    other=getattr(first.model, differs),
                )
            )
        plan = plan_for(spec, resolve_for(spec.model, home, progress))
        if reason := tuners()[tuner_key(spec)].sharing_refusal(plan):
            raise SpecError(
                msg(
                    "method '{method}' (number {number}) cannot be trained beside other adapters: {reason}",
                    method=spec.method.key,
                    number=number,
                    reason=reason,
                )
            )
    if one_group([spec.training for spec, _ in checked]) and first.training.attention_group is None:
        raise SpecError(
            msg(
                "--attention shifted: the automatic --attention-group depends on the rows, which differ between the "
                "adapters that are trained at once. Set one value for all of them."
            )
        )
    return checked


def plan_for(spec: RunSpec, model: ModelFolder) -> AdapterPlan:
    """What the method attaches to this model. Raises SpecError if nothing matches or a rank is too high."""
    tuner = tuners()[tuner_key(spec)]
    if reason := tuner.refusal(spec.method.settings, spec.model.precision or "fp32"):
        raise SpecError(msg("method '{method}' does not work here: {reason}", method=spec.method.key, reason=reason))
    plan = plan_method(spec.method, model.info())
    check_shifted(plan, spec.training, [])
    if (taken := tuner.virtual_tokens(plan)) > model.context_length - SHORTEST:
        raise SpecError(
            msg(
                "method '{method}' uses {taken} positions itself, and {model} reads at most {context}: no space is "
                "left for text. Lower {flag}.",
                method=spec.method.key,
                taken=taken,
                model=model.name,
                context=model.context_length,
                flag=_length_flag(tuner),
            )
        )
    return plan


def _length_flag(tuner: Tuner) -> str:
    """The flag of the setting that determines a tuner's number of virtual tokens."""
    fields = tuner.settings.model_fields
    return next((flag_of(name, field) for name, field in fields.items() if name.endswith("length")), msg("its length"))


def tuner_key(spec: RunSpec) -> str:
    """The key of the tuner that the spec's method is a preset of."""
    from finetune_local.spec.tuners import preset_named

    return preset_named(spec.method.key).tuner


def check_files(spec: RunSpec) -> None:
    """Raise SpecError if no data file was given, or one is missing or a folder."""
    if not spec.data.files:
        raise SpecError(msg("there is no training data. Choose a file: finetune-local --data my.jsonl"))
    for flag, names in (("--data", spec.data.files), ("--validation-data", spec.data.validation_files)):
        for name in names:
            path = located(name)
            if not path.exists():
                raise SpecError(
                    msg(
                        "{flag} {name}: file not found in {folder}.",
                        flag=flag,
                        name=name,
                        folder=path.parent.resolve(),
                    )
                )
            if path.is_dir():
                raise SpecError(
                    msg(
                        "{flag} {name}: this is a folder. Choose the file (for several, repeat {flag}).",
                        flag=flag,
                        name=name,
                    )
                )


def device_for(backend: port.Backend, requested: str | None) -> port.Device:
    """The requested device, by id or kind; the backend's first if none is requested. Raises SpecError if it does not exist."""
    devices = backend.devices()
    if requested is None:
        return devices[0]
    for device in devices:
        if requested in (device.id, device.kind):
            return device
    raise SpecError(
        msg(
            "--device {requested}: {name} has {devices} here.",
            requested=requested,
            name=backend.name,
            devices=", ".join(d.id for d in devices),
        )
    )


def _bridge_gaps(spec: RunSpec, backend: port.Backend, device: port.Device) -> tuple[RunSpec, list[Note]]:
    """Replace values that the backend lacks if they come from a preset. Raises Unsupported if the user set them."""
    notes = []
    for gap in backend.gaps():
        table, name = gap.setting.split(".")
        if gap.device not in ("", device.kind):
            continue
        group = spec.method.settings if table == "method" else getattr(spec, table)
        if getattr(group, name, None) != gap.value:
            continue
        if gap.instead is None or table == "method" or not preset_of(spec, gap.setting):
            hint = msg(" Use {value} instead.", value=gap.instead) if gap.instead is not None else ""
            raise Unsupported(
                msg(
                    "{setting} = {value} is not supported by {backend} here: {reason}.{hint}",
                    setting=gap.setting,
                    value=gap.value,
                    backend=backend.name,
                    reason=gap.reason,
                    hint=hint,
                )
            )
        group = group.model_copy(update={name: gap.instead})
        spec = spec.model_copy(update={table: group})
        notes.append(Note.chosen(gap.setting, gap.instead, gap.reason, replaced=gap.value))
    if tuner_key(spec) not in backend.tuners():
        raise Unsupported(
            msg(
                "method '{method}' is not implemented for {backend} yet. Try another --backend.",
                method=spec.method.key,
                backend=backend.name,
            )
        )
    return spec, notes
