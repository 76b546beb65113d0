"""A toy Session in numpy for tests of what is above the port: its logits follow from the last ids and the adapter.

It is no stand-in for a backend: tests/conformance runs the same things on the real ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from finetune_local.backend import Device
from finetune_local.spec.batch import Batch, Floats
from finetune_local.spec.plan import AdapterPlan
from finetune_local.system.errors import OutOfMemory

Rule = Callable[[str | None, Sequence[int]], Floats]


class ToySession:
    """`rule(adapter, ids)` gives the logits after ids; without one they are random, by the last two ids and the adapter."""

    precision = "fp32"
    device = Device("cpu", "cpu", "toy", 0)
    ensemble_size, virtual_tokens = 1, 0

    def __init__(self, vocabulary: int, rule: Rule | None = None, most_rows: int = 1000) -> None:
        self.vocabulary, self.most_rows = vocabulary, most_rows
        self.rule = rule or self.random_rule
        self.active: str | None = None
        self.loaded: dict[str, float] = {}
        self.decoders = 0
        self.fed: list[int] = []
        """How many ids each feed gave to each row."""

    def random_rule(self, adapter: str | None, ids: Sequence[int]) -> Floats:
        strength = self.loaded.get(adapter, 0.0) if adapter else 0.0
        base = self._noise("base", ids)
        return base + np.float32(strength) * self._noise(str(adapter), ids)

    def _noise(self, word: str, ids: Sequence[int]) -> Floats:
        seed = zlib.crc32(f"{word}:{list(ids[-2:])}:{len(ids)}".encode())
        return np.random.default_rng(seed).normal(0, 3, self.vocabulary).astype(np.float32)

    def attach(self, name: str, plan: AdapterPlan, seed: int, tensors: Mapping[str, Floats] | None = None) -> int:
        b = [t for n, t in (tensors or {}).items() if ".lora_B." in n]
        self.loaded[name] = float(sum(np.abs(t).sum() for t in b))
        self.active = name
        return sum(t.size for t in (tensors or {}).values())

    def detach(self, name: str) -> None:
        del self.loaded[name]
        if self.active == name:
            self.active = None

    def adapters(self) -> list[str]:
        return list(self.loaded)

    def activate(self, name: str | None) -> None:
        assert name is None or name in self.loaded
        self.active = name

    def logits(self, ids: Sequence[int]) -> Floats:
        return np.stack([self.rule(self.active, ids[: i + 1]) for i in range(len(ids))])

    def score(self, batch: Batch) -> Floats:
        result = []
        for ids, mask in zip(batch.ids, batch.mask, strict=True):
            for at in np.flatnonzero(mask):
                logits = self.rule(self.active, [int(i) for i in ids[:at]]).astype(np.float64)
                result.append(logits[ids[at]] - logits.max() - np.log(np.exp(logits - logits.max()).sum()))
        return np.array(result, np.float32)

    def decoder(self) -> ToyDecoder:
        self.decoders += 1
        return ToyDecoder(self)


class ToyDecoder:
    """See Decoder; keeps to its rules strictly."""

    def __init__(self, session: ToySession) -> None:
        self.session, self.adapter = session, session.active
        self.rows: list[list[int]] | None = None

    def feed(self, rows: Sequence[Sequence[int]]) -> Floats:
        assert rows and all(rows), "each row needs at least one token"
        if len(rows) > self.session.most_rows:
            raise OutOfMemory("toy")
        if self.rows is None:
            self.rows = [[] for _ in rows]
        else:
            assert len(rows) == len(self.rows) and len({len(row) for row in rows}) == 1
        self.session.fed.append(max(len(row) for row in rows))
        for known, new in zip(self.rows, rows, strict=True):
            known.extend(new)
        return np.stack([self.session.rule(self.adapter, known) for known in self.rows])
