"""A Hugging Face folder as a frozen torch model in a precision: safetensors only, no remote code, no network."""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune_local.backend import Device
from finetune_local.spec.base.config import read_base_config
from finetune_local.spec.base.files import check_finite, weight_files
from finetune_local.spec.base.misfits import explain, not_finite
from finetune_local.spec.base.weights import PLAIN
from finetune_local.spec.batch import Floats
from finetune_local.spec.numerics.rope import stretched
from finetune_local.spec.run import Precision
from finetune_local.spec.targets import block_of
from finetune_local.system.errors import FinetuneError, ModelError, Unsupported
from finetune_local.system.messages import Message, msg
from finetune_local_backends.torch.base import attention
from finetune_local_backends.torch.memory import guard, out_of_memory


@dataclass(frozen=True)
class Base:
    """A loaded base: the causal model, its body (everything before the head), its parameters and modules by name.

    `dtype` is the type of activations.
    """

    model: Any
    body: Any
    weights: dict[str, nn.Parameter]
    layers: dict[str, nn.Module]
    device: Device
    precision: Precision
    dtype: torch.dtype

    @property
    def place(self) -> torch.device:
        """The torch device."""
        return torch.device(self.device.id)

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding; ids from here on are virtual tokens of an adapter."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def embedding_scale(self) -> float:
        """The factor that the embedding applies to its rows (Gemma); 1 for most models."""
        embedding = self.model.get_input_embeddings()
        scale = torch.as_tensor(getattr(embedding, "embed_scale", 1.0))
        return float(scale.to(embedding.weight.dtype))


def load_base(folder: Path, precision: Precision, device: Device, rope_factor: float = 1.0) -> Base:
    """Load and freeze. Raises ModelError, OutOfMemory, Unsupported, SpecError (positions that cannot be stretched)."""
    bits = precision in ("4-bit", "8-bit")
    if bits and importlib.util.find_spec("bitsandbytes") is None:
        raise Unsupported(
            msg(
                "--precision {precision} needs bitsandbytes, which is not installed. Install: pip install "
                "bitsandbytes, or use --precision bf16.",
                precision=precision,
            )
        )
    _quiet()
    dtype = torch.bfloat16 if precision == "bf16" or (bits and device.kind == "cuda") else torch.float32
    with guard(msg("load {model}", model=folder.name)):
        model = _from_pretrained(folder, precision, dtype, device, rope_factor)
        if bits:
            from finetune_local_backends.torch.base.quantised import replace_layers

            replace_layers(model)
    model.eval().requires_grad_(False)
    if str(model.config.model_type) not in PLAIN:
        _try(model, folder, device)
    body = getattr(model, model.base_model_prefix, model)
    if body is model or model.get_output_embeddings() is None:
        raise Unsupported(
            msg(
                "{name}: models of type '{family}' have no separate head, so this version cannot train them. Choose "
                "a model of another family.",
                name=folder.name,
                family=model.config.model_type,
            )
        )
    weights = dict(model.named_parameters(remove_duplicate=False))
    return Base(model, body, weights, dict(model.named_modules()), device, precision, dtype)


def _from_pretrained(folder: Path, precision: Precision, dtype: torch.dtype, device: Device, rope_factor: float) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    read_base_config(folder)
    files = weight_files(folder)
    with _sentence(folder):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if isinstance(config.get_text_config(), dict):
        raise ModelError(
            msg(
                "{folder}: config.json has a part for a language model (text_config), which a {family} model does "
                "not have. Copy the file again from the model's source.",
                folder=folder,
                family=config.model_type,
            )
        )
    if getattr(config, "quantization_config", None):
        raise ModelError(
            msg(
                "{folder}: its weights are already quantised on disk. Use the unquantised model; --precision 4-bit "
                "quantises it while loading.",
                folder=folder,
            )
        )
    _without_dropout(config)
    _stretch(config, rope_factor)
    options: dict[str, Any] = {"quantization_config": _quantisation(precision, dtype)} if "bit" in precision else {}
    if options:
        check_finite(files)  # once packed, NaN looks like any other number
    if device.kind == "cuda" or options:
        # Also for the CPU: without a map, quantised weights are loaded to a GPU if there is one.
        options["device_map"] = {"": device.id}
    with _sentence(folder):
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=_attention(config, dtype, device),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # kept, so that the report names them
            **options,
        )
    misshapen = {str(key[0]) for key in report["mismatched_keys"]}
    unexpected = {str(name) for name in report["unexpected_keys"]}
    text = config.get_text_config()
    if getattr(text, "num_nextn_predict_layers", None):  # extra blocks for multi-token prediction after the last one
        unexpected = {name for name in unexpected if (block_of(name) or 0) < text.num_hidden_layers}
    if problem := explain(folder, str(config.model_type), report["missing_keys"], unexpected, misshapen):
        raise ModelError(problem)
    _check_finite(model, folder)
    return model


