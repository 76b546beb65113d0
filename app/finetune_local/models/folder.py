"""ModelFolder: a Hugging Face model folder, inspected without loading it.

Safetensors only. Pickles and repositories with their own code are refused, because both can execute code.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from finetune_local.models.fingerprint import config_sha256, tokenizer_sha256
from finetune_local.models.tensors import Floats, Stored, largest, read_header, read_tensor, same_numbers
from finetune_local.models.vocabulary import check_tokens
from finetune_local.spec.base.config import CONFIG, GENERATION, check_generation_config, read_base_config, size_of
from finetune_local.spec.base.config import read_config_file as read_json
from finetune_local.spec.base.files import INDEX, weight_files, weight_map
from finetune_local.spec.base.tokenizer_files import template_of
from finetune_local.spec.base.weights import check_base_weights
from finetune_local.spec.numerics.rope import context_length, stretched
from finetune_local.spec.plan import BaseInfo, WeightInfo
from finetune_local.spec.targets import is_embedding
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import msg, system_reason
from finetune_local.system.paths import located
from finetune_local.system.untrusted.text import ForeignTextError

__all__ = [
    "CONFIG", "INDEX", "TOKENIZER", "Identity", "ModelFolder", "check_config", "is_plain", "name_of",
    "read_json", "sha256_of",
]  # fmt: skip

TOKENIZER = "tokenizer.json"
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Identity:
    """What identifies a base: its name, and hashes of its computation and its tokenizer.

    `rope_factor` is the position interpolation added to its own config.json; config_sha256 includes it.
    """

    name: str
    config_sha256: str
    tokenizer_sha256: str
    rope_factor: float = 1.0


class ModelFolder:
    """A complete base model on disk. Create one with `open()`, which checks it.

    `config` is config.json's, with positions interpolated by `rope_factor`.
    """

    def __init__(
        self, path: Path, name: str, config: dict[str, Any], stored: dict[str, Stored], rope_factor: float = 1.0
    ) -> None:
        self.path, self.name, self.config, self.rope_factor = path, name, config, rope_factor
        self._stored = stored

    @classmethod
    def open(cls, path: Path, name: str | None = None) -> ModelFolder:
        """Check a folder and read its headers. Raises ModelError naming what is missing, damaged or refused."""
        path = located(path).absolute()
        try:
            return cls._opened(path, name)
        except OSError as error:  # the folder itself cannot be read
            raise ModelError(msg("{path}: {strerror}.", path=path, strerror=system_reason(error))) from None

    @classmethod
    def _opened(cls, path: Path, name: str | None) -> ModelFolder:
        if not path.is_dir():
            raise ModelError(msg("{path}: folder not found. Choose a Hugging Face model folder.", path=path))
        if (path / "adapter_config.json").exists() and not (path / CONFIG).exists():
            raise ModelError(msg("{path}: this is an adapter, not a base model. Use it with --adapter.", path=path))
        config = read_base_config(path)
        check_config(path, config)
        if (path / GENERATION).is_file():
            check_generation_config(read_json(path / GENERATION), path / GENERATION)
        stored = _stored_tensors(path)
        check_base_weights(config, stored, path)
        if not (path / TOKENIZER).is_file():
            raise ModelError(
                msg(
                    "{path}: no {file} here. Copy it from the model's source; where only an older tokenizer "
                    "(tokenizer.model) exists, open it with transformers and save it with save_pretrained().",
                    path=path,
                    file=TOKENIZER,
                )
            )
        return cls(path, name or name_of(path), config, stored)

    def stretched(self, factor: float) -> ModelFolder:
        """The same model with `factor` times the context (spec/numerics/rope.py). Raises SpecError if it cannot be interpolated."""
        if factor == 1:
            return self
        config = stretched(self.config, factor)
        return ModelFolder(self.path, self.name, config, self._stored, self.rope_factor * factor)

    @property
    def family(self) -> str:
        """model_type, such as "llama" or "qwen2"; of a multimodal model, its language model's."""
        return str(self.text_config.get("model_type") or self.config["model_type"])

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The part of the config that describes the language model; usually all of it."""
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self._size("hidden_size", "n_embd", "d_model")

    @property
    def blocks(self) -> int:
        """Number of transformer blocks."""
        return self._size("num_hidden_layers", "n_layer", "num_layers")

    @property
    def vocabulary(self) -> int:
        """Rows of the output matrix, which may exceed the tokenizer's vocabulary; the embedding's if the config does not say."""
        rows = self._table.shape[0] if self._table is not None and len(self._table.shape) == 2 else 0
        return size_of(self.text_config, "vocab_size") or rows or self._size("vocab_size")

    @property
    def context_length(self) -> int:
        """Context length in tokens; 2048 if the config does not say."""
        return context_length(self.text_config)

    @cached_property
    def tied(self) -> bool:
        """Whether the output matrix is the embedding. A stored one that differs is not tied, even if the config says so; both are read
        to compare them.
        """
        return self._tied(everything=True)

    def _tied(self, everything: bool) -> bool:
        declared, head = (
            self.text_config.get("tie_word_embeddings", self.config.get("tie_word_embeddings")),
            self._stored.get(HEAD),
        )
        if declared is None or head is None or self._table is None:
            return bool(declared) if declared is not None else head is None
        return bool(declared) and same_numbers(head, self._table, everything)

    @cached_property
    def _table(self) -> Stored | None:
        """Name of the embedding."""
        return next((t for n, t in self._stored.items() if is_embedding(n.removesuffix(".weight"))), None)

    @cached_property
    def parameters(self) -> int:
        """Number of parameters; a stored but tied output matrix counts once."""
        tied = self._tied(everything=False)
        names = (n for n in self._stored if not (tied and n == HEAD))
        return sum(math.prod(self._stored[name].shape) for name in names)

    @cached_property
    def bytes_on_disk(self) -> int:
        """Total size of the files directly in the folder."""
        return sum(file.stat().st_size for file in self.path.iterdir() if file.is_file())

    @property
    def weight_files(self) -> list[Path]:
        """The files that hold its tensors."""
        return sorted({tensor.file for tensor in self._stored.values()})

    def weights(self) -> Mapping[str, WeightInfo]:
        """Shape and dtype of every tensor, from the headers; nothing is loaded."""
        return {name: WeightInfo(tensor.shape, tensor.dtype) for name, tensor in self._stored.items()}

    def info(self) -> BaseInfo:
        """The facts that tuners use before the model is loaded."""
        text = self.text_config
        heads = size_of(text, "num_attention_heads", "n_head")
        head_dim = size_of(text, "head_dim") or (size_of(text, "hidden_size", "n_embd") // heads if heads else 0)
        kv_heads = size_of(text, "num_key_value_heads") or heads
        return BaseInfo(self.weights(), self.context_length, self.family, kv_heads, head_dim)

    def read(self, name: str) -> Floats:
        """One tensor as fp32. Raises ModelError if it does not exist or is not of floats."""
        if name not in self._stored:
            raise ModelError(msg("{path}: it has no tensor {name}.", path=self.path, name=name))
        return read_tensor(self._stored[name], name)

    def largest(self, name: str) -> float:
        """Largest absolute value of a tensor, without converting it to fp32. Raises ModelError."""
        return largest(self._stored[name], name)

    def chat_template(self) -> str | None:
        """The chat template, from chat_template.jinja or tokenizer_config.json."""
        return template_of(self.path)

    def identity(self) -> Identity:
        """Equal for the same model re-saved by another program, different for another model or template."""
        return self._identity

    @cached_property
    def vocabulary_sha256(self) -> str:
        """Identity's tokenizer_sha256 without the chat template."""
        return tokenizer_sha256(read_json(self.path / TOKENIZER, ""), None)

    def check_tokens(self) -> None:
        """Raise ModelError if chats or texts need tokens without a row in the embedding. Not part of open(): reading a large tokenizer
        takes a while.
        """
        file = self.path / "tokenizer_config.json"
        settings = read_json(file) if file.is_file() else {}
        check_tokens(self.path, self._tokenizer, settings, self.chat_template(), self.vocabulary)

    @cached_property
    def _tokenizer(self) -> Mapping[str, Any]:
        return read_json(self.path / TOKENIZER)

    @cached_property
    def _identity(self) -> Identity:
        tokenizer = self._tokenizer
        try:
            digest = tokenizer_sha256(tokenizer, self.chat_template())
        except ForeignTextError as error:
            raise ModelError(
                msg("{path}: {error}. Copy the file again.", path=self.path / TOKENIZER, error=error)
            ) from None
        return Identity(self.name, config_sha256(self.config), digest, self.rope_factor)

    def _size(self, *keys: str) -> int:
        if found := size_of(self.text_config, *keys):
            return found
        raise ModelError(msg("{path}: '{key}' is missing. Copy the file again.", path=self.path / CONFIG, key=keys[0]))


