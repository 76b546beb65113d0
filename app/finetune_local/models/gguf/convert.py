"""Convert a GGUF to a Hugging Face folder: its weights dequantised, in numpy.

Llama (with Mistral and SmolLM), Qwen2 and Qwen3; other architectures are refused. Names and layouts are the inverse of
llama.cpp's convert_hf_to_gguf.py.
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

from finetune_local.models.folder import ModelFolder, sha256_of
from finetune_local.models.gguf.header import Gguf, GgufTensor, Metadata, open_gguf
from finetune_local.models.gguf.tokenizer import tokenizer_files
from finetune_local.models.install import aside, publish
from finetune_local.models.tensors import BYTES, Floats, Pending, write_tensors
from finetune_local.spec.base.config import check_base_config
from finetune_local.spec.base.weights import check_base_weights
from finetune_local.system.errors import DiskFull, ModelError
from finetune_local.system.messages import Progress, msg

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
    """Write the files of a Hugging Face folder into an existing folder.

    Weights become BF16, except that F16 and F32 files keep their dtype. Raises ModelError, DiskFull.
    """
    progress(msg("reading {name}", name=file.name), None)
    if re.search(r"-[0-9]+-of-[0-9]+\.gguf$", file.name):
        raise ModelError(
            msg("{file}: this GGUF is split over several files. Join them first: llama-gguf-split --merge", file=file)
        )
    gguf = open_gguf(file)
    values = Metadata(file, gguf.values)
    family = values.text("general.architecture")
    if family not in ARCHITECTURES or gguf.values.get(f"{family}.expert_count"):
        what = (
            msg("{family} with experts", family=family[:60])
            if gguf.values.get(f"{family}.expert_count")
            else family[:60]
        )
        raise ModelError(
            msg(
                "{file}: a GGUF of architecture '{what}' cannot be a base model; {known} can. Download the original "
                "model as safetensors: finetune-local models get ORG/NAME",
                file=file,
                what=what,
                known=", ".join(ARCHITECTURES),
            )
        )
    config = _config(gguf, values, family)
    pending = _tensors(gguf, config)
    check_base_config(config, file)
    check_base_weights(config, {tensor.name: tensor for tensor in pending}, file)
    needed = sum(math.prod(p.shape) * BYTES[p.dtype] for p in pending)
    if (free := shutil.disk_usage(folder).free) < needed * 1.02:
        raise DiskFull(
            msg(
                "{parent}: {free} GB are free but the converted model needs {needed} GB.",
                parent=folder.parent,
                free=f"{free / 1e9:.1f}",
                needed=f"{needed / 1e9:.1f}",
            )
        )
    files = tokenizer_files(file, gguf.values, config["vocab_size"])
    generation = {
        "bos_token_id": config.get("bos_token_id"),
        "eos_token_id": config.get("eos_token_id"),
        "pad_token_id": config["pad_token_id"],
    }
    files["config.json"] = _json(config)
    files["generation_config.json"] = _json({k: v for k, v in generation.items() if v is not None})
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8", newline="\n")
    write_tensors(
        folder / "model.safetensors", pending, lambda done: progress(msg("converting {name}", name=file.name), done)
    )


def _config(gguf: Gguf, values: Metadata, family: str) -> Mapping[str, Any]:
    """The content of config.json. Raises ModelError."""
    file, tensors = gguf.file, gguf.tensors
    table = tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise ModelError(msg("{file}: it has no embedding, so it is not a complete language model.", file=file))
    rows = table.shape[0]

    def size(key: str, most: int, default: int | None = None) -> int:
        return values.whole(f"{family}.{key}", most, default)

    hidden, heads = size("embedding_length", 2**24), size("attention.head_count", 2**16)
    head_dim = size("attention.key_length", 2**16, max(1, hidden // heads))
    theta = _shortest(values.real(f"{family}.rope.freq_base", 1e-3, 1e30, 10000.0))
    pad, end = values.token("tokenizer.ggml.padding_token_id", rows), _ends(values, rows)
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "hidden_size": hidden,
        "intermediate_size": size("feed_forward_length", 2**24),
        "num_hidden_layers": size("block_count", 10_000),
        "num_attention_heads": heads,
        "num_key_value_heads": size("attention.head_count_kv", 2**16, heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": size("context_length", 2**31 - 1),
        "rms_norm_eps": _shortest(values.real(f"{family}.attention.layer_norm_rms_epsilon", 0.0, 1.0)),
        "rope_theta": theta,  # mlx-lm reads this
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": theta,
            **_scaling(gguf, values, family, theta, head_dim),
        },
        "attention_bias": family != "qwen2" and "blk.0.attn_q.bias" in tensors,
        "tie_word_embeddings": "output.weight" not in tensors,
        "vocab_size": rows,
        "bos_token_id": values.token("tokenizer.ggml.bos_token_id", rows),
        "eos_token_id": end,
        "pad_token_id": pad if pad is not None else (end[0] if isinstance(end, list) else end),
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
    }
    if config["rope_parameters"]["rope_type"] != "default":
        config["rope_scaling"] = {k: v for k, v in config["rope_parameters"].items() if k != "rope_theta"}
    if family == "llama":
        config["mlp_bias"] = "blk.0.ffn_up.bias" in tensors
    else:
        config |= {"use_sliding_window": False, "sliding_window": None}
    dtype = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[_dtype(gguf)]
    config |= {"dtype": dtype, "torch_dtype": dtype}
    return {k: v for k, v in config.items() if v is not None or k == "sliding_window"}


def _dtype(gguf: Gguf) -> str:
    """The dtype of the converted weights, by safetensors' name: F16 and F32 files keep theirs."""
    kinds = {t.kind.name for t in gguf.tensors.values() if len(t.shape) > 1}
    return "F32" if kinds == {"F32"} else "F16" if kinds <= {"F16", "F32"} else "BF16"


