"""Results of the lookup process (gui/lookups/worker.py) for pages: requested in a thread, and shown once they have arrived."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from finetune_local.backend import Device
from finetune_local.runtime.rpc import RpcClient
from finetune_local.system.errors import FinetuneError
from finetune_local.system.files import write_text
from finetune_local.system.messages import SAID, carried, carrying, message_of
from finetune_local.system.paths import Home
from finetune_local.system.untrusted.text import ForeignTextError, read_json_object

_DEVICE = frozenset(field.name for field in fields(Device))
_NEEDED = _DEVICE - {"fast_bf16"}
_KEPT = 32


class _Stored(BaseModel):
    """The fields of machine.json that pages rely on."""

    model_config = ConfigDict(extra="allow", strict=True)

    backend: str | None
    devices: list[dict[str, str | int | bool]]
    memory_bytes: int
    memory_free_bytes: int
    disk_free_bytes: int
    processors: int
    notes: list[str]
    flops: float = 0.0


class MachineFacts:
    """This machine, as `doctor --json` reports it. Stored on disk, and refreshed at each start; empty until the first lookup has returned."""

    def __init__(self, home: Home, client: RpcClient) -> None:
        """`client` is not shared with other lookups: this one imports every framework, which previews of data must not wait for. Its process
        is ended after each lookup."""
        self._file = home.window / "machine.json"
        self._client = client
        self.facts: Mapping[str, Any] = {}
        self.problem = ""
        self.refreshing = False
        # A damaged file is ignored: the facts are refreshed at each start.
        with suppress(OSError, ForeignTextError, ValidationError):
            stored = read_json_object(self._file)
            self.facts = carried({**_Stored.model_validate(stored).model_dump(), SAID: stored.get(SAID)})

    def refresh(self) -> None:
        """Refresh the facts in a thread."""
        if not self.refreshing:
            self.refreshing = True
            threading.Thread(target=self._refresh, name="machine", daemon=True).start()

    def _refresh(self) -> None:
        try:
            self.facts, self.problem = self._client.call("machine"), ""
            write_text(self._file, json.dumps(carrying(self.facts), ensure_ascii=False))
        except (FinetuneError, RuntimeError, OSError) as error:
            self.problem = message_of(error)
        self._client.close()
        self.refreshing = False

    def close(self) -> None:
        """End a lookup in progress."""
        self._client.close()

    @property
    def backend(self) -> str | None:
        """The backend that a run would use; None if there is none, or it is not known yet."""
        name = self.facts.get("backend")
        return str(name) if name else None

    def devices(self, backend: str | None = None) -> list[Device]:
        """The devices of a backend, by default the one that a run would use; the best first."""
        name = backend if backend not in (None, "auto") else self.backend
        found = [device for device in self.facts.get("devices", ()) if device.get("backend") == name]
        return [
            Device(**{k: v for k, v in device.items() if k in _DEVICE}) for device in found if set(device) >= _NEEDED
        ]

    def device(self, backend: str | None = None, requested: str | None = None) -> Device | None:
        """The device that a run would use; `requested` is an id or a kind of device."""
        devices = self.devices(backend)
        return next(
            (d for d in devices if requested in (d.id, d.kind)), devices[0] if devices and not requested else None
        )


@dataclass(frozen=True)
class Answer:
    """The newest value (None before the first), the error of the last request, and whether a request is in progress."""

    value: Any = None
    problem: Exception | None = None
    waiting: bool = False


class Answers:
    """Cached answers of one procedure. Safe to use from any thread."""

    def __init__(self, client: RpcClient, procedure: str) -> None:
        self._client, self._procedure = client, procedure
        self._known: dict[tuple[tuple[str, Any], ...], Answer] = {}
        self._lock = threading.Lock()

    def ask(self, *, again: bool = False, **values: Any) -> Answer:
        """The cached answer. It is requested if there is none, or with `again`; the old value remains until the new one arrives."""
        key = tuple(sorted(values.items()))
        with self._lock:
            known = self._known.get(key)
            if known is not None and (known.waiting or not again):
                return known
            answer = Answer(known.value if known else None, None, waiting=True)
            self._known.pop(key, None)
            while len(self._known) >= _KEPT:
                self._known.pop(next(iter(self._known)))
            self._known[key] = answer
        threading.Thread(target=self._fetch, args=(key, values), name=self._procedure, daemon=True).start()
        return answer

    def _fetch(self, key: tuple[tuple[str, Any], ...], values: dict[str, Any]) -> None:
        try:
            answer = Answer(self._client.call(self._procedure, **values))
        except (FinetuneError, RuntimeError, OSError) as error:
            answer = Answer(None, error)
        with self._lock:
            if key in self._known:
                self._known[key] = answer