def name_of(path: Path) -> str:
    """A folder's name; of a snapshot in the Hugging Face cache ORG/NAME."""
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
    return path.name


def check_config(path: Path | str, config: Mapping[str, Any]) -> None:
    """Raise ModelError if a config's model is not supported; `path` names it in the message: a folder, or ORG/NAME."""
    family = config.get("model_type")
    if not isinstance(family, str) or not re.fullmatch(r"[\w.-]{1,100}", family, re.ASCII):
        raise ModelError(
            msg(
                "{path}: 'model_type' is missing from config.json, so the kind of model is unknown.",
                path=path,
            )
        )
    if "auto_map" in config and not is_plain(family):
        raise ModelError(
            msg(
                "{path}: this model ('{family}') brings its own Python code, which is not run here. Choose a model "
                "of a family that is built in, such as llama, qwen2, qwen3, gemma or mistral.",
                path=path,
                family=family,
            )
        )
    for key in ("quantization_config", "quantization"):
        if isinstance(how := config.get(key), dict) and how:
            kind = how.get("quant_method") or f"{how.get('bits', 'a few')}-bit"
            raise ModelError(
                msg(
                    "{path}: its weights are already quantised ({kind}). Use the original unquantised model and "
                    "--precision 4-bit: training then quantises it, and exports lose nothing.",
                    path=path,
                    kind=kind,
                )
            )
    if config.get("is_encoder_decoder"):
        raise ModelError(
            msg(
                "{path}: '{family}' is an encoder-decoder. Only models that continue a text can be used.",
                path=path,
                family=family,
            )
        )


