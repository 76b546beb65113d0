"""A model in memory: base, tokenizer, session, adapters, and the key/value caches of running texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_local import backend as port
from finetune_local.adapter_format import WEIGHTS
from finetune_local.adapters.attach import attach
from finetune_local.adapters.companions import tokenizer_of
from finetune_local.adapters.library import base_of, entries, find, rope_factor_of, run_tables
from finetune_local.backend import Decoder, Session
from finetune_local.data.conversation import Message
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.base.tokenizer_files import TRAVEL
from finetune_local.spec.batch import Floats
from finetune_local.spec.defaults import precision as default_precision
from finetune_local.spec.run import DEFAULT_MODEL, ModelSettings, Precision, Quantisation, RunSpec
from finetune_local.system.errors import SpecError
from finetune_local.system.files import stamp
from finetune_local.system.messages import msg
from finetune_local.system.paths import Home

if TYPE_CHECKING:
    from finetune_local.data.tokenizers.tokenizer import Tokenizer


KEPT = 4
"""Number of caches in memory: as many as can answer side by side in a chat."""


class RunningText:
    """A text with its key/value cache: only new tokens are fed to the decoder, unless the text changed before its end.

    The cache is valid for one adapter: feed it only while that adapter is active.
    """

    def __init__(self) -> None:
        """An empty text."""
        self._decoder: Decoder | None = None
        self._fed: list[int] = []

    def reset(self) -> None:
        """Drop the cache."""
        self._decoder, self._fed = None, []

    def logits(self, session: Session, ids: Sequence[int]) -> Floats:
        """Logits after the last of `ids`, (vocabulary,)."""
        decoder, known = self._decoder, len(self._fed)
        if decoder is None or known >= len(ids) or list(ids[:known]) != self._fed:
            decoder, known = session.decoder(), 0
        self.reset()  # a feed that fails or is interrupted leaves the cache in an undefined state
        logits: Floats = decoder.feed([list(ids[known:])])[0]
        self._decoder, self._fed = decoder, list(ids)
        return logits


class RunningTexts:
    """One running text per adapter (None: the base), so that switching back to an adapter needs no second prefill."""

    def __init__(self, kept: int = KEPT) -> None:
        """At most `kept` texts are in memory; the least recently used is dropped."""
        self._kept = kept
        self._texts: dict[str | None, RunningText] = {}

    def of(self, adapter: str | None) -> RunningText:
        """The text of `adapter`, which must be active while the text is fed."""
        text = self._texts.pop(adapter, None) or RunningText()
        self._texts[adapter] = text
        while len(self._texts) > self._kept:
            del self._texts[next(iter(self._texts))]
        return text

    def forget(self, adapter: str | None) -> None:
        """Drop an adapter's text, because another adapter may get its name."""
        self._texts.pop(adapter, None)

    def clear(self) -> None:
        """Drop all texts, to free memory."""
        self._texts.clear()


Say = Callable[[str], None]


@dataclass
class Opened:
    """A model ready to answer. `adapters` maps names in memory to folders, in loading order.

    An adapter that has a tokenizer or chat template is prompted with it.
    """

    home: Home
    model: ModelFolder
    session: Session
    backend: str
    adapters: dict[str, Path] = field(default_factory=dict)
    active: str | None = None
    texts: RunningTexts = field(default_factory=RunningTexts)
    _versions: dict[str, object] = field(default_factory=dict)
    _tokenizers: dict[str | None, Tokenizer] = field(default_factory=dict)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the active adapter, else the base's."""
        return self.tokenizer_of(self.active)

    def tokenizer_of(self, name: str | None) -> Tokenizer:
        """The tokenizer of a loaded adapter (None: the base)."""
        if name not in self._tokenizers:
            self._tokenizers[name] = tokenizer_of(self.model.path, None if name is None else self.adapters[name])
        return self._tokenizers[name]

    def load(self, name_or_path: str, note: Say = lambda _: None) -> str:
        """Load an adapter beside the others and activate it; returns its name in memory. Raises AdapterError.

        One that is in memory is loaded again only if its files have changed, because its run was continued.
        """
        folder = find(name_or_path, self.home)
        version = _version(folder)
        for name, known in list(self.adapters.items()):
            if known == folder and self._versions.get(name) == version:
                self.activate(name)
                return name
            if known == folder:
                self.drop(name)
        name = self._free_name(folder, name_or_path)
        try:
            tokenizer = tokenizer_of(self.model.path, folder)
            attach(self.session, self.model, tokenizer, folder, name, note)
        except BaseException:
            if name in self.session.adapters():
                self.session.detach(name)
            self.session.activate(self.active)
            raise
        self.adapters[name], self._tokenizers[name] = folder, tokenizer
        self._versions[name] = version
        self.active = name
        return name

    def drop(self, name: str) -> None:
        """Remove an adapter from memory. If it is active, the base becomes active."""
        if self.active == name:
            self.activate(None)
        self.session.detach(name)
        self.texts.forget(name)
        del self.adapters[name]
        self._tokenizers.pop(name, None)
        self._versions.pop(name, None)

    def activate(self, name: str | None) -> float:
        """Activate a loaded adapter (None: the base); returns the time it took in milliseconds."""
        started = time.perf_counter()
        self.session.activate(name)
        self.active = name
        return (time.perf_counter() - started) * 1000

    def _free_name(self, folder: Path, name_or_path: str) -> str:
        stem = next(
            (e.name for e in entries(self.home) if e.folder.resolve() == folder), Path(name_or_path).name or folder.name
        )
        if stem == "adapter":
            stem = folder.parent.name
        elif folder.parent.name == "checkpoints":
            stem = f"{folder.parent.parent.name} {folder.name}"  # many runs have a checkpoint of the same step
        name, number = stem, 2
        while name in self.adapters or name == "base":
            name, number = f"{stem}-{number}", number + 1
        return name


