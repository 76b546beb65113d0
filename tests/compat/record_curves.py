"""Loss curves that must not change: `python tests/compat/record_curves.py` records them, with `--check` compares them.

Every method on every backend, five steps on a tiny model, by the app's own loop and from its own run folders. Numbers are
written as hexadecimal floats, so nothing is rounded. With the processor and the versions they were recorded with they must
be equal bit for bit, elsewhere within 1e-5 (`compared`). Without `--check` only what is new is recorded, such as a method.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"  # before a framework is imported: sums depend on how they are divided among threads
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from compat import house  # noqa: E402
from tiny import tiny_model  # noqa: E402

RECORDED = Path(__file__).with_name("curves.json")
STEPS = 5
TOLERANCE = 1e-5
"""Between processors or versions: of a loss by its size; the norm of a gradient may differ by ten times as much."""
BF16_TOLERANCE = 5e-3
LIBRARIES = {"torch": ("torch", "transformers", "numpy"), "mlx": ("mlx", "mlx-lm", "numpy")}

SIZES: dict[str, dict[str, Any]] = {
    "adalora": {"init_rank": 6, "target_rank": 4},
    "adapter": {"adapter_width": 4},
    "adapter-pfeiffer": {"adapter_width": 4},
    "p-tuning": {"prompt_length": 6},
    "parallel-adapter": {"adapter_width": 4},
    "prefix": {"prefix_length": 5, "prefix_width": 16},
    "prompt": {"prompt_length": 6},
    "prompt-ensemble": {"prompt_length": 4, "prompt_members": 3},
    "vera": {"rank": 16},
}
RANKED = ("dora", "longlora", "lora", "lora-drop", "lora-fa", "lora-plus", "pissa", "qdora", "qlora")
TRAINING: dict[str, Any] = {
    "max_steps": STEPS, "batch_size": 4, "micro_batch_tokens": 96, "learning_rate": 5e-3, "schedule": "cosine", "warmup": 0.2,
    "weight_decay": 0.01, "gradient_checkpointing": False, "validate_every": 3, "checkpoint_every": 3, "validation_rows": 8,
    "sample_rows": 0, "early_stopping": 0, "seed": 7,
}  # fmt: skip

CASES: dict[str, dict[str, Any]] = {
    "lora, dropout": {"method": {"key": "lora", "rank": 4, "dropout": 0.1}},
    "lora, patterns": {
        "method": {
            "key": "lora",
            "rank": 4,
            "scaling": "rslora",
            "rank_pattern": ["q_proj=2"],
            "alpha_pattern": ["q_proj=8"],
        }
    },
    "lora, biases, embeddings, norms": {
        "family": "qwen2",
        "method": {"key": "lora", "rank": 4, "train_bias": "all", "also_train": ["embeddings", "norms"]},
    },
    "lora, gaussian": {"method": {"key": "lora", "rank": 4, "start": "gaussian"}},
    "lora, olora": {"method": {"key": "lora", "rank": 4, "start": "olora"}},
    "lora, loftq, nf4": {
        "method": {"key": "lora", "rank": 4, "start": "loftq"},
        "model": {"precision": "4-bit", "quantisation": "nf4"},
    },
    "prefix, no projection": {"method": {"key": "prefix", "prefix_length": 5, "prefix_projection": False}},
    "p-tuning, lstm": {"method": {"key": "p-tuning", "prompt_length": 6, "prompt_encoder": "lstm"}},
    "lora, NEFTune": {"training": {"neftune_alpha": 5.0}},
    "lora, gradient checkpointing": {"training": {"gradient_checkpointing": True}},
    "full, 8-bit AdamW": {"method": "full", "training": {"optimizer": "adamw-8bit"}},
    "lora, linear schedule, no clipping": {"training": {"schedule": "linear", "max_gradient_norm": 0.0}},
    "lora, shifted attention": {"training": {"attention": "shifted", "attention_group": 16}},
    "lora, bf16": {"model": {"precision": "bf16"}},
    "lora, raw text": {"data": {"template": "raw"}},
    "lora, gemma": {"family": "gemma"},
    "dora, qwen3": {"family": "qwen3", "method": "dora"},
    "lora, resumed": {"stop_after": 3},
    "adalora, resumed": {"stop_after": 3, "method": "adalora"},
    "full, resumed": {"stop_after": 3, "method": "full"},
    "prefix, resumed": {"stop_after": 3, "method": "prefix"},
    "several: lora, dora, adapter": {"several": ["lora", "dora", "adapter"]},
    "several: ia3, bitfit, lora-fa": {"several": ["ia3", "bitfit", "lora-fa"]},
}
"""What is recorded beside the methods; what a case does not say is as with the method lora alone."""


def method(chosen: str | Mapping[str, Any]) -> dict[str, Any]:
    """The table [method] with sizes that suit a tiny model."""
    if not isinstance(chosen, str):
        return dict(chosen)
    return {"key": chosen, **({"rank": 4} if chosen in RANKED else {}), **SIZES.get(chosen, {})}


def spec(
    name: str, backend: str, model: Path, data: Path, case: Mapping[str, Any], key: object = None
) -> dict[str, Any]:
    """The tables of one run; everything that is automatic otherwise is given."""
    chosen = method(key or case.get("method", "lora"))
    precision = {} if chosen["key"] in ("qlora", "qdora") else {"precision": "fp32"}
    shifted = {"attention_group": 16} if chosen["key"] == "longlora" else {}
    return {
        "name": name,
        "backend": backend,
        "device": "cpu",
        "model": {"id": str(model), **precision, **case.get("model", {})},
        "data": {"files": [str(data)], "validation": 0.2, "max_length": 96, **case.get("data", {})},
        "method": chosen,
        "training": {**TRAINING, **shifted, **case.get("training", {})},
    }


def write_data(path: Path) -> Path:
    """Forty conversations of different lengths, some of several turns."""
    rows = []
    for i in range(40):
        messages = [
            {"role": "user", "content": f"say {i} " + "please " * (i % 4)},
            {"role": "assistant", "content": f"好 {i % 5} ok" + " indeed" * (i % 3)},
        ]
        if i % 6 == 0:
            messages += [{"role": "user", "content": "again"}, {"role": "assistant", "content": f"again {i % 5}"}]
        rows.append({"messages": messages})
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def tensors_sha256(file: Path) -> str:
    """Over names, types, shapes and bytes of a safetensors file's tensors; what else the file says is not in it."""
    raw = file.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    digest = hashlib.sha256()
    for name in sorted(header):
        begin, end = header[name]["data_offsets"]
        digest.update(f"{name} {header[name]['dtype']} {header[name]['shape']}\n".encode())
        digest.update(raw[start + begin : start + end])
    return digest.hexdigest()


