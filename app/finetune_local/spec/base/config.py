"""A base model's config.json and generation_config.json: one record each, with bounds on the fields that are used.

Architectures name sizes differently, so every field may be missing and unknown ones are ignored; a field that is present must
have the right type and a sane value before it is used. NaN is refused anywhere in the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from finetune_local.system.errors import ModelError
from finetune_local.system.messages import Message, msg, system_reason
from finetune_local.system.untrusted.text import ForeignTextError, is_text, kind_of, read_json_object

CONFIG, GENERATION = "config.json", "generation_config.json"
_DEPTH = 4
"""Levels of nested configs (text_config) that are searched."""


Check = Callable[[Any], Any]


def _sizes(most: int) -> Check:
    """A size, or one per block."""

    def checked(value: Any) -> Any:
        for one in value if isinstance(value, list) else [value]:
            if one is not None and (type(one) is not int or not 1 <= one <= most):
                raise ValueError(msg("a whole number from 1 to {high}", high=most))
        return value

    return checked


def _whole(low: int, high: int) -> Check:
    """An integer, or one per block."""

    def checked(value: Any) -> Any:
        for one in value if isinstance(value, list) else [value]:
            if one is not None and not (type(one) is int and low <= one <= high):
                raise ValueError(msg("a whole number from {low} to {high}", low=low, high=high))
        return value

    return checked


def _number(low: float, high: float, words: str) -> Check:
    """A number within bounds; `words` describe them."""

    def checked(value: Any) -> Any:
        if value is not None and not (type(value) in (int, float) and low <= value <= high):
            raise ValueError(words)
        return value

    return checked


def _of(kind: type, words: str) -> Check:
    def checked(value: Any) -> Any:
        if value is not None and not isinstance(value, kind):
            raise ValueError(words)
        return value

    return checked


def _list_of(right: Callable[[Any], bool], words: str) -> Check:
    def checked(value: Any) -> Any:
        if value is not None and not (isinstance(value, list) and len(value) <= 2**16 and all(map(right, value))):
            raise ValueError(words)
        return value

    return checked


def _ids(value: Any) -> Any:
    """One id or several; older configs use -1 for none."""
    found = value if isinstance(value, list) else [value]
    if len(found) > 1000 or not all(one is None or (type(one) is int and -1 <= one < 2**31) for one in found):
        raise ValueError(msg("the number of a token, or a list of them"))
    return value


def _positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1e30


Width = Annotated[Any, BeforeValidator(_sizes(2**24))]
Blocks = Annotated[Any, BeforeValidator(_sizes(10_000))]
Heads = Annotated[Any, BeforeValidator(_sizes(2**16))]
Rows = Annotated[Any, BeforeValidator(_sizes(2**27))]
Length = Annotated[Any, BeforeValidator(_sizes(2**31 - 1))]
Count = Annotated[Any, BeforeValidator(_whole(0, 2**16))]
Window = Annotated[Any, BeforeValidator(_whole(0, 2**31 - 1))]
Share = Annotated[Any, BeforeValidator(_number(0.0, 1.0, msg("a number from 0 to 1")))]
Positive = Annotated[Any, BeforeValidator(_number(1e-30, 1e30, msg("a number above 0")))]
Finite = Annotated[Any, BeforeValidator(_number(-1e30, 1e30, msg("a finite number")))]
Flag = Annotated[Any, BeforeValidator(_of(bool, msg("true or false")))]
Text = Annotated[Any, BeforeValidator(_of(str, msg("a text")))]
Table = Annotated[Any, BeforeValidator(_of(dict, msg("an object")))]
Texts = Annotated[Any, BeforeValidator(_list_of(is_text, msg("a list of texts")))]
Factors = Annotated[Any, BeforeValidator(_list_of(_positive, msg("a list of numbers above 0")))]
Ids = Annotated[Any, BeforeValidator(_ids)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class RopeTable(_Record):
    """Rotary embedding: `rope_parameters`, or `rope_scaling` before transformers 5."""

    rope_theta: Positive = None
    rope_type: Text = None
    type: Text = None
    factor: Positive = None
    low_freq_factor: Positive = None
    high_freq_factor: Positive = None
    attention_factor: Positive = None
    original_max_position_embeddings: Length = None
    partial_rotary_factor: Share = None
    short_factor: Factors = None
    long_factor: Factors = None
    beta_fast: Finite = None
    beta_slow: Finite = None


class BaseConfig(_Record):
    """config.json, or its language-model part."""

    model_type: Text = None
    architectures: Texts = None
    text_config: Table = None
    auto_map: Table = None
    quantization_config: Table = None
    quantization: Table = None
    rope_parameters: Table = None
    rope_scaling: Table = None
    layer_types: Texts = None

    hidden_size: Width = None
    n_embd: Width = None
    d_model: Width = None
    intermediate_size: Width = None
    head_dim: Heads = None
    num_hidden_layers: Blocks = None
    n_layer: Blocks = None
    num_layers: Blocks = None
    num_attention_heads: Heads = None
    n_head: Heads = None
    num_key_value_heads: Heads = None
    vocab_size: Rows = None
    max_position_embeddings: Length = None
    n_positions: Length = None
    max_sequence_length: Length = None
    max_seq_len: Length = None
    seq_length: Length = None

    num_experts: Count = None
    num_local_experts: Count = None
    num_experts_per_tok: Count = None
    num_nextn_predict_layers: Count = None
    sliding_window: Window = None

    rms_norm_eps: Share = None
    layer_norm_eps: Share = None
    layer_norm_epsilon: Share = None
    norm_eps: Share = None
    norm_epsilon: Share = None
    rope_theta: Positive = None
    rope_local_base_freq: Positive = None
    partial_rotary_factor: Share = None
    attention_dropout: Share = None
    hidden_dropout: Share = None
    embd_pdrop: Share = None
    attn_pdrop: Share = None
    resid_pdrop: Share = None
    attn_logit_softcapping: Positive = None
    final_logit_softcapping: Positive = None
    query_pre_attn_scalar: Positive = None
    embedding_multiplier: Finite = None
    attention_multiplier: Finite = None
    residual_multiplier: Finite = None
    logits_scaling: Positive = None
    moe_intermediate_size: Width = None
    n_routed_experts: Count = None
    logit_scale: Finite = None

    tie_word_embeddings: Flag = None
    attention_bias: Flag = None
    mlp_bias: Flag = None
    use_qk_norm: Flag = None
    use_sliding_window: Flag = None
    is_encoder_decoder: Flag = None
    norm_topk_prob: Flag = None
    hidden_act: Text = None
    hidden_activation: Text = None
    bos_token_id: Ids = None
    eos_token_id: Ids = None
    pad_token_id: Ids = None


class GenerationConfig(_Record):
    """generation_config.json."""

    bos_token_id: Ids = None
    eos_token_id: Ids = None
    pad_token_id: Ids = None


def read_base_config(folder: Path) -> dict[str, object]:
    """A model folder's config.json, checked, with the file's values. Raises ModelError."""
    values = read_config_file(folder / CONFIG, msg("It is the description of the model and comes with its weights."))
    check_base_config(values, folder / CONFIG)
    return values


def read_config_file(path: Path, why: str = "") -> dict[str, object]:
    """A JSON object from a file. Raises ModelError; `why` explains what a missing file is for."""
    found = read_optional_config(path)
    if found is None:
        missing = msg(
            "{folder}: no {file} here, so this is not a complete model folder.", folder=path.parent, file=path.name
        )
        raise ModelError(missing + " " + why if why else missing)
    return found


def read_optional_config(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file, or None if it does not exist. Raises ModelError."""
    try:
        if not path.is_file():  # a pipe would never end, and a link may lead to nothing
            if path.is_symlink() or path.exists():
                what = msg("a broken link") if path.is_symlink() else msg("not a file")
                raise ModelError(
                    msg("{path}: {what}. Copy the file itself from the model's source.", path=path, what=what)
                )
            return None
        return read_json_object(path)
    except ForeignTextError as error:
        raise ModelError(
            msg("{path}: {error}. Copy it again from the model's source.", path=path, error=error)
        ) from None
    except OSError as error:
        raise ModelError(msg("{path}: {strerror}.", path=path, strerror=system_reason(error))) from None


