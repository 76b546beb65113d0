"""Model folders made wrong in one or two of their files: what the targets of models share."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.mutate import AWKWARD, mutate_bytes, mutate_json, mutate_json_text
from tiny import tiny_model

CONFIG, GENERATION, WEIGHTS, INDEX = (
    "config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json",
)  # fmt: skip
FAMILIES = ("llama", "qwen3", "gemma2", "mistral")
_LIKELY: dict[str, tuple[Any, ...]] = {
    "num_hidden_layers": (0, -1, 1, 3, 10**6), "num_attention_heads": (0, 1, 3, 8, -4), "num_key_value_heads": (0, 1, 3, 4, None),
    "head_dim": (0, 8, 15, None, 10**9), "hidden_size": (0, 63, 65, 10**18), "intermediate_size": (0, 127, 10**10, [128, 128]),
    "vocab_size": (0, 1, 383, 10**10), "rms_norm_eps": (0, -1, float("nan"), "x"), "rope_theta": (0, -1, float("nan"), [1.0]),
    "rope_parameters": (None, [], {"rope_type": "evil"}, {"rope_type": "yarn", "factor": 0}, {"rope_type": "longrope", "long_factor": [1]},
                        {"rope_type": "llama3", "factor": 8.0}, {"a": {"rope_theta": 1}, "b": {}}, {"full_attention": None}),
    "rope_scaling": ({"type": "linear", "factor": 2}, {"type": "dynamic"}, {"rope_type": "yarn", "factor": 4.0}, "x"),
    "tie_word_embeddings": (True, False, None, "no"), "hidden_act": ("evil", None, "gelu"), "layer_types": (["evil"], ["full_attention"], []),
    "sliding_window": (0, -1, 16), "eos_token_id": (-1, 10**9, [], [[1]], "x"), "pad_token_id": (-5, 10**9, 384), "dtype": ("evil", 5),
    "model_type": ("gpt2", "qwen2", "llama4", "t5", "evil", "../x", "gemma3", "mamba"), "architectures": (["Evil"], "x", []),
    "attention_dropout": (5, float("nan")), "attention_bias": (True, "x"), "mlp_bias": (True,), "text_config": ({}, {"model_type": "llama"}, []),
    "quantization_config": ({}, {"quant_method": "evil"}, "x"), "auto_map": ({"AutoModel": "x.Y"}, 5), "use_cache": ("x",), "id2label": ({"a": 1},),
    "max_position_embeddings": (0, 10**12, "x"), "_attn_implementation": ("evil/kernel",), "transformers_weights": ("../../x.safetensors",),
}  # fmt: skip


def prepare(folder: Path) -> list[Path]:
    """Good models to change."""
    made = [tiny_model(folder / family, family, layers=2) for family in FAMILIES]
    return [*made, tiny_model(folder / "sharded", shards=3), tiny_model(folder / "untied", tied=False)]


def wrong_folder(prepared: list[Path], draw: random.Random, folder: Path) -> Path:
    """A copy of one of them with something changed."""
    place = folder / "model"
    shutil.copytree(draw.choice(prepared), place)
    for _ in range(draw.choice((1, 1, 2))):
        draw.choice((_config, _config, _likely, _weights, _weights, _header, _side_file, _files))(place, draw)
    return place


def _config(folder: Path, draw: random.Random) -> None:
    path = folder / CONFIG
    if path.is_file() and not path.is_symlink():
        path.write_bytes(_changed(path.read_bytes(), draw))


def _changed(content: bytes, draw: random.Random) -> bytes:
    try:
        return mutate_json_text(content, draw)
    except (ValueError, IndexError):  # no JSON any more
        return mutate_bytes(content, draw)


def _likely(folder: Path, draw: random.Random) -> None:
    try:
        values = json.loads((folder / CONFIG).read_text("utf-8")) if not (folder / CONFIG).is_symlink() else None
    except (OSError, ValueError):
        return
    if isinstance(values, dict):
        key = draw.choice(list(_LIKELY))
        values[key] = draw.choice(_LIKELY[key])
        (folder / CONFIG).write_text(json.dumps(values), "utf-8")


def _side_file(folder: Path, draw: random.Random) -> None:
    path = folder / draw.choice((GENERATION, INDEX, "tokenizer.json", "chat_template.jinja", "tokenizer_config.json"))
    if path.is_symlink():
        return
    if path.suffix == ".jinja" and path.is_file():
        path.write_bytes(mutate_bytes(path.read_bytes(), draw))
    elif path.is_file():
        path.write_bytes(_changed(path.read_bytes(), draw))
    elif not path.is_symlink() and not path.exists():
        name = draw.choice(
            (WEIGHTS, "../x", "", "/etc/passwd", ".", "x.safetensors", "a/b", 5, None, "\ud800.safetensors")
        )
        path.write_text(json.dumps({"weight_map": {"model.norm.weight": name}}), "utf-8")


def _files(folder: Path, draw: random.Random) -> None:
    """Names, links, files that are missing or something else."""
    known = [file for file in sorted(folder.iterdir()) if file.name != "tokenizer.json"]
    plain = [
        file for file in known if file.is_file() and not file.is_symlink()
    ]  # nothing is ever written through a link
    if not plain:
        return
    path, change = draw.choice(plain), draw.randrange(6)
    name = draw.choice((WEIGHTS, "model-00001-of-00002.safetensors", INDEX))
    if change == 0:
        path.unlink()
    elif change == 1:
        path.unlink()
        outside = folder.parent / "outside"
        outside.write_text("not for the model", "utf-8")
        path.symlink_to(draw.choice((folder / "nowhere", path, folder, outside, Path("/dev/zero"))))
    elif change == 2:
        path.unlink()
        path.mkdir()
    elif change == 3:
        names = ("model-00001-of-999999999999.safetensors", "model-1-of-2.safetensors", "x.safetensors", "a.bin")
        path.rename(folder / draw.choice(names))
    elif change == 4:
        path.write_bytes(b"")
    elif not (folder / name).exists() and not (folder / name).is_symlink():
        shutil.copyfile(path, folder / name)


def _weights(folder: Path, draw: random.Random) -> None:
    for path in _files_of(folder, draw):
        path.write_bytes(mutate_bytes(path.read_bytes(), draw))


def _header(folder: Path, draw: random.Random) -> None:
    for path in _files_of(folder, draw):
        content = path.read_bytes()
        try:
            (length,) = struct.unpack("<Q", content[:8])
            header = json.loads(content[8 : 8 + length])
            names = [name for name in header if name != "__metadata__"]
            _CHANGES[draw.randrange(len(_CHANGES))](header, draw.choice(names), draw)
        except (struct.error, ValueError, IndexError, TypeError, KeyError):
            continue  # changed already
        data = bytearray(content[8 + length :])
        if draw.random() < 0.3 and len(data) >= 8:
            at = draw.randrange(len(data) // 4) * 4
            data[at : at + 4] = np.float32(draw.choice((np.nan, np.inf, -np.inf, 3e38))).tobytes()
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def _entry(header: dict[str, Any], name: str, draw: random.Random) -> None:
    header[name] = mutate_json(header[name], draw)


def _shape(header: dict[str, Any], name: str, draw: random.Random) -> None:
    shape = header[name]["shape"]
    header[name]["shape"] = draw.choice(
        (shape[::-1], [1, *shape], [*shape, 1], [2**32, 2**32], [1] * 72, [-1], [], [0], [shape[0] * 2])
    )


def _kind(header: dict[str, Any], name: str, draw: random.Random) -> None:
    header[name]["dtype"] = draw.choice(
        ("F64", "F16", "BF16", "U8", "I8", "I32", "U32", "F8_E4M3", "F4", "BOOL", "C64", "X", "", 5, None)
    )


def _offsets(header: dict[str, Any], name: str, draw: random.Random) -> None:
    other = draw.choice([key for key in header if key != "__metadata__"])
    header[name]["data_offsets"] = draw.choice(
        (header[other]["data_offsets"], [0, 0], [0, 2**63], [4, 0], [-4, 0], [0], [0.0, 4.0], draw.choice(AWKWARD))
    )


def _rename(header: dict[str, Any], name: str, draw: random.Random) -> None:
    prefix = draw.choice(
        ("_orig_mod.", "module.", "base_model.model.", "model.language_model.", "transformer.", "x", "")
    )
    last = draw.choice(
        (
            ".absmax",
            ".scales",
            ".qweight",
            ".base_layer.weight",
            ".lora_A.weight",
            "\x00",
            "²",
            f".{'9' * 5000}.x",
            ".weight",
        )
    )
    new = draw.choice((prefix + name, name + last, name.replace("layers.0", "layers.7"), name.replace("layers.1", "layers.01"),
                       "lm_head.weight", "model.embed_tokens.weight", "a" * 5000, "model.layers.99999999999.x.weight"))  # fmt: skip
    header[new] = header.pop(name)


def _drop(header: dict[str, Any], name: str, draw: random.Random) -> None:
    """The tensor is gone, and its bytes are another's: a file by the rules."""
    begin, end = header.pop(name)["data_offsets"]
    header["more.weight"] = {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}


_CHANGES: tuple[Callable[[dict[str, Any], str, random.Random], None], ...] = (
    _entry,
    _shape,
    _kind,
    _offsets,
    _rename,
    _rename,
    _drop,
)


def _files_of(folder: Path, draw: random.Random) -> list[Path]:
    found = [path for path in sorted(folder.glob("*.safetensors")) if path.is_file() and not path.is_symlink()]
    return [draw.choice(found)] if found else []
