"""A micro-batch and what a model returns for it: numpy arrays in, a backend's arrays out.

The port, the objectives and both backends share these records, so this module is below all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
ValueKind = Literal["token values", "row values"]


def _no_groups() -> Ints:
    return np.zeros(0, np.int32)


def _no_weights() -> Floats:
    return np.zeros(0, np.float32)


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right to one length.

    `ids` (rows, length) int32; `lengths` (rows,) int32, the real tokens of each row; `mask` (rows, length) bool, true where
    a token is supervised, that is predicted from those before it (never at position 0).

    `group` (rows,) int32: rows with the same number belong to one example, such as the two answers of a preference pair.
    Micro-batches never split a group. Without it each row is an example.
    `weight` (rows,) float32: the objective's factor for a row, such as +1 and -1 for the chosen and the rejected answer, a label or
    an advantage. Without it 1.
    `reference` (n,) float32: log-probabilities of the n supervised tokens under the reference model, in row-major order
    as in Readout.logprobs. None until they are computed (Session.score with reference=True).
    """

    ids: Ints
    lengths: Ints
    mask: npt.NDArray[np.bool_]
    group: Ints = field(default_factory=_no_groups)
    weight: Floats = field(default_factory=_no_weights)
    reference: Floats | None = None

    def __post_init__(self) -> None:
        rows = len(self.ids)
        if not len(self.group):
            object.__setattr__(self, "group", np.arange(rows, dtype=np.int32))
        if not len(self.weight):
            object.__setattr__(self, "weight", np.ones(rows, np.float32))
        if len(self.group) != rows or len(self.weight) != rows:
            raise ValueError(f"{rows} rows have {len(self.group)} groups and {len(self.weight)} weights")
        if self.reference is not None and self.reference.shape != (self.supervised,):
            raise ValueError(f"{self.supervised} supervised tokens have {self.reference.shape} reference values")

    @property
    def supervised(self) -> int:
        """Number of supervised tokens, n."""
        return int(self.mask.sum())

    @property
    def tokens(self) -> int:
        """Number of real tokens, without padding."""
        return int(self.lengths.sum())

    @property
    def token_rows(self) -> Ints:
        """The row of each supervised token, (n,) int32, in row-major order."""
        rows: Ints = np.nonzero(self.mask)[0].astype(np.int32)
        return rows

    @property
    def row_groups(self) -> Ints:
        """The example of each row, (rows,) int32, numbered 0, 1, ... within this batch."""
        groups: Ints = np.unique(self.group, return_inverse=True)[1].reshape(-1).astype(np.int32)
        return groups

    @property
    def examples(self) -> int:
        """Number of groups."""
        return len(np.unique(self.group))


@dataclass(frozen=True)
class Readout:
    """A model's outputs for a batch, as arrays of a backend (numpy for scores).

    `logprobs` (n,): log-probabilities of the supervised tokens, in row-major order.
    `values`: outputs of the scalar head, None if the objective does not need them. For the need "token values" (n,), at
    the hidden state that predicts each supervised token; for "row values" (rows,), at each row's last real token.
    """

    logprobs: Any
    values: Any = None