def check_base_config(config: Mapping[str, Any], where: Path | str) -> None:
    """Raise ModelError if a value in config.json has the wrong type or is out of bounds; `where` names the file."""
    _check(BaseConfig, config, where, "")
    for key in ("rope_parameters", "rope_scaling"):
        table = config.get(key) or {}
        nested = bool(table) and all(isinstance(value, dict) for value in table.values())
        for name, one in table.items() if nested else (("", table),):
            _check(RopeTable, one, where, f"{key}.{name}." if name else f"{key}.")
    if (place := _nan_in(config)) is not None:
        raise ModelError(_refusal(where, place, math.nan, msg("a number")))
    _check_heads(config, where)
    inner, depth = config.get("text_config"), 0
    while isinstance(inner, dict) and depth < _DEPTH:
        check_base_config({**inner, "text_config": None}, f"{where}/text_config")
        inner, depth = inner.get("text_config"), depth + 1


def size_of(config: Mapping[str, Any], *keys: str) -> int:
    """The first of these sizes the config has, else 0; the largest if it is given per block."""
    for key in keys:
        value = config.get(key)
        found = [n for n in (value if isinstance(value, list) else [value]) if type(n) is int and n > 0]
        if found:
            return max(found)
    return 0


def check_generation_config(config: Mapping[str, Any], where: Path | str) -> None:
    """Raise ModelError if a value in generation_config.json has the wrong type."""
    _check(GenerationConfig, config, where, "")


