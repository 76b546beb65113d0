"""The virtual environment: made once, filled from the locks, left alone while they are unchanged."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from engine import Choice, torch_requirement

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "packaging" / "locks"
STAMP = "finetune-local.json"


class SetupFailed(Exception):
    """Setting up failed; the message says what to do."""


class Environment:
    """A virtual environment in `folder`, to be made if it is missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scripts = folder / ("Scripts" if os.name == "nt" else "bin")
        self.python = self.scripts / ("python.exe" if os.name == "nt" else "python")

    def program(self, name: str) -> str:
        """The path of a program installed in it."""
        return str(self.scripts / (name + (".exe" if os.name == "nt" else "")))

    def ensure(self, choice: Choice, locks: Sequence[str]) -> None:
        """Make it hold exactly what `locks` (names in packaging/locks) pin, and the checkout itself. Raises SetupFailed."""
        found = self._installed()
        already = found.get("locks")
        if found.get("engine") == choice.engine and isinstance(already, dict):
            locks = sorted({*locks, *already})  # the test tools stay when only the engine is asked for
        wanted = _stamp(choice.engine, locks)
        if choice.warning:
            say(f"WARNING: {choice.warning}")
        if found == wanted and self._works():
            say(f"{self.folder} is up to date ({', '.join(locks)}).")
            return
        say(f"engine: {choice.engine} ({choice.why}).")
        other = any(found.get(key, wanted[key]) != wanted[key] for key in ("engine", "python"))
        if other or not self._works():
            self._create()
        stamp = self.folder / STAMP
        stamp.unlink(missing_ok=True)  # half-installed is not installed
        self._install(choice, locks)
        stamp.write_text(json.dumps(wanted, indent=2) + "\n", "utf-8")

    def run(self, command: Sequence[str], **variables: str) -> int:
        """Run a command in the checkout with the environment's programs first on PATH; its exit code."""
        path = os.pathsep.join([str(self.scripts), os.environ.get("PATH", "")])
        settings = {**os.environ, "VIRTUAL_ENV": str(self.folder), "PATH": path, "PYTHONUTF8": "1", **variables}
        settings.pop("PYTHONHOME", None)
        return subprocess.run(command, cwd=ROOT, env=settings, check=False).returncode

    def _installed(self) -> dict[str, object]:
        try:
            return dict(json.loads((self.folder / STAMP).read_text("utf-8")))
        except (OSError, ValueError):
            return {}

    def _works(self) -> bool:
        if not self.python.exists():
            return False
        command = [str(self.python), "-m", "pip", "--version"]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            return False

    def _create(self) -> None:
        if self.folder.exists():
            if any(self.folder.iterdir()) and not (self.folder / "pyvenv.cfg").exists():
                raise SetupFailed(f"{self.folder} is not a virtual environment. Give another folder: --venv DIR.")
            say(f"making {self.folder} anew.")
            shutil.rmtree(self.folder)
        else:
            say(f"making {self.folder}.")
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        lacking = [m for m in ("venv", "ensurepip") if importlib.util.find_spec(m) is None]
        made = lacking or subprocess.run([sys.executable, "-m", "venv", str(self.folder)], check=False).returncode
        if made:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise SetupFailed(
                f"this Python ({sys.executable}) cannot make virtual environments"
                + (f": its {' and '.join(lacking)} is missing" if lacking else "")
                + f". On Debian and Ubuntu: sudo apt install python{version}-venv. Elsewhere install Python from"
                " https://www.python.org/downloads/. Then run this again."
            )

    def _install(self, choice: Choice, locks: Sequence[str]) -> None:
        files = [LOCKS / f"{name}.txt" for name in locks]
        if version := next(filter(None, (_pinned(file, "torch") for file in files)), None):
            # torch comes first, in the build of this engine; the rest then finds it there and brings no other.
            arguments, remark = torch_requirement(choice.engine, version)
            if remark:
                say(remark)
            say(f"installing {arguments[0]} (the biggest download).")
            # Where it is not known which build will come, its own requirements must: the CUDA build cannot start without.
            self._pip(*arguments, *(("-c", str(LOCKS / "cuda.txt")) if remark else ("--no-deps",)))
        say(f"installing what {', '.join(file.name for file in files)} pin.")
        self._pip("--quiet", "--no-deps", *(part for file in files for part in ("-r", str(file))))
        self._pip("--quiet", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
        if subprocess.run([str(self.python), "-m", "pip", "check"], check=False).returncode:
            raise SetupFailed(f"the packages do not fit together (see above). Delete {self.folder} and run this again.")
        if choice.engine == "cuda":
            self._check_cuda()

    def _pip(self, *arguments: str) -> None:
        command = [str(self.python), "-m", "pip", "install", "--disable-pip-version-check", *arguments]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            raise SetupFailed(
                "pip could not install the packages (its message is above). Is the package index reachable, and is"
                " there room on the disk? What was downloaded is kept: run the same command again."
            )

    def _check_cuda(self) -> None:
        code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
        if subprocess.run([str(self.python), "-c", code], check=False).returncode:
            say("WARNING: PyTorch cannot use the NVIDIA card. Update its driver; until then training runs on the CPU.")


def say(text: str) -> None:
    """Tell the user what is being done."""
    print(f"[finetune-local] {text}", flush=True)


def _stamp(engine: str, locks: Sequence[str]) -> dict[str, object]:
    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()

    return {
        "engine": engine,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "checkout": str(ROOT),
        "project": digest(ROOT / "pyproject.toml"),
        "locks": {name: digest(LOCKS / f"{name}.txt") for name in locks},
    }


def _pinned(lock: Path, package: str) -> str | None:
    found = re.search(rf"(?m)^{package}==([^\s;]+)", lock.read_text("utf-8"))
    return found.group(1) if found else None