def _scaling(gguf: Gguf, values: Metadata, family: str, theta: float, head_dim: int) -> dict[str, object]:
    """RoPE scaling: YaRN or linear (metadata), or Llama 3.1's (a tensor of factors)."""
    file, scaling = gguf.file, f"{family}.rope.scaling"
    kind = values.text(f"{scaling}.type", "none")
    if kind in ("yarn", "linear"):
        found: dict[str, Any] = {"rope_type": kind, "factor": _shortest(values.real(f"{scaling}.factor", 1e-3, 1e6))}
        if kind == "yarn":
            found["original_max_position_embeddings"] = values.whole(f"{scaling}.original_context_length", 2**31 - 1)
        return found
    if kind != "none":
        raise ModelError(
            msg(
                "{file}: RoPE scaling '{kind}' is not supported. Download the original as safetensors.",
                file=file,
                kind=kind[:60],
            )
        )
    if "rope_freqs.weight" not in gguf.tensors:
        return {}
    factors = gguf.read("rope_freqs.weight")
    factor = float(factors.max())
    known = factors.shape == (head_dim // 2,) and 1 <= factor <= 1e6
    if not known or not np.allclose(factors, _llama3_factors(theta, head_dim, factor), rtol=1e-3):
        raise ModelError(
            msg("{file}: its rope_freqs are not those of Llama 3. Download the original as safetensors.", file=file)
        )
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}


def _llama3_factors(theta: float, head_dim: int, factor: float) -> Floats:
    """Llama 3.1's RoPE factors by frequency, (head_dim / 2,): 1 for short wavelengths, `factor` for long ones."""
    low, high, old = (float(_LLAMA3[key]) for key in _LLAMA3)
    waves = 2 * math.pi * theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    smooth = np.clip((old / waves - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def _tensors(gguf: Gguf, config: Mapping[str, Any]) -> list[Pending]:
    dtype = _dtype(gguf)
    heads = {"q_proj": int(config["num_attention_heads"]), "k_proj": int(config["num_key_value_heads"])}

    def maker(tensor: GgufTensor, name: str) -> Callable[[], Floats]:
        count = heads.get(name.split(".")[-2]) if config["model_type"] == "llama" else None
        if count is not None and tensor.shape[0] != count * config["head_dim"]:
            raise ModelError(
                msg(
                    "{file}: tensor {name} has {rows} rows, which does not match {count} heads of {size}. Download the "
                    "file from another source.",
                    file=gguf.file,
                    name=tensor.name,
                    rows=tensor.shape[0],
                    count=count,
                    size=config["head_dim"],
                )
            )

        def make() -> Floats:
            array = gguf.read(tensor.name)
            return array if count is None else _unpermute(array, count)

        return make

    pending: dict[str, Pending] = {}
    for tensor in gguf.tensors.values():
        if tensor.name != "rope_freqs.weight":
            name = _name(gguf.file, tensor.name)
            if name in pending:
                raise ModelError(
                    msg(
                        "{file}: tensor {name} is in it twice. Download the file from another source.",
                        file=gguf.file,
                        name=name,
                    )
                )
            pending[name] = Pending(name, tensor.shape, dtype, maker(tensor, name))
    return list(pending.values())


def _name(file: Path, name: str) -> str:
    """A tensor's Hugging Face name."""
    stem, _, kind = name.rpartition(".")
    if kind in ("weight", "bias"):
        if stem in _TOP:
            return f"{_TOP[stem]}.{kind}"
        block = re.fullmatch(r"blk\.([0-9]{1,6})\.(\w+)", stem)
        if block is not None and block.group(2) in _BLOCK:
            return f"model.layers.{int(block.group(1))}.{_BLOCK[block.group(2)]}.{kind}"
    raise ModelError(
        msg(
            "{file}: tensor {name} is not supported. Download the original model as safetensors.",
            file=file,
            name=name[:120],
        )
    )


def _unpermute(array: Floats, heads: int) -> Floats:
    """Undo llama.cpp's interleaved rotary layout: Hugging Face has all first halves, then all second halves."""
    return array.reshape(heads, array.shape[0] // heads // 2, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def _ends(values: Metadata, rows: int) -> Any:
    """The token or tokens that end an answer."""
    keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
    found = list(dict.fromkeys(end for key in keys if (end := values.token(key, rows)) is not None))
    return found[0] if len(found) == 1 else found or None


def _shortest(value: float) -> float:
    """The shortest decimal of the same fp32 number: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