def open_chat(
    home: Home,
    model: str | None,
    adapters: Sequence[str] = (),
    *,
    backend: str = "auto",
    precision: str | None = None,
    note: Say = lambda _: None,
    progress: Callable[[str, float | None], None] = lambda _name, _done: None,
) -> Opened:
    """Load a base and adapters; the last adapter is active. Without `model` it is the first adapter's base, else the small default.

    Without `precision` the base is quantized as in the adapters' training (8-bit or 4-bit); 4-bit is NF4 if it was in training,
    even if the backend prefers another format. Raises ModelError, AdapterError, SpecError, Unsupported, OutOfMemory.
    """
    from finetune_local.models.resolve import resolve

    folders = [find(name, home) for name in adapters]
    chosen, _ = port.choose(backend)
    folder = resolve(model or (base_of(folders[0]) if folders else None) or DEFAULT_MODEL, home, progress)
    folder = folder.stretched(rope_factor_of(folders[0]) if folders else 1.0)
    progress(msg("loading the model"), None)
    settled, quantisation = _precision(precision, folders, chosen.devices()[0])
    tokenizer_of(folder.path)  # raises its errors before the weights are read
    session = chosen.load(folder.path, settled, quantisation=quantisation, rope_factor=folder.rope_factor)
    opened = Opened(home, folder, session, chosen.name)
    for name in adapters:
        progress(msg("loading adapter {name}", name=name), None)
        opened.load(name, note)
    return opened


def _precision(requested: str | None, adapters: Sequence[Path], device: port.Device) -> tuple[Precision, Quantisation]:
    """The base's precision and its 4-bit quantization."""
    runs = [run_tables(folder).get("model", {}) for folder in adapters]
    trained_on = {str(run.get("precision")) for run in runs}
    if requested is None and len(trained_on) == 1 and trained_on <= {"8-bit", "4-bit"}:
        requested = trained_on.pop()
    # On a CPU decoding is bound by memory, not arithmetic, so bf16 gains little, and its answers would differ from the exports'.
    fast = device.fast_bf16 and device.kind != "cpu"
    spec = RunSpec(model=ModelSettings.model_validate({"precision": requested}))
    kinds = {str(run.get("quantisation")) for run in runs}
    return default_precision(spec, device.kind, fast)[0], "nf4" if kinds == {"nf4"} else "auto"


def _version(folder: Path) -> object:
    """A stamp of an adapter's files, which changes when they are replaced."""
    return stamp(folder, WEIGHTS, *TRAVEL)


def adapter_list(opened: Opened) -> list[dict[str, Any]]:
    """The adapters in memory, then those of the library that are not."""
    loaded = set(opened.adapters.values())
    here = [
        {"name": name, "folder": str(folder), "loaded": True, "active": name == opened.active}
        for name, folder in opened.adapters.items()
    ]
    return here + [
        {"name": found.name, "folder": str(found.folder), "loaded": False, "active": False}
        for found in entries(opened.home)
        if found.folder.resolve() not in loaded
    ]


def prompt_of(tokenizer: Tokenizer, text: str, system: str | None = None, raw: bool = False) -> list[int]:
    """Ids of a prompt: a question under the chat template or, with `raw`, a text to continue. Raises SpecError, RowRejected."""
    from finetune_local.data.encoding.encode import prompt_ids

    if raw and system:
        raise SpecError(msg("--system does not apply to a raw prompt: include it in --prompt, or use --chat."))
    before = [Message("system", system)] if system else []
    ids = prompt_ids([*before, Message("user", text)], tokenizer, "raw" if raw else "chat")
    if not ids:
        raise SpecError(msg("the prompt is empty: without a chat template there must be some text to continue."))
    return ids
