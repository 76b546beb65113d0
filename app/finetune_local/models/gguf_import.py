"""A GGUF as a base model: its weights dequantised into a Hugging Face folder, in numpy.

Training, merging and exporting then work as on any folder. Llama (with Mistral and SmolLM), Qwen2 and Qwen3; other
architectures are refused. Names and layouts follow llama.cpp's convert_hf_to_gguf.py, undone.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from finetune_local.errors import DiskFull, ModelError
from finetune_local.models.folder import ModelFolder, sha256_of
from finetune_local.models.gguf_tokenizer import tokenizer_files
from finetune_local.models.install import aside, publish
from finetune_local.models.tensors import BYTES, Floats, Pending, write_tensors

Progress = Callable[[str, float | None], None]

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def install_gguf(file: Path, models: Path, name: str, progress: Progress) -> ModelFolder:
    """Convert a GGUF into home.models under `name`. Raises ModelError, DiskFull."""
    with aside(models) as folder:
        convert(file, folder, progress)
        return publish(folder, models, name, {"from": file.name, "sha256": sha256_of(file)})


def convert(file: Path, folder: Path, progress: Progress) -> None:
    """Write the files of a Hugging Face folder into an existing one.

    Weights become BF16, except that a file of F16 or F32 keeps its type. Raises ModelError, DiskFull.
    """
    progress(f"reading {file.name}", None)
    reader = _open(file)
    values = _values(reader)
    family = str(values.get("general.architecture"))
    if family not in ARCHITECTURES or values.get(f"{family}.expert_count"):
        what = f"{family} with experts" if values.get(f"{family}.expert_count") else family
        raise ModelError(
            f"{file}: a GGUF of architecture '{what}' cannot be a base model; {', '.join(ARCHITECTURES)} can. "
            "Get the original model as safetensors: finetune-local models get ORG/NAME"
        )
    config = _config(file, family, values, reader)
    pending = _tensors(file, reader, config)
    config["dtype"] = config["torch_dtype"] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[pending[0].dtype]
    needed = sum(math.prod(p.shape) * BYTES[p.dtype] for p in pending)
    if (free := shutil.disk_usage(folder).free) < needed * 1.02:
        raise DiskFull(
            f"{folder.parent}: {free / 1e9:.1f} GB are free but the converted model needs {needed / 1e9:.1f} GB."
        )
    files = tokenizer_files(file, values)
    ends = _ends(values)
    generation = {
        "bos_token_id": config.get("bos_token_id"),
        "eos_token_id": ends,
        "pad_token_id": config["pad_token_id"],
    }
    files["config.json"] = _json(config)
    files["generation_config.json"] = _json({k: v for k, v in generation.items() if v is not None})
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8", newline="\n")
    write_tensors(folder / "model.safetensors", pending, lambda done: progress(f"converting {file.name}", done))


def _open(file: Path) -> Any:
    from gguf import GGUFReader

    if re.search(r"-\d+-of-\d+\.gguf$", file.name):
        raise ModelError(f"{file}: this GGUF is split over several files. Join them first: llama-gguf-split --merge")
    try:
        return GGUFReader(file)
    except FileNotFoundError:
        raise ModelError(f"{file}: there is no such file.") from None
    except (OSError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise ModelError(f"{file}: not a GGUF file, or cut short ({error}). Copy or download it again.") from None


def _values(reader: Any) -> dict[str, Any]:
    """The metadata as plain values."""
    return {name: field.contents() for name, field in reader.fields.items()}


def _config(file: Path, family: str, values: Mapping[str, Any], reader: Any) -> dict[str, Any]:
    def get(key: str, default: Any = None) -> Any:
        value = values.get(f"{family}.{key}", default)
        if value is None:
            raise ModelError(f"{file}: its metadata lacks {family}.{key}. Get the file from another place.")
        return value

    shapes = {t.name: tuple(int(n) for n in reversed(t.shape)) for t in reader.tensors}
    if "token_embd.weight" not in shapes:
        raise ModelError(f"{file}: it has no embedding, so it is not a whole language model.")
    hidden, heads = int(get("embedding_length")), int(get("attention.head_count"))
    theta = _shortest(get("rope.freq_base", 10000.0))
    head_dim = int(get("attention.key_length", hidden // heads))
    pad, end = values.get("tokenizer.ggml.padding_token_id"), _ends(values)
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "hidden_size": hidden,
        "intermediate_size": int(get("feed_forward_length")),
        "num_hidden_layers": int(get("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(get("attention.head_count_kv", heads)),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": int(get("context_length")),
        "rms_norm_eps": _shortest(get("attention.layer_norm_rms_epsilon")),
        "rope_theta": theta,  # mlx-lm reads this
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": theta,
            **_scaling(file, get, reader, theta, head_dim),
        },
        "attention_bias": family != "qwen2" and "blk.0.attn_q.bias" in shapes,
        "tie_word_embeddings": "output.weight" not in shapes,
        "vocab_size": shapes["token_embd.weight"][0],
        "bos_token_id": values.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": end,
        "pad_token_id": int(pad) if pad is not None else (end[0] if isinstance(end, list) else end),
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
    }
    if config["rope_parameters"]["rope_type"] != "default":
        config["rope_scaling"] = {k: v for k, v in config["rope_parameters"].items() if k != "rope_theta"}
    if family == "llama":
        config["mlp_bias"] = "blk.0.ffn_up.bias" in shapes
    else:
        config |= {"use_sliding_window": False, "sliding_window": None}
    return {k: v for k, v in config.items() if v is not None or k == "sliding_window"}


def _scaling(file: Path, get: Callable[..., Any], reader: Any, theta: float, head_dim: int) -> dict[str, Any]:
    """How RoPE is stretched: by YaRN or linearly (metadata), or as Llama 3.1 does (a tensor of factors)."""
    kind = str(get("rope.scaling.type", "none"))
    if kind in ("yarn", "linear"):
        found: dict[str, Any] = {"rope_type": kind, "factor": _shortest(get("rope.scaling.factor"))}
        if kind == "yarn":
            found["original_max_position_embeddings"] = int(get("rope.scaling.original_context_length"))
        return found
    factors = next((_array(file, t) for t in reader.tensors if t.name == "rope_freqs.weight"), None)
    if kind != "none" or factors is None:
        if kind != "none":
            raise ModelError(f"{file}: RoPE scaled by '{kind}' is not known here. Get the original as safetensors.")
        return {}
    factor = float(factors.max())
    if not np.allclose(factors, _llama3_factors(theta, head_dim, factor), rtol=1e-3):
        raise ModelError(f"{file}: its rope_freqs are not those of Llama 3. Get the original as safetensors.")
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}


def _llama3_factors(theta: float, head_dim: int, factor: float) -> Floats:
    """The factors of Llama 3.1's RoPE by frequency, (head_dim / 2,): 1 for short waves, `factor` for long ones."""
    low, high, old = (float(_LLAMA3[key]) for key in _LLAMA3)
    waves = 2 * math.pi * theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    smooth = np.clip((old / waves - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def _tensors(file: Path, reader: Any, config: Mapping[str, Any]) -> list[Pending]:
    kinds = {t.tensor_type.name for t in reader.tensors if len(t.shape) > 1}
    dtype = "F32" if kinds == {"F32"} else "F16" if kinds <= {"F16", "F32"} else "BF16"
    heads = {"q_proj": int(config["num_attention_heads"]), "k_proj": int(config["num_key_value_heads"])}

    def maker(tensor: Any, name: str) -> Callable[[], Floats]:
        count = heads.get(name.split(".")[-2]) if config["model_type"] == "llama" else None

        def make() -> Floats:
            array = _array(file, tensor)
            return array if count is None else _unpermute(array, count)

        return make

    pending = []
    for tensor in reader.tensors:
        if tensor.name != "rope_freqs.weight":
            name = _name(file, tensor.name)
            pending.append(Pending(name, tuple(int(n) for n in reversed(tensor.shape)), dtype, maker(tensor, name)))
    return pending


def _name(file: Path, name: str) -> str:
    """A tensor's name in Hugging Face's words."""
    stem, _, kind = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if block is None or block.group(2) not in _BLOCK:
        raise ModelError(f"{file}: tensor {name} is not known here. Get the original model as safetensors.")
    return f"model.layers.{block.group(1)}.{_BLOCK[block.group(2)]}.{kind}"


def _array(file: Path, tensor: Any) -> Floats:
    """A tensor dequantised to fp32, of Hugging Face's shape."""
    from gguf import dequantize

    try:
        found = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        return found.reshape([int(n) for n in reversed(tensor.shape)])
    except (NotImplementedError, ValueError) as error:
        kind = tensor.tensor_type.name
        raise ModelError(
            f"{file}: tensor {tensor.name} ({kind}) cannot be read: {error}. Try a Q8_0 or F16 file."
        ) from None


def _unpermute(array: Floats, heads: int) -> Floats:
    """llama.cpp keeps the two halves of a rotated pair side by side; Hugging Face keeps all first halves, then all second."""
    return array.reshape(heads, array.shape[0] // heads // 2, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def _ends(values: Mapping[str, Any]) -> Any:
    """The token or tokens that end an answer."""
    keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
    found = list(dict.fromkeys(int(values[key]) for key in keys if values.get(key) is not None))
    return found[0] if len(found) == 1 else found or None


def _shortest(value: float) -> float:
    """The shortest decimal that is the same fp32 number: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
