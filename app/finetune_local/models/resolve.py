"""From the value of --model to a folder: a path, an installed name, the default model, or a snapshot in the hub's cache."""

from __future__ import annotations

import os
import re
from pathlib import Path

from finetune_local.models.catalog import catalog
from finetune_local.models.folder import CONFIG, ModelFolder, sha256_of
from finetune_local.models.install import installed, source_of
from finetune_local.models.local import hub_snapshot, is_gguf
from finetune_local.spec.run import DEFAULT_MODEL, ModelSettings
from finetune_local.system.errors import ModelError, ModelNotFound, SpecError
from finetune_local.system.fields import did_you_mean
from finetune_local.system.messages import Message, Progress, msg
from finetune_local.system.paths import Home, located


def resolve(id: str, home: Home, progress: Progress) -> ModelFolder:  # noqa: A002 - the spec's word
    """The model `id` names, ready to be loaded. Raises ModelError, DownloadFailed, DiskFull.

    Only the default model, if it is not installed, and the copy of a GGUF file are ever created here.
    """
    model = _resolved(id, home, progress)
    model.check_tokens()
    return model


def _resolved(id: str, home: Home, progress: Progress) -> ModelFolder:  # noqa: A002 - the spec's word
    path = located(id)
    if path.is_file():
        return import_file(path, home, progress)
    if id == DEFAULT_MODEL and DEFAULT_MODEL not in installed(home.models):
        from finetune_local.models.starter import ensure_starter

        return ensure_starter(home.models, progress)
    return find(id, home)


def resolve_for(settings: ModelSettings, home: Home, progress: Progress) -> ModelFolder:
    """The model a spec names, with the context it asks for. Raises ModelError, SpecError."""
    model = resolve(settings.id, home, progress)
    if settings.context is None:
        return model.stretched(settings.rope_factor)
    if settings.rope_factor != 1:
        raise SpecError(msg("--rope-factor and --context set the same thing: use only one of them."))
    if settings.context < model.context_length:
        raise SpecError(
            msg(
                "--context {context}: {name} already reads {tokens} tokens. Remove --context, and use --max-length "
                "to shorten rows.",
                context=settings.context,
                name=model.name,
                tokens=model.context_length,
            )
        )
    return model.stretched(settings.context / model.context_length)


def find(id: str, home: Home) -> ModelFolder:  # noqa: A002 - the spec's word
    """The local model `id` names; nothing is downloaded or created. Raises ModelError, ModelNotFound.

    A bare word is first an installed model, then a folder in the current directory; anything with a separator is first a path.
    """
    path = located(id)
    if _is_path(id) and path.is_dir():
        return ModelFolder.open(path)
    known = installed(home.models)
    if id in known:
        return ModelFolder.open(home.models / id, id)
    for name in known:
        if source_of(home.models / name).get("from") == id:  # the ORG/NAME it was downloaded by
            return ModelFolder.open(home.models / name, name)
    if (path / CONFIG).is_file():
        return ModelFolder.open(path)
    if id.count("/") == 1 and (cached := hub_snapshot(id)) is not None:
        return ModelFolder.open(cached)
    raise ModelNotFound(_not_found(id, known))


def import_file(path: Path, home: Home, progress: Progress, name: str | None = None) -> ModelFolder:
    """A GGUF file as an installed model. It is converted once; the copy is found by the file's hash. Raises ModelError, DiskFull."""
    from finetune_local.models.gguf.convert import install_gguf

    if not is_gguf(path):
        raise ModelError(
            msg("--model {path}: this file is not a GGUF. Choose the folder with the model's config.json.", path=path)
        )
    digest = None
    for known in installed(home.models) if name is None else ():
        if source_of(home.models / known).get("from") == path.name:
            digest = digest or sha256_of(path)
            if source_of(home.models / known).get("sha256") == digest:
                return ModelFolder.open(home.models / known, known)
    return install_gguf(path, home.models, name or path.stem, progress)


def _is_path(text: str) -> bool:
    separators = {"/", os.sep, os.altsep} - {None}
    return text.startswith(("~", ".")) or any(s in text for s in separators if s) or Path(text).is_absolute()


_QUANTIZED = re.compile(
    r"[-_.](?:unsloth[-_]|mlx[-_])?(?:bnb[-_]|int|fp|w)?(?:[2-8][-_]?bits?|gptq|awq|exl2|hqq|nf4|fp8|fp4|int4|int8|w4a16|w8a8)"
    r"(?:[-_.](?:int[48]|[2-8]bits?|g\d+|awq|gptq))*$",
    re.IGNORECASE,
)
"""Suffixes of quantized copies' names: ...-bnb-4bit, -GPTQ-Int4, -AWQ, -4bit."""


def unquantized(name: str) -> str | None:
    """The name of the model that a quantized copy was made from, judging by its own name; None for other names."""
    return _QUANTIZED.sub("", name) if _QUANTIZED.search(name) else None


def _not_found(text: str, installed_names: list[str]) -> Message:
    offered = [entry.name for entry in catalog()]
    if Path(text).is_absolute() or text.startswith(("~", "./", "../", ".\\", "..\\")):
        return msg(
            "--model {text}: folder not found. Use a Hugging Face model folder, or a name that `finetune-local "
            "models` lists.",
            text=text,
        )
    if whole := unquantized(text):
        return msg(
            "--model {name}: by its name this is a quantised copy, and it is not installed. An adapter trained "
            "on it also fits the original model, which can be loaded in 4 bits here: use that one with --model, "
            "such as {other}",
            name=text,
            other=whole.removeprefix("mlx-community/"),
        )
    return msg(
        "--model {text}: this model is not installed.{did_you_mean} {installed} {how}",
        text=text,
        did_you_mean=did_you_mean(text, list(dict.fromkeys([*installed_names, *offered]))),
        installed=msg("Installed: {names}.", names=", ".join(installed_names))
        if installed_names
        else msg("Installed: none yet."),
        how=msg("Download it: finetune-local models get {name}", name=text)
        if "/" in text or text in offered
        else msg(
            "Download one: finetune-local models get NAME, for example {examples}; `finetune-local models` lists all.",
            examples=", ".join(offered[:3]),
        ),
    )
