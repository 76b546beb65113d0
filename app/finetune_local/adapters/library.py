"""The adapters on this machine: results of runs (runs/NAME/adapter) and imported ones (adapters/NAME)."""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune_local.adapter_format import CONFIG, WEIGHTS, plan_of, read_peft
from finetune_local.adapters.identity import FILE as IDENTITY
from finetune_local.adapters.identity import AdapterIdentity, read_identity
from finetune_local.models.install import source_of
from finetune_local.models.tensors import read_header
from finetune_local.spec.base.tokenizer_files import TRAVEL, brought
from finetune_local.spec.low_rank.full_copies import NOT_TRAINED
from finetune_local.spec.tuners import holds_base_weights, trainable_parameters, tuner_of
from finetune_local.system.errors import AdapterError, ModelError, typed
from finetune_local.system.fields import did_you_mean
from finetune_local.system.files import stamp
from finetune_local.system.messages import Message, message_of, msg
from finetune_local.system.paths import Home, located
from finetune_local.system.untrusted.text import ForeignTextError, read_json_object

NOTE = "note.txt"
MADE_FROM = "made_from"
"""File in a run folder with the name of the run whose settings it started from."""


@dataclass(frozen=True)
class AdapterFacts:
    """What lists show of an adapter. Its fields are the keys of `adapters list --json`; None where a fact is unknown."""

    name: str
    origin: str
    """"run" or "imported"."""
    folder: str
    base: str | None = None
    method: str | None = None
    rank: int | None = None
    parameters: int | None = None
    whole: bool = False
    """Whether it stores the base's own weights."""
    run: str | None = None
    made_from: str | None = None
    """The run whose settings its run started from."""
    extracted_from: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[str] = ()
    """The training data."""
    step: int | None = None
    created: str | None = None
    """ISO 8601."""
    created_time: float | None = None
    """Seconds since the epoch."""
    bytes: int = 0
    note: str = ""
    beside: Sequence[str] = ()
    """Names of the files that decide how it is prompted; attach.brings() describes them."""
    problem: Message | None = None
    """Why it cannot be used; None for a sound one."""

    def as_json(self) -> dict[str, Any]:
        """What verbs print of one adapter. It has no `problem`: an adapter that cannot be used is an error there."""
        return {name: value for name, value in asdict(self).items() if name != "problem"}


@dataclass(frozen=True)
class AdapterDetails:
    """Everything known about one adapter: facts with the exact number of parameters, adapted modules, settings of its method.

    `more` has the facts that only its tuner has, by label.
    """

    facts: AdapterFacts
    modules: int
    settings: Mapping[str, Any]
    mergeable: bool
    more: Mapping[str, object]

    def as_json(self) -> dict[str, Any]:
        """The object that `adapters info --json` prints."""
        own = {"modules": self.modules, "settings": self.settings, "mergeable": self.mergeable}
        return {**self.facts.as_json(), **own, **self.more}


