"""What `models info` shows about one model."""

from __future__ import annotations

from typing import Any

from finetune_local.models.folder import ModelFolder
from finetune_local.models.install import source_of
from finetune_local.models.memory.estimate import estimate
from finetune_local.spec.run import parse_spec, plan_method

_WAYS = (
    ("lora, fp32 on a CPU", "lora", "fp32", "cpu"),
    ("lora, bf16", "lora", "bf16", "cuda"),
    ("qlora, 4-bit", "qlora", "4-bit", "cuda"),
    ("full, bf16", "full", "bf16", "cuda"),
)


def facts_of(model: ModelFolder) -> dict[str, Any]:
    """A JSON object; sizes in bytes, the context in tokens, training memory by method and precision."""
    source = source_of(model.path)
    return {
        "name": model.name,
        "path": str(model.path),
        "family": model.family,
        "parameters": model.parameters,
        "bytes": model.bytes_on_disk,
        "context_length": model.context_length,
        "chat_template": model.chat_template() is not None,
        "from": source.get("from", ""),
        "revision": source.get("revision", ""),
        "license": source.get("license", ""),
        "training_memory_bytes": training_memory(model),
    }


def training_memory(model: ModelFolder) -> dict[str, int]:
    """Estimated training memory in bytes: LoRA on a CPU, the other methods on a CUDA card."""
    result = {}
    for label, key, precision, device in _WAYS:
        spec = parse_spec({"method": {"key": key}, "model": {"precision": precision}}, "models info")
        result[label] = estimate(model, spec, plan_method(spec.method, model.info()), device).total
    return result