def is_plain(family: str) -> bool:
    """Whether transformers itself implements the architecture, so the repository's own code is not needed. Imports nothing."""
    spec = importlib.util.find_spec("transformers")
    places = spec.submodule_search_locations if spec is not None else None
    module = re.sub(r"\W", "_", family.removesuffix("_text"))  # the text part of a family: gemma3_text
    return any((Path(place) / "models" / module).is_dir() for place in places or ())


def _stored_tensors(path: Path) -> dict[str, Stored]:
    """Every tensor in the weight files. Raises ModelError if the index disagrees with them."""
    where = weight_map(path) if (path / INDEX).is_file() else {}
    stored: dict[str, Stored] = {}
    for file in [path / name for name in sorted(set(where.values()))] or weight_files(path):
        found = read_header(file)
        if twice := stored.keys() & found.keys():
            name = min(twice)
            raise ModelError(
                msg(
                    "{path}: tensor {name} is in {one} and in {other}, and it is unclear which one is valid. Copy the "
                    "weights again.",
                    path=path,
                    name=name,
                    one=stored[name].file.name,
                    other=file.name,
                )
            )
        stored |= found
    for name, file_name in where.items():
        if name not in stored or stored[name].file.name != file_name:
            raise ModelError(
                msg(
                    "{path}: tensor {name} is not in it, though {index} says so. Copy both again.",
                    path=path / file_name,
                    name=name[:120],
                    index=INDEX,
                )
            )
    if not stored:
        raise ModelError(
            msg("{path}: its weight files contain no tensors. Copy the model's weights into the folder.", path=path)
        )
    return stored


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
