"""RunSpec: model + data + method + objective + training. `run.json` of a run is this, resolved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, SerializeAsAny, field_validator

from finetune_local.spec.objectives import Objective, objective_named, objectives
from finetune_local.spec.plan import AdapterPlan, BaseInfo
from finetune_local.spec.tuners import preset_named, presets, recommended, tuners
from finetune_local.system.errors import SpecError
from finetune_local.system.fields import Settings, did_you_mean, parse, setting
from finetune_local.system.messages import msg
from finetune_local.system.untrusted.text import is_text

Goal = Literal["quick", "balanced", "thorough"]
Precision = Literal["fp32", "bf16", "8-bit", "4-bit"]
Quantisation = Literal["auto", "nf4", "affine"]
OptimizerName = Literal["adamw", "adamw-8bit", "paged-adamw", "paged-adamw-8bit"]
Personal = Literal["all", "email", "phone", "card", "iban", "id", "ip", "key", "credentials"]
"""Kinds of personal data that data/readers/scrub.py finds."""

COLUMN_ROLES = (
    "prompt", "completion", "instruction", "input", "output", "system", "text", "messages", "conversations", "history",
    "tools", "speaker", "time", "conversation", "chosen", "rejected",
)  # fmt: skip
"""What a column of a data file can be: keys that formats read."""

DEFAULT_MODEL = "smollm2-135m"
(DEFAULT_OBJECTIVE,) = (key for key, objective in objectives().items() if objective.is_default)
DEFAULT_METHOD = recommended()[0].key


class ModelSettings(Settings):
    """The base model."""

    id: str = setting(
        DEFAULT_MODEL,
        help="Base model: a name from `models`, or a local Hugging Face folder.",
        group="model",
        flag="--model",
        metavar="NAME",
    )
    precision: Precision | None = setting(
        None,
        help="Precision in which the base is loaded. Automatic: bf16 if the device is fast at it, else fp32.",
        group="model",
    )
    quantisation: Quantisation = setting(
        "auto",
        help="4-bit format: nf4 as in QLoRA, or MLX's affine groups. auto: the faster one, affine on MLX, else nf4.",
        group="model",
    )
    rope_factor: float = setting(
        1.0, help="Stretch the context to this many times its length, by position interpolation.", group="model", ge=1
    )
    context: int | None = setting(
        None, help="Stretch the context to this many tokens, instead of --rope-factor.", group="model", ge=8
    )


class DataSettings(Settings):
    """What it learns from."""

    files: tuple[str, ...] = setting(
        (), help="Training data: JSONL, JSON, CSV or text (repeatable).", group="data", flag="--data", metavar="FILE"
    )
    validation_files: tuple[str, ...] = setting(
        (),
        help="Separate validation data, instead of a split of the training data (repeatable).",
        group="data",
        flag="--validation-data",
        metavar="FILE",
    )
    validation: float = setting(0.1, help="Share of conversations held out for validation.", group="data", ge=0, le=0.9)
    format: str = setting("auto", help="Format of the rows; auto detects it from the content.", group="data")
    template: Literal["chat", "raw"] = setting(
        "chat", help="chat: the model's chat template; raw: the texts unchanged.", group="data"
    )
    max_length: int | None = setting(
        None,
        help="Maximum length of a row in tokens; longer rows lose their oldest turns.",
        group="data",
        ge=8,
        le=1_048_576,
    )
    limit: int | None = setting(None, help="Use at most this many rows.", group="data", ge=1)
    columns: tuple[str, ...] = setting(
        (),
        help="Role of a column with a name that no format knows, such as prompt=frage (repeatable).",
        group="data",
        flag="--column",
        metavar="ROLE=COLUMN",
    )
    assistant: str | None = setting(
        None,
        help="The speaker whose turns are learned, if speakers have names. Automatic: none.",
        group="data",
        metavar="NAME",
    )
    scrub: tuple[Personal, ...] = setting(
        (), help="Personal data to replace by placeholders before anything is learned (repeatable).", group="data"
    )

    @field_validator("columns")
    @classmethod
    def _columns_have_roles(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        """Pydantic's errors become sentences by fields.parse()."""
        roles = []
        for column in columns:
            role, sign, name = (part.strip() for part in column.partition("="))
            if not sign or not name:
                raise ValueError(
                    msg(
                        "--column {column}: assign a column to a role, for example --column prompt=frage.",
                        column=column,
                    )
                )
            if role not in COLUMN_ROLES:
                hint = did_you_mean(role, COLUMN_ROLES) or f" Known: {', '.join(COLUMN_ROLES)}."
                raise ValueError(
                    msg("--column {column}: a column cannot be '{role}'.{hint}", column=column, role=role, hint=hint)
                )
            roles.append(role)
        if twice := next((role for i, role in enumerate(roles) if role in roles[:i]), None):
            raise ValueError(msg("--column: two columns have the role '{role}'. Choose one.", role=twice))
        return columns


class MethodSettings(Settings):
    """A method: the preset's key and the settings of its tuner, in one table."""

    key: str
    settings: SerializeAsAny[Settings]


