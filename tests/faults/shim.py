"""Every call of a run to the file system goes through here, and one of them does not come back.

`Shim(folder, at, how)` counts the calls that change something below `folder` and, at number `at`, does one of three things:
"kill" ends the process as kill -9 does, after half of what a write was to write; a number raises that error of the system;
"power" also takes away all that was never synced, as a power cut may: names that no fsync of their folder confirmed, content that
no fsync of its file did. "power-data" takes away the content only: then the names, which most disks write first, are all there.
"""

# The calls of the system themselves are what this is about.
# ruff: noqa: PTH100, PTH115, PTH118, PTH208
from __future__ import annotations

import builtins
import io
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

KILLED = 137
_PATHS_FIRST = ("mkdir", "rmdir", "unlink", "remove", "truncate", "utime", "chmod")
_TWO_PATHS = ("rename", "replace", "link", "symlink")


class Disk:
    """What of a folder would be there after a power cut."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[int, dict[str, int]] = {}
        self.contents: dict[int, bytes] = {}
        self.kept: dict[int, int] = {}
        """Descriptors that keep the number of a synced file from being given to another one."""
        for place, _, files in os.walk(folder):
            self.sync(os.open(place, os.O_RDONLY))
            for name in files:
                self.sync(os.open(os.path.join(place, name), os.O_RDONLY))

    def sync(self, descriptor: int) -> None:
        """What a descriptor stands for is on the disk."""
        known = os.fstat(descriptor)
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        self.kept.setdefault(known.st_ino, os.dup(descriptor))
        if stat.S_ISDIR(known.st_mode):
            self.names[known.st_ino] = {name: os.lstat(os.path.join(path, name)).st_ino for name in os.listdir(path)}
        else:
            self.contents[known.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def cut(self, *, names_stay: bool) -> None:
        """Leave the folder as it is found after the power comes back."""
        there = {os.lstat(path).st_ino: path for path in [self.folder, *self.folder.rglob("*")]}
        if names_stay:
            for number, path in there.items():
                if path.is_file():
                    path.write_bytes(self.contents.get(number, b""))
            return
        kinds = {number: path.is_dir() for number, path in there.items()}
        kinds.update({number: stat.S_ISDIR(os.fstat(descriptor).st_mode) for number, descriptor in self.kept.items()})
        root = os.lstat(self.folder).st_ino
        made = self.folder.with_name(self.folder.name + ".after")
        self._make(root, made, kinds)
        shutil.rmtree(self.folder)
        made.rename(self.folder)

    def _make(self, number: int, place: Path, kinds: dict[int, bool]) -> None:
        if not kinds.get(number):
            place.write_bytes(self.contents.get(number, b""))
            return
        place.mkdir()
        for name, inner in self.names.get(number, {}).items():
            self._make(inner, place / name, kinds)


class Shim:
    """See the module. `at` 0 only counts; `calls` are what was counted."""

    def __init__(self, folder: Path, at: int = 0, how: str = "kill") -> None:
        self.folder, self.at, self.how = folder, at, how
        self.calls: list[str] = []
        self.lasting = False
        """Whether the error is raised from that call on, as a disk does that has become read-only."""
        self.disk = Disk(folder) if how.startswith("power") else None
        self._real: dict[str, Callable[..., Any]] = {}

    def install(self) -> None:
        """Stand between the app and the system."""
        for name in (*_PATHS_FIRST, *_TWO_PATHS, "fsync"):
            self._real[name] = getattr(os, name)
        for name in (*_PATHS_FIRST, *_TWO_PATHS):
            setattr(os, name, self._watched(name))
        os.fsync = self._fsync  # type: ignore[assignment]
        self._real["open"] = io.open
        io.open = builtins.open = self._open  # type: ignore[assignment]
        from safetensors import numpy as tensors

        from finetune_local.system import files

        self._real["save_file"] = tensors.save_file
        tensors.save_file = self._save_file
        self._real["exchange"] = files.exchange
        files.exchange = self._exchange

    def count(self, what: str, path: object, torn: Callable[[], None] | None = None) -> None:
        """One call to the file system."""
        if not isinstance(path, (str, bytes, os.PathLike)) or not self._ours(os.fsdecode(path)):
            return
        self.calls.append(f"{what} {os.path.relpath(os.fsdecode(path), self.folder)}")
        number = len(self.calls)
        if number != self.at and not (self.lasting and self.at and number > self.at):
            return
        if self.how.isdecimal():
            raise OSError(int(self.how), os.strerror(int(self.how)), os.fsdecode(path))
        if torn is not None:
            torn()
        if self.disk is not None:
            io.open = builtins.open = self._real["open"]  # type: ignore[assignment]
            for name in (*_PATHS_FIRST, *_TWO_PATHS):
                setattr(os, name, self._real[name])
            self.disk.cut(names_stay=self.how == "power-data")
        os._exit(KILLED)

    def _ours(self, path: str) -> bool:
        return os.path.abspath(path).startswith(str(self.folder))

    def _watched(self, name: str) -> Callable[..., Any]:
        real = self._real[name]

        def call(path: Any, *rest: Any, **named: Any) -> Any:
            folder = named.get("dir_fd") or named.get("src_dir_fd")
            whole = path if folder is None else os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
            self.count(name, rest[0] if name in _TWO_PATHS else whole)
            return real(path, *rest, **named)

        return call

    def _fsync(self, descriptor: int) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        self.count("fsync", os.readlink(f"/proc/self/fd/{number}"))
        self._real["fsync"](number)
        if self.disk is not None and self._ours(os.readlink(f"/proc/self/fd/{number}")):
            self.disk.sync(number)

    def _open(self, file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+") or not self._ours(os.fsdecode(file)):
            return self._real["open"](file, mode, *rest, **named)
        self.count("open", file)
        raw = _Raw(self, os.fsdecode(file), mode.replace("b", "").replace("t", ""))
        if "b" in mode:
            if "+" in mode:
                return io.BufferedRandom(raw)
            size = rest[0] if rest else named.get("buffering", -1)
            return raw if size == 0 else io.BufferedWriter(raw, size if size > 0 else io.DEFAULT_BUFFER_SIZE)
        words = dict(zip(("buffering", "encoding", "errors", "newline"), rest, strict=False)) | named
        words.pop("buffering", None)
        return io.TextIOWrapper(io.BufferedWriter(raw), **words)

    def _save_file(self, tensors: Any, path: Any, *rest: Any, **named: Any) -> None:
        from safetensors.numpy import save

        content = save(tensors, *rest, **named)
        with self._open(path, "wb", 0) as file:
            file.write(content)

    def _exchange(self, one: Path, other: Path) -> bool:
        self.count("exchange", other)
        return bool(self._real["exchange"](one, other))


class _Raw(io.FileIO):
    """A file whose writes are counted, and which may be cut off within one."""

    def __init__(self, shim: Shim, path: str, mode: str) -> None:
        super().__init__(path, mode)
        self._shim = shim

    def write(self, data: Any) -> int:
        self._shim.count("write", self.name, lambda: self._torn(bytes(data)))
        return super().write(data) or 0

    def _torn(self, data: bytes) -> None:
        super().write(data[: len(data) // 2])