@dataclass(frozen=True)
class Entry:
    """One adapter: its name here, its folder, and whether it is a run's result or imported."""

    name: str
    folder: Path
    origin: str  # "run" or "imported"

    @property
    def identity(self) -> AdapterIdentity | None:
        """See read_identity."""
        return read_identity(self.folder)

    @property
    def extracted_from(self) -> Mapping[str, Any]:
        """The full fine-tune it was extracted from; empty if it was not extracted or that cannot be read."""
        try:
            identity = self.identity
        except AdapterError:
            return {}
        source = identity.extra.get("extracted_from") if identity else None
        return source if isinstance(source, Mapping) else {}

    @property
    def bytes_on_disk(self) -> int:
        """Size of the folder's files in bytes."""
        return _size(self.folder)

    @property
    def note(self) -> str:
        """The user's note."""
        path = self.folder / NOTE
        return path.read_text("utf-8", "replace").strip() if path.is_file() else ""

    @property
    def stamp(self) -> object:
        """A value that changes whenever the result of describe() may have changed."""
        return stamp(self.folder, CONFIG, WEIGHTS, IDENTITY, NOTE, "../run.json", "../" + MADE_FROM, *TRAVEL)

    def describe(self) -> AdapterFacts:
        """The facts for lists, without reading the weights. Raises AdapterError."""
        identity, config = self.identity, read_peft(self.folder)
        files = run_tables(self.folder).get("data", {}).get("files") if self.origin == "run" else None
        extra = identity.extra if identity else {}
        return AdapterFacts(
            name=self.name,
            origin=self.origin,
            folder=str(self.folder),
            base=identity.base.name if identity else config.base_model_name_or_path,
            method=identity.method if identity else (config.peft_type or "").lower(),
            rank=config.r,
            parameters=extra.get("parameters") or _numbers_in(self.folder / WEIGHTS),
            whole=holds_base_weights(config),
            run=self.name if self.origin == "run" else identity.run if identity else None,
            made_from=made_from(self.folder.parent) if self.origin == "run" else None,
            extracted_from=dict(self.extracted_from),
            files=[str(name) for name in files] if isinstance(files, list) else [],
            step=extra.get("step"),
            created=identity.created if identity else None,
            created_time=_seconds(identity.created if identity else "", self.folder / WEIGHTS),
            bytes=self.bytes_on_disk,
            note=self.note,
            beside=list(brought(self.folder)),
        )

    def listed(self) -> AdapterFacts:
        """As describe(); for a damaged adapter the reason why it cannot be read, and what is known without reading it."""
        try:
            return self.describe()
        except (AdapterError, ModelError) as error:
            problem = message_of(error)
        except (OSError, TypeError, ValueError, AttributeError) as error:
            problem = msg(
                "{folder}: cannot be read ({error}). Copy the adapter again.", folder=self.folder, error=error
            )
        return AdapterFacts(
            name=self.name,
            origin=self.origin,
            folder=str(self.folder),
            created_time=_seconds("", self.folder / WEIGHTS),
            bytes=self.bytes_on_disk,
            problem=problem,
        )


class Library:
    """The list of adapters, cached: on each listing only changed ones are read again."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._known: dict[Path, tuple[object, AdapterFacts]] = {}

    def listing(self) -> list[AdapterFacts]:
        """Entry.listed() of every adapter, runs first, each group by name."""
        found: dict[Path, tuple[object, AdapterFacts]] = {}
        for one in entries(self._home):
            now, known = one.stamp, self._known.get(one.folder)
            found[one.folder] = known if known is not None and known[0] == now else (now, one.listed())
        self._known = found
        return [facts for _, facts in found.values()]


def details(name: str, folder: Path, origin: str) -> AdapterDetails:
    """Everything known about one adapter. Reads only the header of the weights. Raises AdapterError, ModelError."""
    shapes = {key: value.shape for key, value in read_header(folder / WEIGHTS).items()}
    plan = plan_of(folder, read_peft(folder), shapes)
    tuner = tuner_of(plan)
    return AdapterDetails(
        facts=replace(Entry(name, folder, origin).describe(), parameters=trainable_parameters(plan)),
        modules=len(plan.targets),
        settings=plan.settings.model_dump(mode="json", exclude={"targets"}),
        mergeable=tuner.merge_refusal(plan) is None,
        more=tuner.facts(plan),
    )


def listing(home: Home) -> list[AdapterFacts]:
    """Every adapter as Entry.listed() has it, runs first, each group by name."""
    return Library(home).listing()


def entries(home: Home) -> Iterator[Entry]:
    """Every adapter, runs first, each group by name."""
    runs, imported = home.runs, home.adapters
    for name in _named(runs):
        if None not in stamp(runs, f"{name}/adapter/{CONFIG}", f"{name}/adapter/{WEIGHTS}"):
            yield Entry(name, runs / name / "adapter", "run")
    for name in _named(imported):
        if None not in stamp(imported, f"{name}/{CONFIG}", f"{name}/{WEIGHTS}"):
            yield Entry(name, imported / name, "imported")


def _named(folder: Path) -> list[str]:
    """The entries of a folder, without hidden ones, which are left over from a killed import."""
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))  # noqa: PTH208 - no Path for each of thousands


def is_adapter(folder: Path) -> bool:
    """Whether PEFT's two files exist."""
    return None not in stamp(folder, CONFIG, WEIGHTS)


