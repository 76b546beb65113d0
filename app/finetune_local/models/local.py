"""Models already on this machine: the home folder, the user's model folders, the Hugging Face cache, LM Studio, Ollama.

Nothing is copied or changed.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from finetune_local.models.catalog import entry
from finetune_local.models.folder import CONFIG, TOKENIZER, ModelFolder
from finetune_local.models.install import installed, source_of
from finetune_local.system import preferences
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import NOTHING, Message, message_of, msg
from finetune_local.system.paths import Home, located
from finetune_local.system.untrusted.text import read_bounded, read_json_object

_GENERAL = b"general.architecture"
_STRING = 8
_LARGEST_MANIFEST = 4 * 2**20


@dataclass(frozen=True)
class LocalModel:
    """A base model on disk. `use` is the argument of --model; `place` is "home", another program's name, or one of the user's folders;
    `problem` says why it cannot be used; `license` is the license's short name, if known.
    """

    use: str
    path: Path
    place: str
    kind: str
    family: str
    parameters: int
    bytes: int
    source: str = ""
    problem: Message = NOTHING
    license: str = ""


def installed_models(home: Home) -> list[LocalModel]:
    """The models in home.models, damaged ones included."""
    found = []
    for name in installed(home.models):
        path = home.models / name
        source = source_of(path).get("from", "")
        try:
            found.append(_folder(ModelFolder.open(path, name), name, "home", source))
        except ModelError as error:
            found.append(LocalModel(name, path, "home", "folder", "", 0, _size(path), source, message_of(error)))
    return found


def elsewhere() -> list[LocalModel]:
    """Usable models in the user's model folders and in other programs' caches; folders first, then GGUF files. Damaged ones are listed
    for the user's own folders only.
    """
    named = model_folders()
    folders: list[LocalModel | None] = [*(f for place in named for f in _named_folders(place)), *_hub_folders()]
    folders += [_opened(f, "LM Studio") for p in _lm_studio() for f in _config_folders(p)]
    files: list[LocalModel | None] = [f for place in named for f in _named_files(place)]
    files += [*(_gguf(f, "LM Studio") for p in _lm_studio() for f in sorted(p.glob("*/*/*.gguf"))), *_ollama()]
    unique: dict[Path, LocalModel] = {}
    for found in (*folders, *files):
        if found is not None:
            unique.setdefault(found.path, found)
    return list(unique.values())


def model_folders() -> list[Path]:
    """The user's model folders, including ones that are not available now, such as an unplugged drive."""
    return [located(place) for place in preferences.load().model_folders]


def add_folder(place: Path) -> list[LocalModel]:
    """Register a model folder; returns the models in it. Raises ModelError if it holds none, SpecError, DiskFull."""
    place = located(place).absolute()
    if not place.is_dir():
        raise ModelError(msg("{place}: folder not found. Check the path, or connect the drive.", place=place))
    found = [*_named_folders(place), *_named_files(place)]
    if not any(not f.problem for f in found):
        if found:
            raise ModelError(found[0].problem)
        raise ModelError(
            msg(
                "{place}: neither the folder nor its subfolders contain a model. A model is a folder with {config}, "
                "weights as safetensors and {tokenizer}, or a GGUF file.",
                place=place,
                config=CONFIG,
                tokenizer=TOKENIZER,
            )
        )
    kept = [str(f) for f in model_folders()]
    if str(place) not in kept:
        preferences.save(model_folders=(*kept, str(place)))
    return found


def forget_folder(place: Path) -> None:
    """Unregister a model folder without touching its content. Raises ModelError if it is not registered."""
    place = located(place).absolute()
    kept = model_folders()
    if place not in kept:
        raise ModelError(
            msg(
                "{path} is not one of the folders that are searched: {names}.",
                path=place,
                names=", ".join(map(str, kept)) or "none",
            )
        )
    preferences.save(model_folders=tuple(str(f) for f in kept if f != place))


def hub_cache() -> Path:
    """The Hugging Face cache, from the environment variables that its own library reads."""
    if place := os.environ.get("HF_HUB_CACHE"):
        return located(place)
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return located(home) / "hub"


def hub_snapshot(repository: str) -> Path | None:
    """The snapshot of ORG/NAME in the Hugging Face cache: the one `main` points at, else the newest, else None."""
    folder = hub_cache() / f"models--{repository.replace('/', '--')}"
    main = folder / "refs" / "main"
    try:
        named = read_bounded(main, 200).decode("ascii").strip() if main.is_file() else ""
        if re.fullmatch(r"[\w.-]+", named) and (chosen := folder / "snapshots" / named).is_dir():
            return chosen
        found = [f for f in (folder / "snapshots").glob("*") if f.is_dir()]
        return max(found, key=lambda f: f.stat().st_mtime, default=None)
    except (OSError, ValueError):  # nothing that can be used is as good as nothing
        return None


