"""Full copies of embeddings, heads and norms on MLX, as selected by spec/low_rank/full_copies.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from finetune_local.spec.low_rank.full_copies import BIAS, WEIGHT, is_full_copy, is_table, kind_of, module_of, shape_of
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import PREFIX
from finetune_local.system.errors import ModelError, Unsupported
from finetune_local.system.messages import msg
from finetune_local_backends.mlx.base.model import Model, Place
from finetune_local_backends.mlx.layers.wrapped import AdapterLayer

HEAD_WEIGHT = "head_weight"


class WholeLayer(AdapterLayer):
    """A trained weight (and a norm's bias) that replaces the module's; fp32, cast to the base's type when used.

    A head tied to an embedding uses a separate copy, `head_weight`, if there is one, otherwise the base's weight.
    """

    weight: mx.array
    bias: mx.array
    head_weight: mx.array

    def __init__(self, module: str, names: Mapping[str, str]) -> None:
        super().__init__(module, names)
        self._cast: dict[str, tuple[mx.array, mx.array]] = {}

    def __call__(self, base: Any, *args: Any, **kwargs: Any) -> mx.array:
        """The module's output with the trained copies in place of its parameters."""
        with self._instead(base, {name: name for name in self.names if name != HEAD_WEIGHT}):
            result: mx.array = base(*args, **kwargs)
        return result

    def as_linear(self, base: Any, x: mx.array) -> mx.array:
        """See AdapterLayer."""
        with self._instead(base, {"weight": HEAD_WEIGHT} if HEAD_WEIGHT in self.names else {}):
            result: mx.array = base.as_linear(x)
        return result

    def refresh(self, base: Any) -> None:
        """Cast untrained copies once, since tables are large."""
        self._cast = {}
        for name in self.names:
            own, dtype = getattr(self, name), base["weight"].dtype
            if own.dtype != dtype:
                self._cast[name] = own, own.astype(dtype)
        mx.eval([made for _, made in self._cast.values()])

    @contextmanager
    def _instead(self, base: Any, names: Mapping[str, str]) -> Iterator[None]:
        """Within this context arrays of this layer replace the module's; `names` maps the module's names to the layer's."""
        before = {name: base[name] for name in names}
        try:
            for name, array in before.items():
                own = getattr(self, names[name])
                known = self._cast.get(names[name])
                base[name] = known[1] if known is not None and known[0] is own else own.astype(array.dtype)
            yield
        finally:
            for name, array in before.items():
                base[name] = array


def whole_layers(model: Model, plan: AdapterPlan) -> dict[str, tuple[Place, AdapterLayer]]:
    """The layers and their places by module name. Raises ModelError if the model has no such weight."""
    names: dict[str, dict[str, str]] = {}
    places: dict[str, Place] = {}
    for target in plan.targets:
        if not is_full_copy(target):
            continue
        tied = model.embedding_of(target.module)
        place = model.weights.get(tied or target.module)
        owner = place.owner if place else None
        first = 1 if is_table(target) else 0  # a table may have another number of rows
        if (
            place is None
            or not isinstance(owner, nn.Module)
            or tuple(place.get().shape[first:]) != shape_of(target)[first:]
        ):
            raise ModelError(
                msg(
                    "this model has no {module} of shape {shape} under MLX.",
                    module=target.module,
                    shape=shape_of(target),
                )
            )
        if not mx.issubdtype(place.get().dtype, mx.floating):
            raise Unsupported(
                msg(
                    "{module} is quantised under MLX, but the adapter has its own copy. Use --precision bf16.",
                    module=target.module,
                )
            )
        module = module_of(target) if tied is None else tied.removesuffix(WEIGHT)
        names.setdefault(module, {})["weight" if tied is None else HEAD_WEIGHT] = PREFIX + target.module
        places[module] = model.modules[id(owner)]
    for target in plan.targets:
        module = target.module.removesuffix(BIAS)
        if target.module.endswith(BIAS) and kind_of(target.module) == "norms" and module in names:
            names[module]["bias"] = PREFIX + target.module
    return {module: (places[module], WholeLayer(module, own)) for module, own in names.items()}