def _method(value: object) -> object:
    """{"key": "lora", "rank": 8} becomes the preset with its tuner's settings; they override the preset's."""
    if isinstance(value, MethodSettings):
        return value
    key, given = _key_and_settings(value, DEFAULT_METHOD)
    preset = preset_named(key)
    implied = {k.removeprefix("method."): v for k, v in preset.defaults.items() if k.startswith("method.")}
    kind = tuners()[preset.tuner].settings
    every = {m.key: tuners()[m.tuner].settings for m in presets().values()}
    if problem := _of_others(key, every, given):
        raise SpecError(msg("method '{name}': {reason}", name=key, reason=problem))
    return MethodSettings(key=key, settings=parse(kind, {**implied, **given}, f"method '{key}'"))


class ObjectiveSettings(Settings):
    """An objective: its key and its settings, in one table."""

    key: str
    settings: SerializeAsAny[Settings]

    @property
    def objective(self) -> Objective:
        """The objective with these settings."""
        return objective_named(self.key).with_settings(self.settings)


def _objective(value: object) -> object:
    """ "sft" or {"key": "sft", ...} becomes the objective with its settings."""
    if isinstance(value, ObjectiveSettings):
        return value
    key, given = _key_and_settings(value, DEFAULT_OBJECTIVE)
    kind = objective_named(key).settings
    every = {name: objective.settings for name, objective in objectives().items()}
    if problem := _of_others(key, every, given):
        raise SpecError(msg("objective '{key}': {reason}", key=key, reason=problem))
    return ObjectiveSettings(key=key, settings=parse(kind, given, f"objective '{key}'"))


def _key_and_settings(value: object, usual: str) -> tuple[str, dict[str, Any]]:
    """The key of a method or an objective and its settings, from its name alone or from a table."""
    given: dict[str, Any] = {str(k): v for k, v in value.items()} if isinstance(value, Mapping) else {"key": value}
    key = str(given.pop("key", usual))
    if set(given) == {"settings"} and isinstance(given["settings"], Mapping):
        given = dict(given["settings"])
    return key, given


def _of_others(key: str, every: Mapping[str, type[Settings]], given: Mapping[str, Any]) -> str:
    """A sentence about a setting that only other methods (or objectives) have, with their names and this one's settings; "" if none."""
    own = every[key].model_fields
    for name in given:
        theirs = [other for other, kind in every.items() if name in kind.model_fields]
        if theirs and name not in own:
            return msg(
                "it has no setting '{name}', which belongs to {methods}. Known settings: {names}.",
                name=name,
                methods=", ".join(theirs),
                names=", ".join(own) or "none",
            )
    return ""


class TrainingSettings(Settings):
    """How it is trained."""

    epochs: float | None = setting(
        None,
        help="Passes over the data. Automatic: from 1 for large data sets to 10 for small ones.",
        group="training",
        common=True,
        gt=0,
    )
    max_steps: int | None = setting(
        None,
        help="Total number of optimizer steps; overrides --epochs. Automatic: from the epochs.",
        group="training",
        ge=1,
    )
    batch_size: int | None = setting(
        None, help="Conversations per optimizer step.", group="training", common=True, ge=1, le=65536
    )
    micro_batch_tokens: int | None = setting(
        None,
        help="Maximum number of tokens (with padding) computed at once; does not change the result.",
        group="training",
        ge=8,
    )
    learning_rate: float | None = setting(None, help="Peak learning rate.", group="training", common=True, gt=0, lt=10)
    schedule: Literal["constant", "linear", "cosine"] = setting(
        "cosine", help="How the learning rate falls after warm-up.", group="training"
    )
    warmup: float = setting(
        0.03, help="Share of the steps in which the learning rate rises from zero.", group="training", ge=0, le=1
    )
    weight_decay: float = setting(0.0, help="AdamW's decoupled weight decay.", group="training", ge=0, le=1)
    beta1: float = setting(0.9, help="AdamW's decay of the mean gradient.", group="training", ge=0, lt=1)
    beta2: float = setting(0.999, help="AdamW's decay of the squared gradient.", group="training", ge=0, lt=1)
    epsilon: float = setting(1e-8, help="AdamW's epsilon.", group="training", gt=0)
    max_gradient_norm: float = setting(
        1.0, help="Gradients are clipped to this norm; 0 turns it off.", group="training", ge=0
    )
    optimizer: OptimizerName = setting(
        "adamw",
        help="AdamW. 8-bit: states take a quarter of the memory; paged: states may leave a CUDA card when it is full.",
        group="training",
    )
    gradient_checkpointing: bool | None = setting(
        None, help="Compute activations twice to save memory.", group="training"
    )
    neftune_alpha: float = setting(
        0.0,
        help="NEFTune: strength of the noise on embeddings in training, such as 5; 0 turns it off.",
        group="training",
        ge=0,
    )
    attention: Literal["full", "shifted"] = setting(
        "full",
        help="shifted: LongLoRA's grouped attention in training, for long rows; answers use full attention.",
        group="training",
    )
    attention_group: int | None = setting(
        None,
        help="Positions per group with --attention shifted. Automatic: a quarter of the longest row.",
        group="training",
        ge=2,
    )
    seed: int = setting(
        42, help="Seed of the split, the order, the initial weights and dropout.", group="training", ge=0, lt=2**31
    )
    validate_every: int | None = setting(None, help="Steps between validations.", group="training", ge=1)
    validation_rows: int = setting(
        256, help="Maximum number of rows in a validation during training.", group="training", ge=1
    )
    checkpoint_every: int | None = setting(None, help="Steps between checkpoints.", group="training", ge=1)
    keep_checkpoints: int = setting(2, help="Checkpoints kept in addition to the best one.", group="training", ge=1)
    early_stopping: int | None = setting(
        None,
        help="Stop after this many validations without a lower loss; 0 turns it off. Automatic: 4 "
        "with --goal thorough.",
        group="training",
        ge=0,
    )
    sample_rows: int = setting(
        2, help="Validation prompts answered after each validation.", group="training", ge=0, le=20
    )
    sample_tokens: int = setting(
        64, help="Maximum length of a sampled answer in tokens.", group="training", ge=1, le=4096
    )


