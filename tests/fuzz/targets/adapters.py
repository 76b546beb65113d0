"""Adapter folders and zips of others: mutated config, weights, identity, members and links, imported, listed, described."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from finetune_local.adapter_format import CONFIG, WEIGHTS
from finetune_local.adapters import library, manage
from finetune_local.adapters.identity import FILE as IDENTITY
from finetune_local.system.errors import AdapterError
from finetune_local.system.paths import Home
from fuzz.mutate import mutate_bytes, mutate_json, mutate_json_text

COUNTS = (300, 40_000)

MODULE = "base_model.model.model.layers.0.self_attn.q_proj"


@dataclass(frozen=True)
class Good:
    """A sound adapter as bytes."""

    files: dict[str, bytes]


def prepare(folder: Path) -> list[Good]:
    """One of each kind of PEFT's that is read, one of our own form, one of mlx-lm's."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return rng.normal(size=shape).astype(np.float32)

    identity = {"base": {"name": "b", "config_sha256": "0" * 64, "tokenizer_sha256": "1" * 64}, "run": None,
                "method": "lora", "created": "2026-01-01T00:00:00+00:00", "app_version": "1", "parameters": 40}  # fmt: skip
    lora = {f"{MODULE}.lora_A.weight": draw(2, 4), f"{MODULE}.lora_B.weight": draw(6, 2)}
    table = {"base_model.model.model.embed_tokens.weight": draw(9, 4), "base_model.model.lm_head.weight": draw(9, 4)}
    common = {"base_model_name_or_path": "x/y", "task_type": "CAUSAL_LM"}
    low_rank = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "lora_dropout": 0.1,
                "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"^model.*q_proj": 3.0}, "bias": "none", **common}  # fmt: skip
    kinds: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        (low_rank, lora, WEIGHTS),
        ({**low_rank, "use_dora": True}, {**lora, f"{MODULE}.lora_magnitude_vector": draw(6)}, WEIGHTS),
        (low_rank, {**lora, **table}, WEIGHTS),
        ({**low_rank, "modules_to_save": ["embed_tokens"]}, {**lora, **dict([next(iter(table.items()))])}, WEIGHTS),
        ({"peft_type": "ADALORA", "init_r": 2, "target_r": 2, "lora_alpha": 4, "rank_pattern": {"q_proj.lora_E": [True, True]},
          "total_step": 10, **common},
         {f"{MODULE}.lora_A": draw(2, 4), f"{MODULE}.lora_B": draw(6, 2), f"{MODULE}.lora_E": draw(2, 1)}, WEIGHTS),
        ({"peft_type": "IA3", **common}, {f"{MODULE}.ia3_l": draw(6, 1)}, WEIGHTS),
        ({"peft_type": "VERA", "r": 2, "d_initial": 0.1, **common},
         {"base_model.vera_A": draw(2, 4), "base_model.vera_B": draw(6, 2), f"{MODULE}.vera_lambda_b": draw(6),
          f"{MODULE}.vera_lambda_d": draw(2)}, WEIGHTS),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3, **common}, {"prompt_embeddings": draw(3, 4)}, WEIGHTS),
        ({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3, "num_layers": 2, "num_attention_heads": 2, "token_dim": 4,
          **common}, {"prompt_embeddings": draw(3, 16)}, WEIGHTS),
        ({"peft_type": "FINETUNE_LOCAL", "family": "low_rank", "method": "lora", "settings": {"rank": 2, "start": "pissa"},
          "targets": [["model.layers.0.self_attn.q_proj", 4, 6]], **common},
         {f"{MODULE}.{name}.weight": draw(*shape) for name, shape in
          (("lora_A", (2, 4)), ("lora_B", (6, 2)), ("lora_A0", (2, 4)), ("lora_B0", (6, 2)))}, WEIGHTS),
        ({"fine_tune_type": "dora", "num_layers": 1, "lora_parameters": {"rank": 2, "scale": 5.0, "dropout": 0.0}, "model": "x"},
         {"model.layers.0.self_attn.q_proj.lora_a": draw(4, 2), "model.layers.0.self_attn.q_proj.lora_b": draw(2, 6),
          "model.layers.0.self_attn.q_proj.m": draw(6)}, "adapters.safetensors"),
    ]  # fmt: skip
    found = []
    for config, tensors, name in kinds:
        files = {
            CONFIG: json.dumps(config).encode(),
            name: save(tensors),
            "README.md": b"# x\n",
            "tokenizer_config.json": b"{}",
        }
        found.append(Good({**files, IDENTITY: json.dumps(identity).encode()}))
    for number, good in enumerate(found):
        home = Home(folder / f"home {number}")
        (folder / "a").mkdir(exist_ok=True)
        for old in (folder / "a").iterdir():
            old.unlink()
        for name, content in good.files.items():
            (folder / "a" / name).write_bytes(content)
        manage.bring_in(folder / "a", home, "good")  # else every input would be refused for the same reason
        library.details("good", home.adapters / "good", "imported")
    return found


