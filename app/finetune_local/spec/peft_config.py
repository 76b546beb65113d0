"""adapter_config.json as a record with bounds, whichever program wrote it.

Bounds are declared here only; tuners read this record. PEFT's other fields are known by name (`unread`), so that those that
change the computation can be refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from finetune_local.system.errors import AdapterError
from finetune_local.system.messages import msg
from finetune_local.system.untrusted.text import is_text, kind_of

_LONGEST_NAME = 1000
_MOST_MODULES = 200_000


def _readable(text: str) -> str:
    if not is_text(text):
        raise ValueError(msg("is not valid text"))
    return text


Name = Annotated[str, Field(max_length=_LONGEST_NAME), AfterValidator(_readable)]
Text = Annotated[str, Field(max_length=100_000), AfterValidator(_readable)]
Rank = Annotated[int, Field(ge=1, le=65536)]
Size = Annotated[int, Field(ge=1, le=10_000_000)]
Steps = Annotated[int, Field(ge=0, le=10**12)]
Positive = Annotated[float, Field(gt=0, le=1e9)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**24)]], Field(max_length=2**20)]
Share = Annotated[float, Field(ge=0, le=1)]


class PeftConfig(BaseModel):
    """See the module. A missing or null field has its default."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, hide_input_in_errors=True)

    peft_type: Name | None = None
    base_model_name_or_path: Text | None = None
    bias: Name = "none"
    modules_to_save: Annotated[tuple[Name, ...], Field(max_length=_MOST_MODULES)] = ()

    r: Rank | None = None
    lora_alpha: Positive | None = None
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    rank_pattern: Annotated[dict[Name, Rank | list[bool] | list[int]], Field(max_length=_MOST_MODULES)] | None = None
    alpha_pattern: Annotated[dict[Name, Positive], Field(max_length=_MOST_MODULES)] = {}
    trainable_token_indices: TokenIds | Annotated[dict[Name, TokenIds], Field(max_length=1000)] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | Name | None = None

    init_r: Rank | None = None
    target_r: Rank | None = None
    total_step: Size | None = None
    tinit: Steps = 0
    tfinal: Steps = 0
    deltaT: Size | None = None  # noqa: N815 - PEFT's name
    beta1: Share = 0.85
    beta2: Share = 0.85
    orth_reg_weight: Annotated[float, Field(ge=0, le=1e9)] = 0.5

    num_virtual_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    num_attention_heads: Annotated[int, Field(ge=1, le=65536)] | None = None
    num_layers: Annotated[int, Field(ge=1, le=10_000)] | None = None
    token_dim: Size | None = None
    encoder_hidden_size: Size | None = None
    num_transformer_submodules: Annotated[int, Field(ge=1, le=2)] | None = None
    d_initial: Annotated[float, Field(ge=-1e6, le=1e6)] | None = None

    family: Name = ""
    method: Name = ""
    settings: dict[str, Any] | None = None
    targets: Annotated[tuple[tuple[Name, int, int], ...], Field(max_length=_MOST_MODULES)] | None = None

    unread: frozenset[str] = frozenset()
    """Names of PEFT's other fields that are set to a truthy value."""

    def rank_and_alpha(self, name: Literal["r", "init_r"]) -> tuple[int, float]:
        """The rank, stored under `name`, and alpha. Raises AdapterError if one is missing."""
        rank, alpha = getattr(self, name), self.lora_alpha
        if rank is None or alpha is None:
            lacking = name if rank is None else "lora_alpha"
            raise AdapterError(msg("adapter_config.json lacks '{name}'. Copy the adapter again.", name=lacking))
        return rank, alpha

    def ranks(self) -> dict[str, int]:
        """LoRA's `rank_pattern`. Raises AdapterError if it is AdaLoRA's."""
        found = {name: number for name, number in (self.rank_pattern or {}).items() if isinstance(number, int)}
        if len(found) < len(self.rank_pattern or {}):
            raise AdapterError(
                msg("adapter_config.json: 'rank_pattern' contains lists, as with AdaLoRA. Copy the adapter again.")
            )
        return found

    @field_validator("modules_to_save", mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("targets")
    @classmethod
    def _sizes(cls, value: Any) -> Any:
        if value is not None and any(not 0 <= n <= 2**40 for _, *sizes in value for n in sizes):
            raise ValueError(msg("a module's size is negative or too big"))
        return value


_KNOWN = frozenset(PeftConfig.model_fields) - {"unread"}


def peft_config(values: Mapping[str, Any], file: str) -> PeftConfig:
    """Validate the contents of `file`. Raises AdapterError naming the first invalid field."""
    given = {name: value for name, value in values.items() if name in _KNOWN and value is not None}
    others = frozenset(name for name, value in values.items() if name not in _KNOWN and value)
    try:
        return PeftConfig.model_validate({**given, "unread": others})
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = str(problem["loc"][0]) if problem["loc"] else ""
        problem_text = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
        raise AdapterError(
            msg(
                "{file}: '{path}' is {value}, but {text}. Copy the adapter again.",
                file=file,
                path=name,
                value=_shown(given.get(name)),
                text=problem_text,
            )
        ) from None


def _shown(value: Any) -> str:
    """A value, shortened for a message."""
    if isinstance(value, (dict, list)):
        return kind_of(value)
    text = ascii(value) if isinstance(value, str) and not is_text(value) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