def _check(kind: type[_Record], values: Mapping[str, Any], where: Path | str, prefix: str) -> None:
    try:
        kind.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = prefix + ".".join(str(part) for part in problem["loc"])
        words = str(problem.get("ctx", {}).get("error") or problem["msg"])
        raise ModelError(_refusal(where, place, problem["input"], words)) from None


def _check_heads(config: Mapping[str, Any], where: Path | str) -> None:
    experts, chosen = (
        size_of(config, "num_experts", "num_local_experts", "n_routed_experts"),
        size_of(config, "num_experts_per_tok"),
    )
    if 0 < experts < chosen:
        raise ModelError(
            msg(
                "{where}: {number} experts for each token (num_experts_per_tok) cannot be chosen from {experts}. "
                "Copy the file again from the model's source.",
                where=where,
                number=chosen,
                experts=experts,
            )
        )
    heads, groups = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(groups, int) and heads % groups:
        raise ModelError(
            msg(
                "{where}: {heads} attention heads (num_attention_heads) cannot share {groups} heads of keys and "
                "values (num_key_value_heads). Copy the file again from the model's source.",
                where=where,
                heads=heads,
                groups=groups,
            )
        )


def _refusal(where: Path | str, place: str, value: Any, words: str) -> Message:
    return msg(
        "{where}: '{field}' is {value}, but it must be {words}. Copy the file again from the model's source.",
        where=where,
        field=place,
        value=_shown(value),
        words=words,
    )


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return kind_of(value)
    text = repr(value) if is_text(value) or not isinstance(value, str) else msg("a text that cannot be displayed")
    return text if len(text) <= 60 else msg("{text}…", text=text[:60])


def _nan_in(config: Mapping[str, Any]) -> str | None:
    """The path of a NaN in a config, or None."""
    waiting: list[tuple[str, Any]] = list(config.items())
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, float) and math.isnan(value):
            return place
        if isinstance(value, dict):
            waiting += [(f"{place}.{key}", inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(place, inner) for inner in value]
    return None


def windows(text: Mapping[str, Any], layers: int) -> list[int | None]:
    """Each layer's sliding window in positions, the current one included; None for full attention. `text` is a config's text part."""
    window = text.get("sliding_window")
    if not isinstance(window, int) or window <= 0 or text.get("use_sliding_window") is False:
        return [None] * layers
    types = text.get("layer_types")
    if not types:
        return [window] * layers
    return [window if kind == "sliding_attention" else None for kind in types]
