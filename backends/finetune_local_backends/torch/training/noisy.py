"""NEFTune's noise on torch: a hook on the embedding while a micro-batch is read for training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from finetune_local.spec.batch import Floats
from finetune_local_backends.torch.base.load import Base


@contextmanager
def noisy(base: Base, noise: Floats | None) -> Iterator[None]:
    """Within it `noise` (rows, length or more, d) is added to the embedding's output; None: nothing is.

    Some families multiply inside the embedding (Gemma), others after it: the noise is that of the matrix's rows in both.
    """
    if noise is None:
        yield
        return
    added = torch.from_numpy(noise).to(base.place)

    def hook(module: torch.nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
        factor = getattr(module, "embed_scale", 1.0)
        return output + (added[:, : output.shape[1]] * factor).to(output.dtype)

    handle = base.model.get_input_embeddings().register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
