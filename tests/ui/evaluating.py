"""A home with a tiny base and an adapter of a run that kept rows aside, and an evaluation of it, for pages that show such."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from finetune_local.data.dataset.prepare import prepare
from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.evaluation.store import Saved
from finetune_local.spec.run import DataSettings
from finetune_local.system.messages import carrying, msg
from finetune_local.system.paths import Home
from made import made_adapter
from tiny import tiny_model

RUN = "咖啡 orders"
EVIL = "<img src=x onerror=alert(1)> {{7*7}} ${7*7} `x`"

KILLED = ("ERR_", "Failed to load", "Failed to fetch", "NetworkError", "network error", "errored out")
"""What a page says whose server was killed."""


def stock(home: Home) -> None:
    """The base "tiny" and the run, with twelve rows kept aside."""
    base = tiny_model(home.models / "tiny")
    run = home.runs / RUN
    rows = [{"prompt": f"say {i}", "completion": f"ok {i}"} for i in range(24)]
    data = home.data / "orders.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    settings = DataSettings(files=(str(data),), validation=0.5)
    prepare(settings, Tokenizer.load(base), 1, run / "data", 256, lambda *_: None)
    made_adapter(base, run / "adapter", run=RUN)
    tables: dict[str, Any] = {"model": {"id": "tiny"}, "data": settings.model_dump(mode="json"), "name": RUN}
    (run / "run.json").write_text(json.dumps(tables, ensure_ascii=False), "utf-8")
    (run / "events.jsonl").write_text("", "utf-8")


def evaluated(home: Home, rows: int = 20, name: str = f"{RUN}-1") -> Saved:
    """An evaluation in which the tuned model is right on all but every fourth row; a row holds what must never be run."""
    folder = home.evaluations / name
    folder.mkdir()

    def answer(text: str, right: bool, loss: float) -> dict[str, Any]:
        return {"answer": text, "loss": loss, "exact": float(right), "contains": float(right), "f1": float(right)}

    lines = [
        {
            "file": "/somewhere/held out.jsonl",
            "line": i + 1,
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"say {i} {EVIL}"}],
            "reference": f"ok {i}",
            "base": answer(f"No idea about {i}. {EVIL}", i == 0, 4.0),
            "few_shot": answer("ok 1", i == 1, 2.0),
            "tuned": answer(f"ok {i}" if i % 4 else "hmm", bool(i % 4), 0.2),
        }
        for i in range(rows)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")

    def measured(mean: float, loss: float) -> dict[str, Any]:
        low, high = max(0.0, mean - 0.1), min(1.0, mean + 0.1)
        interval = {"mean": mean, "low": low, "high": high}
        return {
            "loss": loss,
            "loss_interval": {"mean": loss, "low": loss * 0.9, "high": loss * 1.1},
            **dict.fromkeys(("exact", "contains", "f1"), interval),
        }

    shown = msg(
        "{names} {size} against {other} (95 % interval {range})",
        names=msg("exact match"), size=msg("up {points} points", points="70.0"), other=msg("the base"),
        range=msg("{low} to {high}", low="+50.0", high="+85.0"),
    )  # fmt: skip
    sentences = [msg("The fine-tune helped: {shown}.", shown=shown)]
    result = {
        "rows": rows,
        "base": measured(0.05, 4.0),
        "few_shot": measured(0.05, 2.0),
        "tuned": measured(0.75, 0.2),
        "metric": "exact",
        "verdict": {
            "text": sentences[0],
            "sentences": sentences,
            "over_base": {"mean": 0.7, "low": 0.5, "high": 0.85},
            "over_few_shot": {"mean": 0.7, "low": 0.5, "high": 0.85},
        },
        "examples": 3,
        "examples_origin": "drawn from the data the adapter was trained on",
        "set_aside": 0,
        "model": "tiny",
        "adapter": RUN,
        "adapter_folder": str(home.runs / RUN / "adapter"),
        "backend": "torch",
        "choices": {"seed": 42, "data": []},
        "created": "2026-11-26T00:00:00+00:00",
        "created_time": time.time(),
        "seconds": {"loading": 1.0, "base": 20.0, "few_shot": 30.0, "tuned": 20.0},
    }
    (folder / "result.json").write_text(json.dumps(carrying(result), ensure_ascii=False), "utf-8")
    return Saved(folder)


def ended_export(home: Home, name: str, out: Path, events: list[dict[str, Any]], **arguments: Any) -> None:
    """A job's folder as an export that has ended leaves it."""
    folder = home.jobs / name
    folder.mkdir()
    asked = {
        "adapter": RUN,
        "model": None,
        "target": "gguf",
        "format": "q8_0",
        "out": str(out),
        "gate": True,
        **arguments,
    }
    (folder / "job.json").write_text(
        json.dumps({"kind": "export", "arguments": asked, "created": time.time()}, ensure_ascii=False), "utf-8"
    )
    lines = [{"event": "began"}, *events]
    (folder / "events.jsonl").write_text(
        "".join(json.dumps({"time": time.time(), **line}) + "\n" for line in lines), "utf-8"
    )
