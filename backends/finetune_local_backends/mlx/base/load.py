"""Load a Hugging Face folder into mlx-lm's classes in a precision. Safetensors only; code in the folder is not run."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from finetune_local.adapter_format import as_float32
from finetune_local.backend import Device
from finetune_local.spec.base.files import weight_files
from finetune_local.spec.base.misfits import explain, not_finite
from finetune_local.spec.base.weights import check_base_weights
from finetune_local.spec.run import Precision, Quantisation
from finetune_local.spec.targets import block_of, is_embedding
from finetune_local.system.errors import AdapterError, ModelError, OutOfMemory, Unsupported
from finetune_local.system.messages import msg
from finetune_local.system.untrusted.tensor_header import Stored, tensors_of
from finetune_local_backends.mlx.base.config import Config, longest, read_config
from finetune_local_backends.mlx.base.model import Model, Place, walk
from finetune_local_backends.mlx.base.quantised import CpuQuantizedLinear, Nf4Linear
from finetune_local_backends.mlx.memory import guard

_BITS = {"8-bit": 8, "4-bit": 4}
_STORED = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16", mx.float64: "F64", mx.uint8: "U8", mx.int8: "I8"}


def load(
    folder: Path, precision: Precision, quantisation: Quantisation, device: Device, rope_factor: float = 1.0
) -> Model:
    """The model, frozen, with its weights in memory. Raises ModelError, Unsupported, OutOfMemory, SpecError."""
    config = read_config(folder, rope_factor)
    found = _read_weights(folder)
    check_base_weights(config, {name: _AsStored(array) for name, array in found.items()}, folder)
    head, copied = _head_of(found)
    if head is not None and not copied:
        config = _untied(config)
    module, arguments = _build(folder, config)
    if rope_factor != 1:
        _check_stretched(module, config)
    _check_scaled(folder, module, config)
    named = _renamed(folder, module, found)
    _check_names(folder, str(config["model_type"]), module, found, named, head if copied else None)
    _repair(module, str(config["model_type"]))
    half = precision == "bf16" or (precision in _BITS and device.kind != "cpu")
    dtype = mx.bfloat16 if half else mx.float32
    cast_weights = [(n, w.astype(dtype) if mx.issubdtype(w.dtype, mx.floating) else w) for n, w in named.items()]
    try:
        module.load_weights(cast_weights, strict=True)
    except ValueError as error:
        raise ModelError(
            msg(
                "{folder}: the weights do not fit its config.json: {splitlines}",
                folder=folder,
                splitlines=str(error).splitlines()[0],
            )
        ) from None
    module.freeze()
    module.eval()
    with guard(msg("load {model}", model=folder.name)):
        if precision in _BITS:
            nf4 = quantisation == "nf4" and precision == "4-bit"
            _quantise(folder, module, _nf4 if nf4 else _affine(_BITS[precision], device))
        mx.eval(module.parameters())  # type: ignore[no-untyped-call]
        _check_finite(folder, {path: value for path, _, value in walk(module) if isinstance(value, mx.array)})
    mx.clear_cache()
    return _mapped(module, found, named, config, arguments)


def _check_scaled(folder: Path, module: nn.Module, config: Config) -> None:
    """Raise Unsupported if positions are scaled but mlx-lm's class silently ignores it, as for some families."""
    scaling = (config.get("text_config") or config).get("rope_scaling") or {}
    kind = scaling.get("rope_type", "default")
    if kind in ("default", "mrope"):
        return
    # mlx-lm ignores these two fields of YaRN, and LongRoPE's factors for short texts.
    if kind == "longrope" or scaling.get("attention_factor") is not None or scaling.get("truncate") is False:
        raise Unsupported(
            msg(
                "{folder}: its positions are scaled ({kind}) in a way that MLX's classes compute differently. Use "
                "--backend torch.",
                folder=folder,
                kind=kind,
            )
        )
    scale = 1.0 / float(scaling.get("factor") or 1.0)
    parts = [part for _, _, part in walk(module) if "rope" in type(part).__name__.lower()]
    plain = [part for part in parts if isinstance(part, nn.RoPE)]
    scaled = [part for part in plain if kind == "linear" and abs(part.scale - scale) < 1e-9]
    if len(plain) == len(parts) and not scaled:
        raise Unsupported(
            msg(
                "{folder}: its positions are scaled ({kind}), and MLX's class for {family} models ignores that. Use "
                "--backend torch.",
                folder=folder,
                kind=kind,
                family=config["model_type"],
            )
        )


@dataclass(frozen=True)
class _AsStored:
    """An array with the shape and type in its file's header."""

    array: mx.array

    @property
    def shape(self) -> tuple[int, ...]:
        """See spec/base/weights.py."""
        return tuple(self.array.shape)

    @property
    def dtype(self) -> str:
        """See spec/base/weights.py."""
        return _STORED.get(self.array.dtype, str(self.array.dtype))


