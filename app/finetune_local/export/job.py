"""One export from start to verdict: write, check by the gate, and only then take the name that was asked for."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_local.errors import GateFailed, ModelError
from finetune_local.export import Progress, silent, targets
from finetune_local.export.files import check_out
from finetune_local.export.merged import chosen_dtype
from finetune_local.export.verify import Gate, verify
from finetune_local.export.weights import MergedWeights
from finetune_local.files import remove, replace
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.fields import did_you_mean

UNCHECKED, FAILED = ".unchecked", ".failed"
_KINDS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Exported:
    """The files of an export and the gate's verdict."""

    out: Path
    files: list[Path]
    gate: Gate

    def as_json(self) -> dict[str, Any]:
        """What `export --json` prints."""
        size = sum(file.stat().st_size for file in self.files)
        return {"out": str(self.out), "files": [str(f) for f in self.files], "bytes": size, "gate": self.gate.as_json()}


def export(
    key: str,
    model: ModelFolder,
    adapter: Path | None,
    out: Path,
    quant: str | None = None,
    *,
    backend: str = "auto",
    gate: bool = True,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Exported:
    """Export base + adapter (or the bare base) as the target `key`.

    Raises ModelError (a family, format or place that cannot be), AdapterError, DiskFull, and GateFailed, which leaves the
    export under a name that ends in ".failed"; what stood at `out` is then still there.
    """
    if key not in targets():
        raise ModelError(
            f"there is no export '{key}'.{did_you_mean(key, list(targets()))} Known: {', '.join(targets())}."
        )
    target = targets()[key]
    chosen = quant or target.quants[0]
    if chosen not in target.quants:
        raise ModelError(f"--quant {chosen}: --to {key} knows {', '.join(target.quants)}.")
    folder = key != "gguf"
    out = target.place(out.expanduser().absolute(), _file_name(model, adapter), chosen)
    check_out(out, folder, overwrite, [model.path, *([adapter] if adapter else [])])
    weights = MergedWeights(model, adapter)
    unchecked, failed = (out.with_name(out.name + ending) for ending in (UNCHECKED, FAILED))
    try:
        target.write(weights, unchecked, chosen, progress)
        verdict = Gate(None, "not checked: you turned the check off")
        if gate:
            kind = chosen if key == "gguf" else _KINDS[chosen_dtype(model, chosen)]
            verdict = verify(key, unchecked, kind, model, adapter, backend, progress)
            gc.collect()  # the loaded export goes with its memory maps: Windows renames no file that is mapped
    except GateFailed as error:
        remove(failed)
        replace(unchecked, failed)
        raise GateFailed(
            f"the export does not answer as base + adapter do. {error} It was kept as {failed}."
        ) from error
    except BaseException:
        remove(unchecked)
        raise
    replace(unchecked, out)
    return Exported(out, sorted(out.iterdir()) if out.is_dir() else [out], verdict)


def _file_name(model: ModelFolder, adapter: Path | None) -> str:
    """The model's name, with the run's (or the adapter folder's) behind it, fit for a file name."""
    name = model.name.replace("/", "-")
    if adapter is None:
        return name
    return f"{name}-{adapter.parent.name if adapter.name == 'adapter' else adapter.name}"
