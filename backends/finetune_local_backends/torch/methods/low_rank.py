"""LoRA and DoRA on torch: PEFT's layers hold the adapters, our kernels compute them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from peft.tuners.lora import layer as peft_layer
from torch import nn

from finetune_local.backend import Floats
from finetune_local.errors import ModelError
from finetune_local.spec.families.low_rank import MAGNITUDE, PREFIX, A, B, LowRankSettings
from finetune_local.spec.plan import AdapterPlan, Target
from finetune_local_backends.initial import kaiming_uniform
from finetune_local_backends.torch import kernels
from finetune_local_backends.torch.load import Base
from finetune_local_backends.torch.methods import tensor
from finetune_local_backends.torch.quantised import QuantisedLinear


class _Magnitude(nn.Module):
    """DoRA's magnitude (out,) and the squared row norms of the base weight, which do not change."""

    def __init__(self, weight: torch.Tensor, squares: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.register_buffer("squares", squares, persistent=False)
        self.squares: torch.Tensor


class Layer(peft_layer.Linear):  # type: ignore[misc]  # peft has no types
    """PEFT's LoRA layer with the arithmetic of kernels.py, over dense and quantised bases alike."""

    def _get_in_out_features(self, module: nn.Linear | QuantisedLinear) -> tuple[int, int]:
        return module.in_features, module.out_features

    def resolve_lora_variant(self, *, config: LoraConfig, **kwargs: Any) -> None:
        """None: DoRA is computed by `forward`, not by a variant of PEFT's (which makes B·A in full at each call)."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """x (..., in) to (..., out), by the base alone where no adapter of this layer is active."""
        name = None if self.disable_adapters else next(iter(self.active_adapters), None)
        if name is None or name not in self.lora_A:
            return cast(torch.Tensor, self.base_layer(x))
        a, b, scale = self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        magnitude = norm = None
        if name in self.lora_magnitude_vector:
            holder = cast(_Magnitude, self.lora_magnitude_vector[name])
            magnitude = holder.weight
            with torch.no_grad():
                norm = kernels.row_norms(kernels.dense_weight(self.base_layer, a.dtype), a, b, scale, holder.squares)
        dropout = self.lora_dropout[name]
        if self.training and isinstance(dropout, nn.Dropout) and torch.is_grad_enabled():
            return kernels.low_rank_plain(x, dropout(x), a, b, magnitude, norm, scale, self.base_layer)
        result: torch.Tensor = kernels.LowRankLinear.apply(  # type: ignore[no-untyped-call]
            x, a, b, magnitude, norm, scale, self.base_layer
        )
        return result


class LowRankAdapters:
    """See Adapters. PEFT keys its layers by names without dots, so each adapter has a number there."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._tuner: Any = None
        self._keys: dict[str, str] = {}
        self._layers: dict[str, dict[str, Layer]] = {}
        self._count = 0

    def attach(self, name: str, plan: AdapterPlan, seed: int, tensors: Mapping[str, Floats] | None) -> None:
        """See Adapters."""
        settings = cast(LowRankSettings, plan.settings)
        for target in plan.targets:
            self._check(target)
        given = tensors if tensors is not None else self._initial(plan, settings, seed)
        key, self._count = f"adapter{self._count}", self._count + 1
        self._inject(key, plan, settings)
        layers = {target.module: self._base.model.get_submodule(target.module) for target in plan.targets}
        try:
            for module, layer in layers.items():
                self._fill(layer, key, PREFIX + module, given, settings.use_dora)
        except BaseException:
            for layer in layers.values():  # PEFT has made it the active one
                layer._active_adapter, layer._disable_adapters = [], True
            self._forget(key, layers.values())
            raise
        self._keys[name], self._layers[name] = key, layers
        self.activate(None)

    def detach(self, name: str) -> None:
        """See Adapters."""
        self._forget(self._keys.pop(name), self._layers.pop(name).values())

    def activate(self, name: str | None) -> None:
        """See Adapters. Layers the adapter does not have pass to their base."""
        if self._tuner is None:
            return
        key = None if name is None else self._keys[name]
        for module in self._every_layer():
            module._active_adapter = [] if key is None else [key]
            module._disable_adapters = key is None

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """See Adapters."""
        key = self._keys[name]
        result: dict[str, nn.Parameter] = {}
        for module, layer in self._layers[name].items():
            result[PREFIX + module + A] = layer.lora_A[key].weight
            result[PREFIX + module + B] = layer.lora_B[key].weight
            if key in layer.lora_magnitude_vector:
                result[PREFIX + module + MAGNITUDE] = layer.lora_magnitude_vector[key].weight
        return result

    def train(self, name: str | None) -> None:
        """See Adapters."""
        for other in self._keys:
            for parameter in self.parameters(other).values():
                parameter.requires_grad_(other == name)

    def after_step(self, name: str) -> None:
        """See Adapters: nothing, the parameters are used as they are."""

    def _fill(self, layer: Layer, key: str, path: str, given: Mapping[str, Floats], dora: bool) -> None:
        """Give a layer that PEFT has wrapped the weights of one adapter."""
        place = self._base.place
        layer.lora_A[key].weight = nn.Parameter(tensor(given[path + A], place), requires_grad=False)
        layer.lora_B[key].weight = nn.Parameter(tensor(given[path + B], place), requires_grad=False)
        if dora:
            squares = _squares(layer.base_layer)
            magnitude = tensor(given[path + MAGNITUDE], place) if path + MAGNITUDE in given else squares.sqrt()
            layer.lora_magnitude_vector[key] = _Magnitude(magnitude, squares).requires_grad_(False)

    def _forget(self, key: str, layers: Iterable[Layer]) -> None:
        for layer in layers:
            layer.delete_adapter(key)
        del self._tuner.peft_config[key]

    def _check(self, target: Target) -> None:
        try:
            module = self._base.model.get_submodule(target.module)
        except AttributeError:
            raise ModelError(
                f"the base has no module {target.module}. The adapter was made for another model, or this family names "
                "its layers otherwise once loaded."
            ) from None
        module = module.base_layer if isinstance(module, Layer) else module
        if not isinstance(module, nn.Linear | QuantisedLinear):
            raise ModelError(f"{target.module} is a {type(module).__name__}; an adapter needs a linear layer.")
        if (module.out_features, module.in_features) != (target.out_features, target.in_features):
            raise ModelError(
                f"{target.module} is {module.out_features} × {module.in_features} in the base, but the adapter was made "
                f"for {target.out_features} × {target.in_features}."
            )

    def _initial(self, plan: AdapterPlan, settings: LowRankSettings, seed: int) -> dict[str, Floats]:
        """A from the seed and its name, B zero; the magnitude comes from the base weight (see attach)."""
        given: dict[str, Floats] = {}
        for target in plan.targets:
            name = PREFIX + target.module
            given[name + A] = kaiming_uniform(seed, name + A, (settings.rank, target.in_features))
            given[name + B] = np.zeros((target.out_features, settings.rank), np.float32)
        return given

    def _inject(self, key: str, plan: AdapterPlan, settings: LowRankSettings) -> None:
        """Let PEFT wrap the targets; weights stay on the meta device until attach() fills them in."""
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.effective_alpha,
            lora_dropout=settings.dropout,
            use_rslora=settings.scaling == "rslora",
            use_dora=settings.use_dora,
            init_lora_weights=False,  # attach() gives them
            target_modules=[target.module for target in plan.targets],
            task_type="CAUSAL_LM",
        )
        config._register_custom_module({nn.Linear: Layer, QuantisedLinear: Layer})
        if self._tuner is None:
            self._tuner = LoraModel(self._base.model, {key: config}, key, low_cpu_mem_usage=True)
        else:
            self._tuner.peft_config[key] = config
            self._tuner.active_adapter = key  # its first one may have been detached since
            self._tuner.inject_adapter(self._base.model, key, low_cpu_mem_usage=True)

    def _every_layer(self) -> list[Layer]:
        return list({id(layer): layer for layers in self._layers.values() for layer in layers.values()}.values())


def _squares(base: nn.Module) -> torch.Tensor:
    """‖W‖² of each row, fp32."""
    return kernels.dense_weight(base, torch.float32).square().sum(1)


def adapters(base: Base) -> LowRankAdapters:
    """See the package."""
    return LowRankAdapters(base)