def curve(told: Iterable[Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """What is compared of one run."""
    told = list(told)
    steps = [event for event in told if event["event"] == "step"]
    adapter = folder / "adapter" / "adapter_model.safetensors"
    files = [adapter] if adapter.exists() else sorted((folder / "adapter").glob("*.safetensors"))
    return {
        "steps": [event["step"] for event in steps],
        "losses": [float(event["loss"]).hex() for event in steps],
        "gradient_norms": [float(event["gradient_norm"]).hex() for event in steps],
        "validation": [float(event["loss"]).hex() for event in told if event["event"] == "validation"],
        "tokens": [event["supervised_tokens"] for event in steps],
        "adapter": {file.name: tensors_sha256(file) for file in files},
    }


def curves(backend: str, only: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Train everything on a backend, or what has `only` in its name; a name and a curve for each."""
    with tempfile.TemporaryDirectory(prefix="curves-") as place:
        folder = Path(place)
        models = {family: tiny_model(folder / family, family) for family in ("llama", "gemma", "qwen2", "qwen3")}
        data = write_data(folder / "data.jsonl")
        cases = {key: {"method": key} for key in house.method_keys()} | CASES
        for number, (name, case) in enumerate(cases.items()):
            if only not in name:
                continue
            home, model = folder / f"home-{number}", models[case.get("family", "llama")]
            chosen: list[object] = [*case.get("several", [None])]
            specs = [spec(f"run-{i}", backend, model, data, case, key) for i, key in enumerate(chosen)]
            made = house.make_runs(home, specs)
            told = house.train(home, made, case.get("stop_after"))
            if "stop_after" in case:
                told = [one + other for one, other in zip(told, house.train(home, made), strict=True)]
            for i, (events, run) in enumerate(zip(told, made, strict=True)):
                yield name if len(made) == 1 else f"{name} [{i}]", curve(events, run)


def machine(backend: str) -> dict[str, str]:
    """What the last bits depend on."""
    return {
        "processor": processor(),
        "system": platform.system(),
        **{library: metadata.version(library) for library in LIBRARIES[backend]},
    }


def processor() -> str:
    """The processor's name with family, model and stepping where the system tells them."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    wanted = ("model name", "cpu family", "model", "stepping")
    found = [re.search(rf"^{key}\s*:\s*(.+)$", text, re.MULTILINE) for key in wanted]
    return " / ".join(match[1].strip() for match in found if match) or platform.machine()


def compared(
    recorded: Mapping[str, Any], now: Mapping[str, Any], exactly: bool, tolerance: float = TOLERANCE
) -> list[str]:
    """How a curve differs from the recorded one; empty where it does not."""
    problems = [f"{key}: {recorded[key]} → {now[key]}" for key in ("steps", "tokens") if recorded[key] != now[key]]
    for key in ("losses", "gradient_norms", "validation"):
        before, after = ([float.fromhex(value) for value in curve[key]] for curve in (recorded, now))
        if len(before) != len(after):
            problems.append(f"{key}: {len(before)} → {len(after)} of them")
            continue
        worst = max((abs(a - b) for a, b in zip(before, after, strict=True)), default=0.0)
        limit = 0.0 if exactly else tolerance * max(1.0, *before) * (10 if key == "gradient_norms" else 1)
        if not worst <= limit:
            first = next(i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b)
            problems.append(f"{key}: off by up to {worst:.3g}, first at number {first + 1}")
    if exactly and recorded["adapter"] != now["adapter"]:
        problems.append("the adapter's tensors are others")
    return problems


def main() -> int:
    """Record, or check and print what differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with curves.json; exit code 1 where one differs")
    parser.add_argument("--backend", choices=sorted(LIBRARIES), help="only this one")
    parser.add_argument("--only", default="", metavar="TEXT", help="only curves with this text in their names")
    parser.add_argument(
        "--anew", action="store_true", help="record again what is recorded; without it only what is new is"
    )
    parser.add_argument("--resume", type=Path, metavar="RUN", help="train this run to its end and print its curve")
    chosen = parser.parse_args()
    if chosen.resume is not None:
        told = house.train(chosen.resume.parents[1], [chosen.resume])[0]
        print(json.dumps(curve(told, chosen.resume)))
        return 0
    known: dict[str, Any] = json.loads(RECORDED.read_text("utf-8")) if RECORDED.exists() else {}
    wrong = 0
    for backend in [chosen.backend] if chosen.backend else house.usable_backends():
        if chosen.check:
            wrong += check(backend, known[backend], chosen.only)
        else:
            known[backend] = record(backend, {} if chosen.anew else known.get(backend, {}), chosen.only)
            RECORDED.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return int(wrong > 0)


def check(backend: str, recorded: Mapping[str, Any], only: str) -> int:
    """Compare a backend's curves with the recorded ones and print what differs; how many do."""
    exactly = recorded["machine"] == machine(backend)
    print(f"{backend}: {'bit for bit' if exactly else f'within {TOLERANCE}: other processor or versions'}", flush=True)
    missing = {name for name in recorded["curves"] if only in name}
    count = wrong = 0
    for name, now in curves(backend, only):
        tolerance = BF16_TOLERANCE if "bf16" in name else TOLERANCE
        problems = ["not recorded"]
        if name in missing:
            problems = compared(recorded["curves"][name], now, exactly, tolerance)
        missing.discard(name)
        count += 1
        if problems:
            wrong += 1
            print(f"  {name}: {'; '.join(problems)}", flush=True)
    if missing:
        print(f"  not trained: {', '.join(sorted(missing))}", flush=True)
    print(f"{backend}: {count} curves compared, {wrong} differ", flush=True)
    return wrong + len(missing)


def record(backend: str, recorded: Mapping[str, Any], only: str) -> dict[str, Any]:
    """The recorded curves of a backend and those that are new. Raises SystemExit on another processor or with other versions."""
    here = machine(backend)
    if recorded and recorded["machine"] != here:
        raise SystemExit(
            f"{backend}: recorded with {recorded['machine']}; this is {here}. --anew records all of it again."
        )
    known = dict(recorded.get("curves", {}))
    for name, now in curves(backend, only):
        if known.setdefault(name, now) is now:
            print(backend, name, float.fromhex(now["losses"][-1]), flush=True)
    return {"machine": here, "curves": known}


if __name__ == "__main__":
    sys.exit(main())