def is_gguf(path: Path) -> bool:
    """Whether a file starts like a GGUF; Ollama's files have no suffix."""
    try:
        if not path.is_file():  # a pipe would wait for a writer
            return False
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def architecture(path: Path) -> str:
    """A GGUF's architecture, from its first bytes, where every writer puts it; "" otherwise."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
        key, place = _string(start, 24)
        (kind,) = struct.unpack_from("<I", start, place)
        return _string(start, place + 4)[0].decode("utf-8") if key == _GENERAL and kind == _STRING else ""
    except (OSError, struct.error, UnicodeDecodeError):
        return ""


def _string(data: bytes, place: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from("<Q", data, place)
    end = place + 8 + min(int(length), len(data))
    return data[place + 8 : end], end


def _hub_folders() -> Iterator[LocalModel | None]:
    for folder in sorted(hub_cache().glob("models--*")):
        repository = folder.name.removeprefix("models--").replace("--", "/", 1)
        if "/" in repository and (snapshot := hub_snapshot(repository)) is not None:
            found = _opened(snapshot, msg("Hugging Face cache"))
            yield found and replace(found, use=repository, license=found.license or _license(repository))


def _lm_studio() -> list[Path]:
    places = [Path.home() / ".lmstudio" / "models", Path.home() / ".cache" / "lm-studio" / "models"]
    return [place for place in places if place.is_dir()]


def _config_folders(place: Path) -> list[Path]:
    return sorted(file.parent for file in place.glob("*/*/config.json"))


def _ollama() -> Iterator[LocalModel | None]:
    """Ollama's models: a manifest per model names its GGUF by hash."""
    models = Path(os.environ.get("OLLAMA_MODELS") or Path.home() / ".ollama" / "models")
    for manifest in sorted((models / "manifests").glob("*/*/*/*")):
        try:
            layers = read_json_object(manifest, _LARGEST_MANIFEST)["layers"]
            digest = next(x["digest"] for x in layers if x["mediaType"] == "application/vnd.ollama.image.model")
        except (OSError, ValueError, KeyError, TypeError, StopIteration):
            continue  # not a manifest of a language model
        if not isinstance(digest, str) or not re.fullmatch(r"[a-z0-9]+[:-][0-9a-f]{1,128}", digest):
            continue  # and no path that leads elsewhere
        blob = models / "blobs" / digest.replace(":", "-")
        if is_gguf(blob):
            yield _gguf(blob, f"Ollama ({manifest.parent.name}:{manifest.name})")


def _named_folders(place: Path) -> Iterator[LocalModel]:
    """Models in a folder of the user: the folder itself, its subfolders, and theirs (ORG/NAME)."""
    for pattern in (CONFIG, f"*/{CONFIG}", f"*/*/{CONFIG}"):
        for path in (file.parent for file in _glob(place, pattern)):
            try:
                found = _folder(ModelFolder.open(path), str(path), str(place), source_of(path).get("from", ""))
            except ModelError as error:
                found = LocalModel(str(path), path, str(place), "folder", "", 0, _size(path), problem=message_of(error))
            yield found


def _named_files(place: Path) -> Iterator[LocalModel]:
    for pattern in ("*.gguf", "*/*.gguf", "*/*/*.gguf"):
        for file in _glob(place, pattern):
            if (found := _gguf(file, str(place))) is not None:
                yield found


def _glob(place: Path, pattern: str) -> list[Path]:
    """Sorted matches; none for an unreadable folder or a missing drive."""
    try:
        return sorted(
            f for f in place.glob(pattern) if not any(part.startswith(".") for part in f.relative_to(place).parts)
        )
    except OSError:
        return []


def _size(path: Path) -> int:
    """Bytes of the files directly in a folder."""
    try:
        return sum(f.stat().st_size for f in path.iterdir() if f.is_file())
    except OSError:
        return 0


def _opened(path: Path, place: str) -> LocalModel | None:
    try:
        return _folder(ModelFolder.open(path), str(path), place, "")
    except ModelError:  # half downloaded, quantised, or not a language model: not offered
        return None


def _folder(model: ModelFolder, use: str, place: str, source: str) -> LocalModel:
    license_name = source_of(model.path).get("license", "") or _license(source or use)
    size = model.bytes_on_disk
    return LocalModel(
        use, model.path, place, "folder", model.family, model.parameters, size, source, license=license_name
    )


def _license(name: str) -> str:
    """The license, from the catalogue."""
    known = entry(name)
    return known.license if known is not None else ""


def _gguf(path: Path, place: str) -> LocalModel | None:
    from finetune_local.models.gguf.convert import ARCHITECTURES

    if not is_gguf(path) or (family := architecture(path)) not in ARCHITECTURES:
        return None
    return LocalModel(str(path), path, place, "GGUF", family, 0, path.stat().st_size)
