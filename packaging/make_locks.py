"""Compile packaging/locks/*.txt from pyproject.toml with uv: one set of exact versions, cut into one file per use.

    python packaging/make_locks.py              keeps what is locked, adds what is missing
    python packaging/make_locks.py --upgrade    takes the newest versions that pyproject.toml allows

The locks are universal: one file serves Linux, macOS and Windows, by environment markers.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "packaging" / "locks"
EXTRAS = ("cpu", "cuda", "mlx", "app", "dev")
# What PyPI's torch for Linux asks for and the CPU build does not; the cuda lock alone keeps it.
CUDA_ONLY = re.compile(r"^(nvidia-|cuda-|triton\b)")
BUILD = "hatchling\neditables\n"  # so that installing the checkout itself downloads nothing unpinned
PYTHON = "3.11"


def main() -> None:
    """Compile everything at once, then each extra under the constraints of that."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions allowed")
    upgrade = parser.parse_args().upgrade
    LOCKS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        build = Path(place) / "build.in"
        build.write_text(BUILD, "utf-8")
        everything = LOCKS / "everything.txt"
        _compile(EXTRAS, build, everything, ["--upgrade"] if upgrade else [])
        for extra in EXTRAS:
            lock = LOCKS / f"{extra}.txt"
            _compile((extra,), build, lock, ["--upgrade", "--constraint", str(everything)])
            if extra != "cuda":
                lines = lock.read_text("utf-8").splitlines(keepends=True)
                lock.write_text("".join(line for line in lines if not CUDA_ONLY.match(line)), "utf-8")
            print(f"{lock.relative_to(ROOT)}: {len(lock.read_text('utf-8').splitlines()) - 1} packages")


def _compile(extras: tuple[str, ...], build: Path, out: Path, more: list[str]) -> None:
    options = ["--universal", "--python-version", PYTHON, "--no-annotate", "--no-header", "--quiet", "--no-config"]
    chosen = [part for extra in extras for part in ("--extra", extra)]
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", str(build), *chosen, *options, *more]
    subprocess.run([*command, "--output-file", str(out)], cwd=ROOT, check=True)
    out.write_text(f"# Made by packaging/make_locks.py ({', '.join(extras)})\n" + out.read_text("utf-8"), "utf-8")


if __name__ == "__main__":
    main()
