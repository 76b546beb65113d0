"""What is already on this machine: our home, the Hugging Face cache, LM Studio, Ollama. Nothing is copied or changed."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune_local.errors import ModelError
from finetune_local.models.folder import ModelFolder
from finetune_local.models.install import installed, source_of
from finetune_local.paths import Home

_GENERAL = b"general.architecture"
_STRING = 8


@dataclass(frozen=True)
class Found:
    """A base model on disk. `use` is what to write after --model; `problem` says why it cannot be used."""

    use: str
    path: Path
    place: str
    kind: str
    family: str
    parameters: int
    bytes: int
    source: str = ""
    problem: str = ""


def installed_models(home: Home) -> list[Found]:
    """The models in home.models, damaged ones too."""
    found = []
    for name in installed(home.models):
        path = home.models / name
        source = str(source_of(path).get("from", ""))
        try:
            found.append(_folder(ModelFolder.open(path, name), name, "home", source))
        except ModelError as error:
            size = sum(f.stat().st_size for f in path.iterdir() if f.is_file())
            found.append(Found(name, path, "home", "folder", "", 0, size, source, str(error)))
    return found


def elsewhere() -> list[Found]:
    """Models that other programs downloaded and that can be used where they lie; folders first, then GGUF files."""
    folders = [*_hub_folders(), *(_opened(f, "LM Studio") for p in _lm_studio() for f in _config_folders(p))]
    files = [*(_gguf(f, "LM Studio") for p in _lm_studio() for f in sorted(p.glob("*/*/*.gguf"))), *_ollama()]
    return [found for found in (*folders, *files) if found is not None]


def hub_cache() -> Path:
    """The Hugging Face cache, by the variables its own library reads."""
    if place := os.environ.get("HF_HUB_CACHE"):
        return Path(place).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def hub_snapshot(repository: str) -> Path | None:
    """The snapshot of ORG/NAME in the Hugging Face cache that `main` points at, else the newest, else None."""
    folder = hub_cache() / f"models--{repository.replace('/', '--')}"
    main = folder / "refs" / "main"
    if main.is_file() and (chosen := folder / "snapshots" / main.read_text("utf-8").strip()).is_dir():
        return chosen
    found = [f for f in (folder / "snapshots").glob("*") if f.is_dir()]
    return max(found, key=lambda f: f.stat().st_mtime, default=None)


def is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF does; Ollama's have no suffix."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def architecture(path: Path) -> str:
    """A GGUF's architecture from its first bytes, where every writer puts it; "" where it stands elsewhere."""
    with path.open("rb") as file:
        start = file.read(512)
    try:
        key, place = _string(start, 24)
        (kind,) = struct.unpack_from("<I", start, place)
        return _string(start, place + 4)[0].decode("utf-8") if key == _GENERAL and kind == _STRING else ""
    except (struct.error, UnicodeDecodeError):
        return ""


def _string(data: bytes, place: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from("<Q", data, place)
    end = place + 8 + min(int(length), len(data))
    return data[place + 8 : end], end


def _hub_folders() -> Iterator[Found | None]:
    for folder in sorted(hub_cache().glob("models--*")):
        repository = folder.name.removeprefix("models--").replace("--", "/", 1)
        if "/" in repository and (snapshot := hub_snapshot(repository)) is not None:
            found = _opened(snapshot, "Hugging Face cache")
            yield found and Found(**{**vars(found), "use": repository})


def _lm_studio() -> list[Path]:
    places = [Path.home() / ".lmstudio" / "models", Path.home() / ".cache" / "lm-studio" / "models"]
    return [place for place in places if place.is_dir()]


def _config_folders(place: Path) -> list[Path]:
    return sorted(file.parent for file in place.glob("*/*/config.json"))


def _ollama() -> Iterator[Found | None]:
    """Ollama keeps a manifest per model that names its GGUF by hash."""
    models = Path(os.environ.get("OLLAMA_MODELS") or Path.home() / ".ollama" / "models")
    for manifest in sorted((models / "manifests").glob("*/*/*/*")):
        try:
            layers = json.loads(manifest.read_text("utf-8"))["layers"]
            digest = next(x["digest"] for x in layers if x["mediaType"] == "application/vnd.ollama.image.model")
        except (OSError, ValueError, KeyError, TypeError, StopIteration):
            continue  # not a manifest of a language model
        blob = models / "blobs" / str(digest).replace(":", "-")
        if is_gguf(blob):
            yield _gguf(blob, f"Ollama ({manifest.parent.name}:{manifest.name})")


def _opened(path: Path, place: str) -> Found | None:
    try:
        return _folder(ModelFolder.open(path), str(path), place, "")
    except ModelError:  # half downloaded, quantised, or not a language model: not offered
        return None


def _folder(model: ModelFolder, use: str, place: str, source: str) -> Found:
    return Found(use, model.path, place, "folder", model.family, model.parameters, model.bytes_on_disk, source)


def _gguf(path: Path, place: str) -> Found | None:
    from finetune_local.models.gguf_import import ARCHITECTURES

    if not is_gguf(path) or (family := architecture(path)) not in ARCHITECTURES:
        return None
    return Found(str(path), path, place, "GGUF", family, 0, path.stat().st_size)