def entry(name: str, home: Home) -> Entry:
    """The adapter called `name`. Raises AdapterError that suggests similar names."""
    known = {found.name: found for found in entries(home)}  # an imported one wins: import refuses names of runs
    if name not in known:
        hint = did_you_mean(name, list(known))
        listed = f" Known: {', '.join(known)}." if known and not hint else ""
        raise AdapterError(
            msg(
                "there is no adapter '{name}'.{hint}{listed} List adapters with `finetune-local adapters list`, or "
                "use a folder's path.",
                name=name,
                hint=hint,
                listed=listed,
            )
        )
    return known[name]


def find(name_or_path: str | Path, home: Home) -> Path:
    """The folder of an adapter given as a path, a run folder, a run's name or a name in the library. Raises AdapterError."""
    path = located(name_or_path)
    if path.is_dir():
        for folder in (path, path / "adapter"):
            if (folder / CONFIG).is_file():
                return folder.resolve()
    if set(str(name_or_path)) & set("/\\"):
        what = msg("it has no {config}", config=CONFIG) if path.is_dir() else msg("folder not found")
        raise AdapterError(
            msg(
                "--adapter {name_or_path}: {what}. Use an adapter's folder, a run's name or a library name.",
                name_or_path=name_or_path,
                what=what,
            )
        )
    unfinished = home.runs / str(name_or_path)
    if unfinished.is_dir() and not is_adapter(unfinished / "adapter"):
        raise AdapterError(
            msg(
                "run '{name}' has no adapter yet: it did not finish. Continue it with `finetune-local resume {name2}`.",
                name=name_or_path,
                name2=typed(str(name_or_path)),
            )
        )
    return entry(str(name_or_path), home).folder.resolve()


def run_folder(adapter: Path) -> Path | None:
    """The run folder that contains an adapter (NAME/adapter) or a checkpoint (NAME/checkpoints/step-000100); None for others."""
    return next((p for p in (adapter.parent, adapter.parent.parent) if (p / "run.json").is_file()), None)


def run_tables(adapter: Path) -> dict[str, dict[str, Any]]:
    """run.json of the run an adapter belongs to; empty for imported ones. Raises AdapterError."""
    run = run_folder(adapter)
    if run is None:
        return {}
    try:
        values = read_json_object(run / "run.json")
    except (OSError, ForeignTextError) as error:
        raise AdapterError(
            msg("{run}: cannot be read ({error}). Copy the file again.", run=run / "run.json", error=error)
        ) from None
    return {name: table for name, table in values.items() if isinstance(table, dict)}


def made_from(run: Path) -> str | None:
    """The run whose settings a run folder started from; None if it did not start from another."""
    try:
        return (run / MADE_FROM).read_text("utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def rope_factor_of(folder: Path) -> float:
    """The factor by which the adapter's run stretched the base's rotary positions; 1.0 if it did not."""
    identity = read_identity(folder)
    return identity.base.rope_factor if identity else 1.0


def base_of(folder: Path) -> str | None:
    """The base an adapter was trained on, as a value for `--model`: the run's own setting, else the recorded name."""
    chosen = run_tables(folder).get("model", {}).get("id")
    if not chosen and (identity := read_identity(folder)):
        chosen = identity.base.name
    chosen = chosen or read_peft(folder).base_model_name_or_path
    return str(chosen) if chosen else None


def _numbers_in(weights: Path) -> int:
    """The number of parameters in a weights file, from its header."""
    return sum(
        math.prod(stored.shape) for name, stored in read_header(weights).items() if not name.endswith(NOT_TRAINED)
    )


def _seconds(created: str, weights: Path) -> float | None:
    """Creation time in seconds since the epoch: the recorded one, else the file's."""
    try:
        return datetime.datetime.fromisoformat(created).timestamp() if created else weights.stat().st_mtime
    except (OSError, ValueError, OverflowError):
        return None


def _size(folder: Path) -> int:
    try:
        return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    except OSError:
        return 0


def made_on(name: str, home: Home) -> list[str]:
    """Names of the adapters trained on an installed model, matched by the names their base is known under."""
    folder = home.models / name
    words = {name, str(folder), str(source_of(folder).get("from") or name)}
    return [entry.name for entry in entries(home) if _base(entry.folder) in words]


def _base(adapter: Path) -> str | None:
    try:
        return base_of(adapter)
    except AdapterError:  # damaged: its base is unknown
        return None
