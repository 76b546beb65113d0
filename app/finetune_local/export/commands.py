"""What to type to use an export elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune_local.export.targets.ollama import MODELFILE
from finetune_local.system.errors import typed


def commands(key: str, out: Path, files: Sequence[Path]) -> list[tuple[str, str]]:
    """Pairs of what a command is for ("llama", "ollama_create", "ollama_run", "mlx", "vllm", "import") and the command."""
    place = typed(str(out))
    if key == "gguf":
        return [("llama", f"llama-cli -m {place} -cnv")]
    if key == "ollama":
        gguf = next((file for file in files if file.suffix == ".gguf"), None)
        name = gguf.stem.rpartition("-")[0] if gguf is not None else out.name
        return [
            ("ollama_create", f"ollama create {name} -f {typed(str(out / MODELFILE))}"),
            ("ollama_run", f"ollama run {name}"),
        ]
    if key == "merged":
        return [("mlx", f"mlx_lm.chat --model {place}"), ("vllm", f"vllm serve {place}")]
    return [("import", f"finetune-local adapters import {place}")]
