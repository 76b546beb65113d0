"""The base an adapter belongs to: `finetune_local.json`, beside PEFT's two files. PEFT ignores the file."""

from __future__ import annotations

import datetime
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from finetune_local import __version__
from finetune_local.models.folder import Identity, ModelFolder
from finetune_local.spec.base.tokenizer_files import TEMPLATE, TOKENIZER
from finetune_local.spec.plan import AdapterPlan, WeightInfo
from finetune_local.spec.targets import outside_modules
from finetune_local.spec.tuners import PREFIX, tuner_of
from finetune_local.system import checksums
from finetune_local.system.errors import AdapterError
from finetune_local.system.files import disk_full
from finetune_local.system.messages import Message, join_messages, msg
from finetune_local.system.untrusted.text import ForeignTextError, read_json_object

FILE = "finetune_local.json"
VOCABULARY = "vocabulary_sha256"
"""Extra key of the file: digest of the base's tokenizer without its chat template. Earlier versions did not write it."""
_OWN = ("base", "run", "method", "created", "app_version")
_MOST_BYTES = 2**20


class _Base(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)

    name: str
    config_sha256: str
    tokenizer_sha256: str
    rope_factor: float = Field(1.0, gt=0, le=1e6)


class _IdentityFile(BaseModel):
    """The fields of the file that are read; later versions may add more."""

    model_config = ConfigDict(allow_inf_nan=False)

    base: _Base
    run: str | None = None
    method: str = ""
    created: str = ""
    app_version: str = ""
    parameters: Annotated[int, Field(ge=0, le=10**15)] | None = None
    step: Annotated[int, Field(ge=0, le=10**12)] | None = None
    extracted_from: dict[str, Any] | None = None
    vocabulary_sha256: str | None = None


@dataclass(frozen=True)
class AdapterIdentity:
    """The content of `finetune_local.json`. `created` is UTC in ISO 8601; `extra` has all other keys."""

    base: Identity
    run: str | None
    method: str
    created: str
    app_version: str
    extra: Mapping[str, Any] = field(default_factory=dict)


def write_identity(folder: Path, identity: Identity, run: str | None, extra: Mapping[str, Any]) -> None:
    """Write the file for an adapter trained on the base `identity`; `extra` has at least "method". Raises DiskFull."""
    values: dict[str, Any] = {
        "base": {
            "name": identity.name,
            "config_sha256": identity.config_sha256,
            "tokenizer_sha256": identity.tokenizer_sha256,
            **({"rope_factor": identity.rope_factor} if identity.rope_factor != 1 else {}),
        },
        "run": run,
        "method": "",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "app_version": __version__,
    }
    text = json.dumps({**values, **extra}, indent=2, ensure_ascii=False) + "\n"
    with disk_full(folder / FILE, msg("Everything saved earlier is intact. Free some space on it and try again.")):
        (folder / FILE).write_text(text, "utf-8")


def read_identity(folder: Path) -> AdapterIdentity | None:
    """The identity of an adapter folder; None for a plain PEFT adapter. Raises AdapterError if the file is damaged."""
    path = folder / FILE
    again = msg("Copy the adapter again, or delete this file to use it as a plain PEFT adapter.")
    try:
        values = read_json_object(path, _MOST_BYTES)
        stored = _IdentityFile.model_validate({key: value for key, value in values.items() if value is not None})
    except FileNotFoundError:
        return None
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise AdapterError(
            msg(
                "{path}: cannot be read ('{name}' is missing or invalid).",
                path=path,
                name=where,
            )
            + " "
            + again
        ) from None
    except (OSError, ForeignTextError) as error:
        raise AdapterError(msg("{path}: cannot be read ({error}).", path=path, error=error) + " " + again) from None
    return AdapterIdentity(
        base=Identity(
            stored.base.name, stored.base.config_sha256, stored.base.tokenizer_sha256, stored.base.rope_factor
        ),
        run=stored.run,
        method=stored.method,
        created=stored.created,
        app_version=stored.app_version,
        extra={key: value for key, value in values.items() if key not in _OWN},
    )


def rewrite(folder: Path, **changed: Any) -> None:
    """Change keys of the file if there is a readable one. Raises DiskFull."""
    try:
        values = read_json_object(folder / FILE, _MOST_BYTES)
    except (OSError, ValueError):
        return
    checksums.rewrite(folder, FILE, json.dumps({**values, **changed}, indent=2, ensure_ascii=False) + "\n")


