"""The arithmetic of each tuner: one file per file of spec/tuners, each with an `attach()`; see adapter.py beside the backends."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from finetune_local.spec.batch import Floats
from finetune_local_backends.adapter import Adapter


class TorchAdapter(Adapter[nn.Parameter]):
    """See Adapter. Gradients are in the parameters' `grad`."""

    def tensors(self) -> dict[str, Floats]:
        """See Adapter."""
        return {name: np.array(value.detach().cpu().numpy(), np.float32) for name, value in self.parameters.items()}

    def train(self, trained: frozenset[str]) -> None:
        """Compute gradients of exactly these parameters; an empty set turns training off."""
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(name in trained)

    def penalty(self) -> torch.Tensor | None:
        """The tuner's regularisation, a scalar that a step adds to its loss once and does not report, or None."""
        return None


def tensor(array: Floats, device: torch.device) -> torch.Tensor:
    """A copy of a numpy array as an fp32 tensor."""
    return torch.from_numpy(array.astype("float32", copy=True)).to(device)
