"""Help and start-up import nothing heavy: what a user waits for when they only ask."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch", "mlx", "mlx_lm", "transformers", "peft", "bitsandbytes", "xllamacpp", "gguf", "httpx", "keyring",
    "gradio", "webview", "fastapi", "uvicorn",
)  # fmt: skip
VERBS = importlib.import_module("finetune_local.cli.main").cli.list_commands(None)


def loaded_by(*arguments: str) -> set[str]:
    """Top-level modules that the command line has loaded when it ends."""
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('LOADED', *{m.partition('.')[0] for m in sys.modules}))\n"
        "from finetune_local.cli.main import main\nmain(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("LOADED")[2].split())


def test_help_loads_nothing_heavy() -> None:
    assert loaded_by("--help") & set(HEAVY) == set()


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_loads_no_framework(verb: str) -> None:
    assert loaded_by(verb, "--help") & set(HEAVY) == set()


def test_a_look_at_data_with_a_models_tokenizer_loads_no_framework(tiny: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "hi", "completion": "hello"}\n', "utf-8")
    loaded = loaded_by("data", "inspect", str(rows), "--model", str(tiny))
    assert "tokenizers" in loaded and loaded & set(HEAVY) == set()


def test_the_lookup_process_looks_at_data_without_a_framework(tiny: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "hi", "completion": "hello"}\n', "utf-8")
    code = f"""
import sys
from pathlib import Path
from finetune_local.gui.lookups.inspect import answer
from finetune_local.system.paths import Home
from finetune_local.runtime.rpc import RpcRequest
asked = {{"id": 1, "settings": {{"files": [{str(rows)!r}]}}, "model": {str(tiny)!r}, "what": "all"}}
told = answer(RpcRequest(asked, print), Home(Path({str(tmp_path)!r})))
assert told["model_problem"] == "" and told["report"]
print("LOADED", *{{m.partition(".")[0] for m in sys.modules}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.rpartition("LOADED")[2].split()) & set(HEAVY) == set()