def _head_of(found: dict[str, mx.array]) -> tuple[str | None, bool]:
    """The stored head, and whether it is a copy of the embedding."""
    head = next((name for name in found if name.endswith("lm_head.weight")), None)
    table = next((name for name in found if is_embedding(name.removesuffix(".weight"))), None)
    if head is None or table is None or found[head].shape != found[table].shape:
        return head, False
    return head, bool(mx.array_equal(found[head], found[table]).item())


def _untied(config: Config) -> Config:
    """The config with an untied head. As in transformers, a stored head that differs from the embedding is used."""
    nested = config.get("text_config")
    inner = {"text_config": {**nested, "tie_word_embeddings": False}} if isinstance(nested, dict) else {}
    return {**config, **inner, "tie_word_embeddings": False}


def _renamed(folder: Path, module: nn.Module, found: dict[str, mx.array]) -> dict[str, mx.array]:
    """The weights under the names of mlx-lm's class."""
    try:
        return cast(dict[str, mx.array], module.sanitize(dict(found)) if hasattr(module, "sanitize") else dict(found))
    except (OutOfMemory, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - its classes raise whatever a file makes them stumble over
        raise ModelError(
            msg(
                "{folder}: MLX cannot read this model's weights: {split}",
                folder=folder,
                split=" ".join(str(error).split())[:300],
            )
        ) from None


def _check_names(
    folder: Path,
    family: str,
    module: nn.Module,
    found: dict[str, mx.array],
    named: dict[str, mx.array],
    copy: str | None,
) -> None:
    """Raise ModelError if weights of the class are not stored, or if it drops stored ones, also in its sanitize().

    `copy` is a head that equals the embedding; it is removed from `named` if the class has no head.
    """
    known = dict(tree_flatten(module.parameters()))  # type: ignore[no-untyped-call] # without what a class computes itself
    if copy is not None and copy not in known:
        named.pop(copy, None)
    used = {id(array) for array in named.values()}
    left_out = {n for n, array in found.items() if id(array) not in used and ".experts." not in n}
    misshapen = {n for n, value in named.items() if n in known and known[n].shape != value.shape}
    missing = known.keys() - named.keys()
    strange = (named.keys() - known.keys()) | (left_out - {copy})
    if strange and all(name.endswith("lm_head.weight") for name in strange):
        raise Unsupported(
            msg(
                "{folder}: it has its own head ({name}), but MLX's class for {family} models uses the embedding "
                "instead. Use --backend torch.",
                folder=folder,
                name=min(strange),
                family=family,
            )
        )
    if problem := explain(folder, family, missing, strange, misshapen):
        raise ModelError(problem)


def _check_finite(folder: Path, weights: Mapping[str, mx.array]) -> None:
    """Raise ModelError if a weight contains NaN or infinity: every loss would be NaN."""
    floats = {name: array for name, array in weights.items() if mx.issubdtype(array.dtype, mx.floating)}
    sums = {name: mx.sum(array) for name, array in floats.items()}
    mx.eval(sums)
    for name, total in sums.items():
        # A sum is one fast pass. It is finite only if all numbers are, but finite numbers can have an infinite sum.
        if not math.isfinite(float(cast(float, total.item()))):
            bad = int(cast(int, mx.sum(mx.logical_not(mx.isfinite(floats[name]))).item()))
            if bad:
                raise ModelError(not_finite(folder, name, bad))


def _build(folder: Path, config: Config) -> tuple[nn.Module, Any]:
    from mlx_lm.utils import MODEL_REMAPPING

    family = str(config["model_type"])
    file = MODEL_REMAPPING.get(family, family)
    code = importlib.import_module(f"mlx_lm.models.{file}")
    try:
        arguments = code.ModelArgs.from_dict(config)
        return code.Model(arguments), arguments
    except (OutOfMemory, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - its classes raise whatever a file makes them stumble over
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(
            msg("{folder}: MLX cannot build this {family} model: {said}", folder=folder, family=family, said=reason)
        ) from None


def _check_stretched(module: nn.Module, config: Config) -> None:
    """Raise Unsupported if mlx-lm's class ignores the scaling of positions in the config."""
    scale = 1.0 / float((config.get("text_config") or config)["rope_scaling"]["factor"])
    found = [part for _, _, part in walk(module) if isinstance(part, nn.RoPE)]
    if not found or any(abs(part.scale - scale) > 1e-9 for part in found):
        raise Unsupported(
            msg(
                "--rope-factor and --context: MLX's class for {family} models does not stretch positions. Use "
                "--backend torch.",
                family=config["model_type"],
            )
        )


def _read_weights(folder: Path) -> dict[str, mx.array]:
    """Every tensor by its name in the folder; read from disk lazily."""
    weights: dict[str, mx.array] = {}
    for file in weight_files(folder):
        try:
            stored = tensors_of(file)
            if any(tensor.dtype == "F64" for tensor in stored.values()):  # which MLX does not read
                weights.update({name: _as_float32(tensor) for name, tensor in stored.items()})
            else:
                weights.update(cast(dict[str, mx.array], mx.load(str(file))))
        except (RuntimeError, OSError, ValueError, AdapterError) as error:
            raise ModelError(
                msg("{file}: cannot be read ({error}). Copy or download the model again.", file=file, error=error)
            ) from None
    return {name: w for name, w in weights.items() if not name.endswith("rotary_emb.inv_freq")}


def _as_float32(tensor: Stored) -> mx.array:
    with tensor.file.open("rb") as file:
        file.seek(tensor.begin)
        return mx.array(as_float32(file.read(tensor.end - tensor.begin), tensor.dtype, tensor.shape))


def _quantise(folder: Path, module: nn.Module, quantised: Callable[[str, Any], nn.Module]) -> None:
    """Quantise the linear layers of the blocks one by one; embeddings and head are not quantised."""
    for path, place, part in list(walk(module)):
        if block_of(path) is None or not hasattr(part, "to_quantized") or isinstance(part, nn.Embedding):
            continue
        _check_finite(folder, {f"{path}.weight": part.weight})  # once packed, NaN looks like any other number
        layer = quantised(path, part)
        layer.freeze()
        mx.eval(layer.parameters())  # type: ignore[no-untyped-call]
        place.put(layer)


def _nf4(path: str, layer: Any) -> nn.Module:
    """Quantise to bitsandbytes' NF4."""
    if not isinstance(layer, nn.Linear):
        raise Unsupported(
            msg(
                "{module} is a {kind}, for which NF4 is not implemented under MLX. Use --quantisation affine.",
                module=path,
                kind=type(layer).__name__,
            )
        )
    return Nf4Linear(layer)


def _affine(bits: int, device: Device) -> Callable[[str, Any], nn.Module]:
    """Quantise to MLX's affine groups."""

    def quantised(path: str, layer: Any) -> nn.Module:
        width = int(layer.weight.shape[-1])
        group = next((size for size in (64, 32) if width % size == 0), None)
        if group is None:
            raise Unsupported(
                msg(
                    "{module} has {width} inputs; MLX quantises in groups of 64 or 32, neither of which divides it. Use "
                    "--precision bf16 or fp32",
                    module=path,
                    width=width,
                )
                + (msg(", or --quantisation nf4.") if bits == 4 else ".")
            )
        result: nn.Module = layer.to_quantized(group_size=group, bits=bits)
        if device.kind == "cpu" and type(result) is nn.QuantizedLinear:
            result.__class__ = CpuQuantizedLinear
        return result

    return quantised


def _repair(module: nn.Module, family: str) -> None:
    """Fix modules in which a class of mlx-lm differs from the family's reference."""
    if family != "gemma":
        return
    from mlx_lm.models import gemma

    class TanhMlp(gemma.MLP):  # type: ignore[misc] # mlx_lm is untyped
        """Gemma's MLP with the tanh approximation of GELU that it was trained with; mlx-lm uses exact GELU."""

        def __call__(self, x: mx.array) -> mx.array:
            return cast(mx.array, self.down_proj(nn.gelu_approx(self.gate_proj(x)) * self.up_proj(x)))

    for _, _, part in walk(module):
        if type(part) is gemma.MLP:
            part.__class__ = TanhMlp


def _mapped(
    module: nn.Module, found: dict[str, mx.array], named: dict[str, mx.array], config: Config, arguments: Any
) -> Model:
    """The place of each weight of the folder. mlx-lm renames some, but keeps the same array objects."""
    source = {id(array): name for name, array in found.items()}
    places: dict[str, Place] = {}
    modules: dict[int, Place] = {}
    for path, place, value in walk(module):
        if isinstance(value, nn.Module):
            modules[id(value)] = place
        elif path in named and id(named[path]) in source:
            places[source[id(named[path])]] = place
    # mlx-lm drops a head stored beside the embedding that it is tied to.
    embedding = next((n for n in places if n.endswith(("embed_tokens.weight", "wte.weight"))), None)
    tied = {n: embedding for n in found if n.endswith("lm_head.weight") and n not in places and embedding}
    text = getattr(module, "language_model", module)
    length = longest(config, getattr(text, "args", arguments))
    return Model(module, places, modules, length, tied, config.get("text_config") or config)