def check_same_base(identity: AdapterIdentity, model: ModelFolder, brought: Collection[str] = ()) -> None:
    """Raise AdapterError, naming the difference, if the adapter was trained on another base than `model`.

    Names are not compared: the same model may be installed under different names. `brought` are the files beside the adapter's
    weights: an adapter that carries its own tokenizer or template is prompted with those, whatever the base has now.
    """
    own, made_on = model.identity(), identity.base
    if own.rope_factor != made_on.rope_factor:
        raise AdapterError(
            msg(
                "this adapter was trained with positions stretched by {factor}, but '{model}' is loaded with "
                "{other}. A loaded model has a single context length: start with this adapter alone.",
                factor=f"{made_on.rope_factor:g}",
                model=model.name,
                other=f"{own.rope_factor:g}",
            )
        )
    different = []
    if own.config_sha256 != made_on.config_sha256:
        different.append(msg("its config (another architecture, size or position encoding)"))
    if own.tokenizer_sha256 != made_on.tokenizer_sha256 and prompt_change(identity, model, brought) is None:
        different.append(msg("its tokenizer or chat template"))
    if different:
        raise AdapterError(
            msg(
                "this adapter was trained on '{base}', and '{model}' differs from it in {what}. Name the base it was "
                "trained on with --model.",
                base=made_on.name,
                model=model.name,
                what=join_messages(" and ", different),
            )
        )


def prompt_change(identity: AdapterIdentity, model: ModelFolder, brought: Collection[str]) -> Message | None:
    """A sentence if the base's tokenizer or template has changed since training and the adapter carries the old one."""
    if model.identity().tokenizer_sha256 == identity.base.tokenizer_sha256:
        return None
    only_template = identity.extra.get(VOCABULARY) == model.vocabulary_sha256
    if TOKENIZER in brought or (only_template and TEMPLATE in brought):
        what = msg("chat template") if only_template else msg("tokenizer or chat template")
        return msg(
            "the {what} of '{model}' has changed since this adapter was trained: the adapter is used with the "
            "one from its training.",
            what=what,
            model=model.name,
        )
    return None


def check_shapes(plan: AdapterPlan, model: ModelFolder) -> None:
    """Raise AdapterError if a target of the plan is missing from the base or has a different shape there."""
    weights = model.weights()
    for target in plan.targets:
        if not target.module:
            continue  # PEFT's file of a prompt does not name the embedding: the backend finds it and checks the width
        module = target.module.removeprefix(PREFIX)
        found = weights.get(module + ".weight") or weights.get(module)
        if found is None and (head := module.removesuffix(".weight")) in (outside := outside_modules(weights)):
            # a tied head
            found = WeightInfo((outside[head].out_features, outside[head].in_features), "")
        if found is None and any(name.startswith(module + ".") for name in weights):
            continue  # a sublayer: the backend checks its width
        if found is None:
            _refuse_other_names(module, model)
            raise AdapterError(
                msg(
                    "the adapter targets {module}, which '{model}' does not have. It was trained on another base.",
                    module=module,
                    model=model.name,
                )
            )
        shape = (target.out_features, target.in_features) if target.in_features else (target.out_features,)
        if not tuner_of(plan).fits(target, found.shape):
            raise AdapterError(
                msg(
                    "the adapter expects {module} to be {shape}, but in '{model}' it is {other}. It was trained on "
                    "another base.",
                    module=module,
                    shape=times(shape),
                    model=model.name,
                    other=times(found.shape),
                )
            )


def _refuse_other_names(module: str, model: ModelFolder) -> None:
    """Raise AdapterError if the base has the layer under a different prefix: the adapter was trained inside a model that wraps this one,
    or on the text part of this one."""
    begin, layers, rest = module.partition("layers.")
    other = next((name for name in model.weights() if layers and name.endswith(f"layers.{rest}.weight")), None)
    if other is not None:
        raise AdapterError(
            msg(
                "the adapter's layers are named '{one}layers...', but those of '{base}' '{other}layers...': it was "
                "trained in another class of model, such as one that also reads images. Name the folder it was "
                "trained on with --model.",
                one=begin,
                base=model.name,
                other=other.partition("layers.")[0],
            )
        )


def times(shape: tuple[int, ...]) -> str:
    """A shape in the usual notation: 64 × 128."""
    return " × ".join(str(n) for n in shape)