def attempt(prepared: list[Good], draw: random.Random, folder: Path) -> None:
    """Import a mutated one as folder or zip; then damage one that is in the library."""
    home = Home(folder / "home")
    files = _mutated(draw.choice(prepared).files, draw)
    where = draw.randrange(3)
    if where == 2:  # damaged in the library
        place = home.adapters / "x"
        place.mkdir()
        _write(place, files, draw, links=False)
        told = library.listing(home)
        assert len(told) <= 1
        json.dumps([asdict(facts) for facts in told])
        library.details("x", place, "imported")
        return
    source = folder / "theirs"
    if where == 0:
        source.mkdir()
        _write(source, files, draw, links=True)
    else:
        source = folder / "theirs.zip"
        source.write_bytes(_zip(files, draw))
    notes: list[str] = []
    name = draw.choice(("x", "x", "x", "\ud800", "CON", "a/b", "é" * 60, "\x00", ".x", "x" * 300))
    try:
        manage.bring_in(source, home, name, notes.append)
    except AdapterError:
        assert list(home.adapters.iterdir()) == [], "something is left of what was refused"
        raise
    for told in library.listing(home):
        json.dumps(asdict(told), ensure_ascii=False).encode("utf-8")


def _mutated(files: dict[str, bytes], draw: random.Random) -> dict[str, bytes]:
    found = dict(files)
    for _ in range(draw.choice((1, 1, 2))):
        name = draw.choice([name for name in found if name != "README.md"] or list(files))
        if name.endswith(".safetensors"):
            found[name] = _weights(files[name], draw)
        elif draw.random() < 0.05:
            del found[name]
        else:
            found[name] = mutate_json_text(files[name], draw)
    return found


def _weights(content: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.4:
        return mutate_bytes(content, draw)
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
    change = draw.randrange(4)
    if change == 0 and data:
        at = draw.randrange(0, len(data) - 3, 4)
        data[at : at + 4] = struct.pack("<f", draw.choice((float("nan"), float("inf"), 1e38)))
    elif change == 1:
        old = draw.choice(list(header))
        new = draw.choice((old.replace("base_model.model.", "base_model.model._orig_mod."), old.replace("layers.0", "layers.x"),
                           old.replace("lora_A", "lora_A.default"), old.removeprefix("base_model."), old + ".x", "", "a" * 5000))  # fmt: skip
        header[new] = header.pop(old)
    else:
        header = mutate_json(header, draw)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def _write(place: Path, files: dict[str, bytes], draw: random.Random, *, links: bool) -> None:
    for name, content in files.items():
        (place / name).write_bytes(content)
    if links and draw.random() < 0.2:
        name = draw.choice([*files, "README.md", "note.txt", "tokenizer.json"])
        (place / name).unlink(missing_ok=True)
        kind = draw.randrange(5)
        if kind == 0:
            os.mkfifo(place / name)
        elif kind == 1:
            (place / name).mkdir()
        else:
            (place / name).symlink_to(
                draw.choice(("/etc/passwd", "..", "/dev/zero", "nowhere", name, "../../blobs/" + "0" * 40))
            )


def _zip(files: dict[str, bytes], draw: random.Random) -> bytes:
    stream = io.BytesIO()
    inner = draw.choice(("", "a/", "a/b/", "../", "/", "C:/"))
    with zipfile.ZipFile(
        stream, "w", draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2))
    ) as z:
        for name, content in files.items():
            info = zipfile.ZipInfo(inner + name)
            info.compress_type = z.compression
            if draw.random() < 0.03:
                info.external_attr = draw.choice((0o120777, 0o010644, 0o040755)) << 16
            z.writestr(info, content)
        if draw.random() < 0.1:
            z.writestr("other/" + draw.choice((CONFIG, "x")), "{}")
    content = stream.getvalue()
    return mutate_bytes(content, draw) if draw.random() < 0.5 else content