@contextmanager
def _sentence(folder: Path) -> Iterator[None]:
    """Turn everything that transformers raises about a folder into a ModelError, from errors of a config's fields to an IndexError.

    Out-of-memory errors pass through.
    """
    try:
        yield
    except (FinetuneError, MemoryError, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise ModelError(_load_error(folder, error)) from error
    except Exception as error:
        raise ModelError(_load_error(folder, error)) from error


def _try(model: Any, folder: Path, device: Device) -> None:
    """Run two tokens through a model whose sizes were not checked against its config: a mismatch would otherwise end a training run."""
    with guard(msg("load {model}", model=folder.name)), _sentence(folder), torch.no_grad():
        model(torch.zeros((1, 2), dtype=torch.long, device=device.id), use_cache=False)


def _load_error(folder: Path, error: Exception) -> Message:
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if isinstance(error, KeyError):
        text = msg("it does not support {name}", name=text)
    return msg(
        "{folder}: transformers cannot load it: {error}. Compare config.json with the one at the model's source.",
        folder=folder,
        error=text[:300],
    )


def _check_finite(model: nn.Module, folder: Path) -> None:
    """Raise ModelError if a weight contains NaN or infinity: every loss would be NaN."""
    for name, weight in model.named_parameters():
        # A sum is one fast pass without a copy. It is finite only if all numbers are, but finite numbers can have an infinite sum.
        if weight.is_floating_point() and not math.isfinite(weight.detach().sum().item()):
            bad = int((~torch.isfinite(weight.detach())).sum())
            if bad:
                raise ModelError(not_finite(folder, name, bad))


def _quantisation(precision: Precision, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if precision == "8-bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _attention(config: Any, dtype: torch.dtype, device: Device) -> str:
    """torch's fused attention; eager attention for models that cap the scores (Gemma 2), which the fused one cannot do."""
    if getattr(config.get_text_config(), "attn_logit_softcapping", None):
        return "eager"
    return attention.register() if device.kind == "cpu" and dtype == torch.bfloat16 else "sdpa"


def _stretch(config: Any, factor: float) -> None:
    """Scale the positions for a longer context; see spec/numerics/rope.py."""
    if factor == 1:
        return
    text = config.get_text_config()
    settings = stretched(text.to_dict(), factor)
    text.rope_parameters = settings["rope_parameters"]
    text.max_position_embeddings = settings["max_position_embeddings"]


def _without_dropout(config: Any) -> None:
    """Turn off the base's dropout, which is for pretraining; fine-tuning has a setting that works the same on every backend."""
    text = config.get_text_config()
    for name, value in vars(text).items():
        if isinstance(value, float) and name.endswith(("dropout", "pdrop", "_drop")):
            setattr(text, name, 0.0)


def _quiet() -> None:
    """Silence the libraries' progress bars and logs: the app reports by its events and errors."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextmanager
def noisy(base: Base, noise: Floats | None) -> Iterator[None]:
    """Within this context `noise` (rows, length or more, d) is added to the embedding's output, unless it is None.

    The noise is scaled like the matrix's rows, whether a family multiplies them inside the embedding (Gemma) or after it.
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
