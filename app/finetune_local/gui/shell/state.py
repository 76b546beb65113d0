"""The state of a window. Each page declares its part as a dataclass; Shared is the part that several pages use.

    @dataclass(eq=False)
    class DataState(State, prefix="data_"):
        row: int = 0

`window.state(DataState).row = 3` is written to the window's draft, a JSON file, a moment later, under the key "data_row". A draft is
validated when it is read: a value that does not fit its field, from an older version or a damaged file, is replaced by the default.
Values must be immutable: assign a new value instead of changing one in place. No field may be called "reset".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar, Literal, Self, get_type_hints

from pydantic import TypeAdapter, ValidationError

from finetune_local.spec.run import DataSettings
from finetune_local.training.run_folder.forecast import DataFacts

Keep = Callable[[str, Any], None]
"""Called with a key and its JSON value, or None for the default, which is not stored."""


@dataclass(eq=False)
class State:
    """Base class. A field is stored under the prefix and its name, or under the `key` of stored()."""

    _prefix: ClassVar[str] = ""

    def __init_subclass__(cls, prefix: str = "") -> None:
        cls._prefix = prefix

    @classmethod
    def read(cls, draft: Mapping[str, Any], keep: Keep) -> Self:
        """The state in a draft. From then on, `keep` is called with each field that changes."""
        state = cls()
        for one in fields(cls):
            if (value := draft.get(cls.key(one))) is not None:
                try:
                    object.__setattr__(state, one.name, _adapters(cls)[one.name].validate_python(value))
                except ValidationError:
                    continue
        object.__setattr__(state, "_keep", keep)
        return state

    @classmethod
    def key(cls, one: Field[Any]) -> str:
        """The key of a field in the draft."""
        return str(one.metadata.get("key") or cls._prefix + one.name)

    def reset(self, *names: str) -> None:
        """Set fields to their defaults."""
        for one in fields(self):
            if one.name in names:
                setattr(self, one.name, _default(one))

    def __setattr__(self, name: str, value: Any) -> None:
        keep: Keep | None = self.__dict__.get("_keep")
        if keep is not None and getattr(self, name) == value:
            return
        object.__setattr__(self, name, value)
        if keep is not None:
            one = next(one for one in fields(self) if one.name == name)
            plain = (
                None
                if value == _default(one)
                else _adapters(type(self))[name].dump_python(value, mode="json", exclude_defaults=True)
            )
            keep(self.key(one), plain)


def stored(key: str, default: Any = MISSING, factory: Any = MISSING) -> Any:
    """A field that is stored under `key`, without the prefix."""
    return field(default=default, default_factory=factory, metadata={"key": key})


_known: dict[type, Mapping[str, TypeAdapter[Any]]] = {}


def _adapters(kind: type[State]) -> Mapping[str, TypeAdapter[Any]]:
    """A pydantic adapter for each field. They are cached, as they are slow to create."""
    if kind not in _known:
        hints = get_type_hints(kind)
        _known[kind] = {one.name: TypeAdapter(hints[one.name]) for one in fields(kind)}
    return _known[kind]


def _default(one: Field[Any]) -> Any:
    return one.default_factory() if one.default_factory is not MISSING else one.default


RunsView = Literal["list", "run", "compare"]


@dataclass(eq=False)
class Shared(State):
    """What the pages of a window share. Empty texts and None mean that nothing is chosen."""

    page: str = ""
    """The page in view."""
    model: str = ""
    """The base model to train and to chat with."""
    data: DataSettings = field(default_factory=DataSettings)
    """The data to train on; without files nothing is chosen."""
    data_facts: DataFacts | None = None
    """Facts about this data: number of examples, lengths."""
    data_kinds: tuple[str, ...] = ()
    """Kinds of examples in this data (spec/objectives); empty if not known."""

    method: str = ""
    goal: str = ""
    form: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the run being set up, by dotted path, as typed."""
    run_name: str = ""
    made_from: str = ""
    """The run whose settings were copied."""
    setting_up: bool = False
    """Whether a run is being set up while another one trains."""
    run: str = ""
    """The run that the Train page shows."""

    adapter: str | None = None
    """The adapter to evaluate or export; "" is the base model without one."""
    adapters: tuple[str, ...] = ()
    """The adapters that answer in the chat."""
    evaluation: str = ""
    """The evaluation in view."""
    runs_view: RunsView = "list"
    opened_run: str = stored("runs_shown", "")
    """The run that is open on the Runs page."""
    opened_adapter: str = stored("adapters_shown", "")
    """The adapter that is open on the Adapters page."""

    def rename(self, old: str, new: str) -> None:
        """Replace the name of a run or an adapter wherever it is chosen."""
        self.run = new if self.run == old else self.run
        self.adapter = new if self.adapter == old else self.adapter
        self.opened_run = new if self.opened_run == old else self.opened_run
        self.opened_adapter = new if self.opened_adapter == old else self.opened_adapter
        self.adapters = tuple(new if name == old else name for name in self.adapters)