class RunSpec(Settings):
    """All settings that determine what a run computes."""

    name: str | None = setting(
        None, help="Name of the run. Automatic: data, method and a number.", group="run", flag="--run"
    )
    backend: str = setting("auto", help="torch, mlx, or auto.", group="run", metavar="NAME")
    device: str | None = setting(
        None, help="Device of the backend, such as cpu or cuda:0.", group="run", metavar="NAME"
    )
    goal: Goal = setting(
        "balanced",
        help="What automatic values aim for: a quick first look, the usual, or twice the time, "
        "keeping the best checkpoint.",
        group="run",
    )
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    method: Annotated[MethodSettings, BeforeValidator(_method)] = _method(DEFAULT_METHOD)  # type: ignore[assignment]
    objective: Annotated[ObjectiveSettings, BeforeValidator(_objective)] = _objective(DEFAULT_OBJECTIVE)  # type: ignore[assignment]
    training: TrainingSettings = TrainingSettings()


def plan_method(chosen: MethodSettings, base: BaseInfo) -> AdapterPlan:
    """The adapter plan of a method for a base. Raises SpecError if no module matches or a size is too large."""
    return tuners()[preset_named(chosen.key).tuner].plan(chosen.key, chosen.settings, base)


def parse_spec(values: Mapping[str, Any], where: str) -> RunSpec:
    """A RunSpec from plain tables, with the method's preset applied as defaults. Raises SpecError."""
    _check_texts(values, where)
    given = {k: (dict(v) if isinstance(v, Mapping) else v) for k, v in values.items()}
    for table in ("model", "data", "training"):
        if not isinstance(given.get(table, {}), dict):
            raise SpecError(
                msg(
                    "{where}: '{table}' is {value}, but should be a table: [{table}].",
                    where=where,
                    table=table,
                    value=repr(given[table]),
                )
            )
    chosen = given.get("method", {})
    key = chosen.get("key", DEFAULT_METHOD) if isinstance(chosen, Mapping) else chosen
    for path, value in preset_named(str(key)).defaults.items():
        table, name = path.split(".")
        if table != "method":
            given.setdefault(table, {}).setdefault(name, value)
    spec = parse(RunSpec, given, where)
    if spec.model.quantisation != "auto" and spec.model.precision != "4-bit":
        raise SpecError(
            msg(
                "{where}: --quantisation {kind} applies to 4-bit bases, but this base is not loaded in 4 bits. Add "
                "--precision 4-bit (or --method qlora), or remove it.",
                where=where,
                kind=spec.model.quantisation,
            )
        )
    return spec


def _check_texts(value: Any, where: str) -> None:
    """Raise SpecError if any text, at any depth, cannot be part of a path or a command: it contains NUL or a lone surrogate."""
    if isinstance(value, str):
        if "\0" in value or not is_text(value):
            raise SpecError(
                msg(
                    "{where}: {text} has a character that is not allowed in names or paths.",
                    where=where,
                    text=ascii(value)[:80],
                )
            )
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _check_texts(key, where)
            _check_texts(inner, where)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check_texts(inner, where)


def preset_of(spec: RunSpec, path: str) -> bool:
    """Whether the value at a dotted path comes from the method's preset, not from the user."""
    presets = preset_named(spec.method.key).defaults
    table, name = path.split(".")
    return path in presets and getattr(getattr(spec, table), name) == presets[path]


def as_tables(spec: RunSpec) -> dict[str, Any]:
    """The spec as plain tables; parse_spec() of it gives the same spec."""
    values = spec.model_dump(mode="json")
    values["method"] = {"key": spec.method.key, **values["method"]["settings"]}
    if own := values["objective"]["settings"]:
        values["objective"] = {"key": spec.objective.key, **own}
    else:
        values["objective"] = spec.objective.key
    return values
