"""A home as today's app leaves it, for later versions to read: `python tests/compat/make_home.py COMMIT` makes homes/COMMIT.

    home/           runs, adapters, conversations, evaluations, jobs, trash, window: everything that the app keeps
    config/         the preferences
    expected.json   what this version shows of it, what its adapters answer, and the losses of runs that are resumed

Everything is written by the app itself, most of it by its command line. A home that was made once is not changed any more.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from compat import house, record_curves  # first: it sets the number of threads before a framework is imported
from tiny import tiny_model

PLACE = Path("/tmp/finetune-local-compat")
"""Where a home is made: files hold this path, and tests put theirs in its place."""

STOPPED = {
    "lora": {"key": "lora", "rank": 2, "dropout": 0.1, "targets": ["attention"]},
    "adalora": {"key": "adalora", "init_rank": 3, "target_rank": 2, "targets": ["q_proj", "v_proj"]},
    "prefix": {"key": "prefix", "prefix_length": 3, "prefix_width": 8},
    "norms": {"key": "norms"},
}
TRAINING: dict[str, Any] = {
    "max_steps": 6, "batch_size": 4, "micro_batch_tokens": 96, "learning_rate": 5e-3, "warmup": 0.2, "validate_every": 3,
    "checkpoint_every": 3, "keep_checkpoints": 1, "validation_rows": 8, "sample_rows": 1, "sample_tokens": 4,
    "gradient_checkpointing": False, "early_stopping": 0, "seed": 7,
}  # fmt: skip
STOP = 3
PROMPT = "say 3 please"


class Maker:
    """Makes one."""

    def __init__(self) -> None:
        self.home, self.data = PLACE / "home", PLACE / "home" / "data" / "orders.jsonl"
        self.resumed: dict[str, Any] = {}

    def cli(self, *arguments: str, text: str = "", code: int = 0) -> str:
        """Run the command line in a process of its own, as a user does."""
        command = [sys.executable, "-m", "finetune_local", *arguments]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        print(" ".join(arguments)[:110], flush=True)
        return done.stdout

    def tables(self, name: str, backend: str, method: object, **training: Any) -> dict[str, Any]:
        """The settings of a run."""
        return {
            "name": name, "backend": backend, "device": "cpu", "model": {"id": "tiny", "precision": "fp32"},
            "data": {"files": [str(self.data)], "validation": 0.2, "max_length": 96}, "method": method,
            "training": TRAINING | training,
        }  # fmt: skip

    def config(self, name: str, tables: dict[str, Any]) -> str:
        """The settings as a file for --config."""
        file = PLACE / f"{name}.json"
        file.write_text(json.dumps(tables, ensure_ascii=False), "utf-8")
        return str(file)

    def begin(self) -> None:
        """The model and the data."""
        tiny_model(self.home / "models" / "tiny", seed=3)
        self.data.parent.mkdir(parents=True)
        record_curves.write_data(self.data)

    def runs(self) -> None:
        """Finished, stopped, killed, failed; several at once; one from another's settings; and one as an earlier version left it."""
        for backend in ("torch", "mlx"):
            lora = {"key": "lora", "rank": 2, "targets": ["q_proj", "v_proj", "down_proj"]}
            self.cli("train", "--config", self.config("one", self.tables(f"finished-{backend}", backend, lora)))
            for key in STOPPED if backend == "torch" else ("lora", "adalora"):
                self.stop(f"stopped-{key}-{backend}", backend, STOPPED[key])
        prompt = {"key": "prompt", "prompt_length": 4}
        self.cli("train", "--config", self.config("one", self.tables("提示 prompt", "torch", prompt)))
        several = self.tables("", "torch", "lora", validate_every=6, checkpoint_every=6)
        several |= {
            "adapters": [
                {"name": "several-a", "method": {"key": "lora", "rank": 2}},
                {"name": "several-b", "method": "ia3"},
            ]
        }
        self.cli(
            "train", "--config", self.config("one", {k: v for k, v in several.items() if k not in ("name", "method")})
        )
        again = ["--config", str(self.home / "runs" / "finished-torch" / "run.json"), "--run", "again"]
        self.cli("train", *again, "--max-steps", "3", "--sample-rows", "0", "--method", "lora-fa", "--rank", "1")
        diverging = self.tables("failed", "torch", {"key": "norms"}, learning_rate=9.0, max_steps=40, warmup=0.0)
        diverging["training"] |= {"max_gradient_norm": 0.0, "checkpoint_every": 50, "validate_every": 50}
        self.cli("train", "--config", self.config("one", diverging), code=1)
        killed = self.tables(
            "killed", "torch", {"key": "bitfit"}, max_steps=5000, validate_every=5000, checkpoint_every=4
        )
        house.kill_after_checkpoint(self.home, house.make_runs(self.home, [killed])[0])
        self.older("older")

    def stop(self, name: str, backend: str, method: object) -> None:
        """A run that was stopped, and the losses that it has in the end."""
        run = house.make_runs(self.home, [self.tables(name, backend, method)])[0]
        told = house.train(self.home, [run], STOP)[0]
        assert told[-1]["event"] == "stopped"
        aside = PLACE / "aside"
        shutil.copytree(run, aside)
        whole = house.train(self.home, [run])[0]
        self.resumed[name] = {"machine": record_curves.machine(backend), "curve": record_curves.curve(whole, run)}
        shutil.rmtree(run)
        aside.rename(run)
        print(f"stopped {name}", flush=True)

    def older(self, name: str) -> None:
        """A run as earlier versions wrote it, with lines of a later one: what is missing and what is unknown must not matter."""
        run = shutil.copytree(self.home / "runs" / "again", self.home / "runs" / name)
        for gone in ("asked.json", "made_from", "base.json", "report.md"):
            (run / gone).unlink(missing_ok=True)
        shutil.rmtree(run / "tokenizer")
        values = json.loads((run / "run.json").read_text("utf-8"))
        (run / "run.json").write_text(json.dumps({**values, "name": name}, indent=2), "utf-8")
        lines = (run / "events.jsonl").read_text("utf-8").splitlines()
        later = [json.dumps({"event": "of a later version", "time": 1.0}), '{"event": "step", "step": "no number"}']
        (run / "events.jsonl").write_text("\n".join([*lines[:3], *later, *lines[3:]]) + '\n{"event": "st', "utf-8")

    def adapters(self) -> None:
        """Imported ones with notes, and one extracted from a full fine-tune that is gone."""
        source = self.home / "runs" / "several-b" / "adapter"
        self.cli("adapters", "import", str(source), "--name", "imported")
        self.cli("adapters", "note", "imported", "From a friend. 朋友给的。")
        self.cli(
            "train", "--config", self.config("one", self.tables("whole", "torch", "full", max_steps=2, sample_rows=0))
        )
        wanted = {"adapter": "whole", "rank": 2, "name": "extracted", "targets": ["q_proj"]}
        house.run_job(self.home, "extract", wanted)

    def chats(self) -> None:
        """Conversations with the base, with one adapter and with two side by side."""
        usual = ["--temperature", "0", "--max-tokens", "6", "--backend", "torch"]
        self.cli("chat", "--model", "tiny", "--system", "Be brief.", *usual, text="say 1\n/undo\nsay 2\nand then?\n")
        self.cli("chat", "--adapter", "finished-torch", *usual, text="请说 4\n/retry\nsay 5\n")
        two = ["--adapter", "finished-torch", "--adapter", "imported"]
        self.cli("chat", *two, "--compare", *usual, text="say 6\nsay 7\n")

    def evaluations(self) -> None:
        """By the verb and by a job, with votes."""
        usual = ["--limit", "4", "--few-shot", "1", "--max-tokens", "4", "--backend", "torch"]
        self.cli("evaluate", "--adapter", "finished-torch", *usual)
        self.cli("evaluate", "--model", "tiny", "--data", str(self.data), *usual)
        wanted = {"adapter": "stopped-lora-mlx", "backend": "torch", "limit": 3, "few_shot": 0, "max_tokens": 4}
        house.run_job(self.home, "evaluate", wanted)
        first = next(one for one in house.evaluations(self.home) if one["result"]["adapter"] == "finished-torch")
        house.vote(self.home, first["name"], "base", ["a", "b", "undo", "tie", "a", "skip"])

    def jobs(self) -> None:
        """Jobs of every kind that failed, were stopped and were killed; those that finished are there, but for two."""
        exports = self.home / "exports"
        copied = {"what": str(PLACE / "copied"), "name": "copied"}
        tiny_model(PLACE / "copied", seed=4)
        house.run_job(self.home, "download", copied)
        shutil.rmtree(self.home / "models" / "copied")
        wanted = {
            "adapter": "finished-torch",
            "target": "adapter",
            "format": "folder",
            "out": str(exports / "alone"),
            "gate": True,
        }
        house.run_job(self.home, "export", wanted)
        gguf = {
            "adapter": "finished-torch",
            "target": "gguf",
            "format": "f16",
            "out": str(exports / "tiny.gguf"),
            "gate": True,
            "backend": "torch",
        }
        house.run_job(self.home, "export", gguf)
        (exports / "tiny.gguf").unlink(missing_ok=True)
        asked = {
            "download": {"what": str(PLACE / "nowhere")},
            "evaluate": {"adapter": "nobody", "backend": "torch"},
            "export": {**gguf, "adapter": "nobody"},
            "extract": {"adapter": "nobody"},
        }
        fitting = {
            "download": copied,
            "evaluate": {"adapter": "finished-torch"},
            "export": gguf,
            "extract": {"adapter": "whole"},
        }
        for kind, arguments in asked.items():
            house.run_job(self.home, kind, arguments)
            for end in ("stop", "kill"):
                house.run_job(self.home, kind, fitting[kind], end)
        self.cli("runs", "remove", "whole", "--yes", "--for-good")
        shutil.rmtree(PLACE / "copied")

    def trash(self) -> None:
        """One of each kind."""
        self.cli("adapters", "import", str(self.home / "adapters" / "imported"), "--name", "thrown-adapter")
        self.cli("adapters", "remove", "thrown-adapter")
        self.cli(
            "train",
            "--config",
            self.config("one", self.tables("thrown-run", "torch", "ia3", max_steps=2, sample_rows=0)),
        )
        self.cli("runs", "remove", "thrown-run", "--yes")
        self.cli("adapters", "remove", "again")
        house.throw_chat_and_evaluation(self.home)

    def draft(self) -> None:
        """What a window remembers that has been on every page."""
        chat, evaluation = sorted((self.home / "chats").iterdir())[-1].stem, house.evaluations(self.home)[0]["name"]
        exported = next(one["name"] for one in house.job_states(self.home) if one["kind"] == "export")
        listed = {"sort": "name", "down": False, "page": 0, "search": "", "picked": ["finished-torch", "finished-mlx"]}
        values = {
            "page": "evaluate", "model": "tiny", "method": "dora", "goal": "thorough", "run_name": "下一个 next", "made_from": "again",
            "data": {"files": [str(self.data)], "columns": [], "template": "chat"}, "data_first": 10, "data_row": 2,
            "data_facts": {"rows": 40, "tokens": 1400, "longest": 60, "held_out": 4},
            "form": {"backend": "torch", "training.max_steps": "30", "method.rank": "4", "training.neftune_alpha": "5"},
            "run": "finished-torch", "setting_up": True, "adapter": "finished-torch", "adapters": ["finished-torch", "imported"],
            "chat_base": True, "chat_lead": "imported", "chat_seen": [chat, ["finished-torch"]], "chat_asked": "say 8",
            "chat_system": "Be brief. 简短。", "chat_sampling": {"temperature": "0", "max_tokens": "6"}, "chat_settings": True,
            "chat_backend": "torch", "chat_precision": "fp32", "chat_message": "half a quest", "chat_search": "", "conversation": chat,
            "evaluate_form": {"rows": "file", "file": str(self.data), "few_shot": 1, "metric": "exact", "limit": 3},
            "evaluation": evaluation, "evaluate_for": "finished-torch", "evaluate_vote": {"on": True, "against": "base"},
            "evaluate_rows": {"which": "all", "metric": "f1", "page": 0}, "export_shown": exported,
            "export_form": {"target": "gguf", "formats": {"gguf": "q8_0"}, "folder": "", "gate": True},
            "runs_view": "compare", "runs_shown": "finished-torch", "runs_list": listed, "adapters_list": listed,
            "runs_look": {"shown": "loss", "axis": "step", "smoothing": "0.6"}, "adapters_shown": "imported", "model_search": "qwen",
        }  # fmt: skip
        house.save_draft(self.home, "window1234", values)

    def finish(self, target: Path, commit: str) -> None:
        """What is shown of it, and everything to its place."""
        facts = {"commit": commit, "place": str(PLACE), "stop": STOP, "prompt": PROMPT, "resumed": self.resumed}
        names = [one["name"] for one in house.printed("adapters", "list")]
        expected = {**facts, "answers": {name: answer(name, PROMPT, "torch") for name in names}, **shown(self.home)}
        for useless in [
            *PLACE.rglob("worker.lock"),
            *PLACE.rglob("worker.log"),
            *PLACE.rglob(".reserve"),
            *PLACE.glob("*.json"),
        ]:
            useless.unlink()
        shutil.rmtree(self.home / "cache", ignore_errors=True)
        (self.home / "window" / "drafts" / "last.json").unlink()
        target.mkdir(parents=True)
        (target / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n", "utf-8")
        shutil.copytree(self.home, target / "home")
        shutil.copytree(PLACE / "config", target / "config")


def answer(adapter: str, prompt: str, backend: str) -> str:
    """What an adapter answers, always the likeliest token."""
    usual = ("--temperature", "0", "--max-tokens", "8", "--backend", backend)
    return str(house.printed("generate", "--adapter", adapter, "--prompt", prompt, *usual)["text"])


def shown(home: Path) -> dict[str, Any]:
    """What the app shows of a home."""
    runs = house.printed("runs", "list")
    adapters = house.printed("adapters", "list")
    return {
        "runs": runs,
        "run": {one["run"]: house.printed("runs", "show", one["run"]) for one in runs},
        "adapters": adapters,
        "adapter": {one["name"]: house.printed("adapters", "info", one["name"]) for one in adapters},
        "models": house.printed("models", "list"),
        "conversations": house.printed("chat", "--list"),
        "texts": house.conversation_texts(home),
        "evaluations": house.evaluations(home),
        "jobs": house.job_states(home),
        "trash": house.trash_items(home),
        "draft": house.read_draft(home, "window1234"),
        "preferences": house.preferences(),
    }


def main() -> None:
    """Make it, as homes/COMMIT."""
    commit = sys.argv[1]
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir()
    paths = os.pathsep.join(str(house.ROOT / part) for part in ("app", "backends"))
    os.environ |= {
        "FINETUNE_LOCAL_HOME": str(PLACE / "home"),
        "FINETUNE_LOCAL_CONFIG": str(PLACE / "config"),
        "PYTHONPATH": paths,
    }
    maker = Maker()
    for part in (maker.begin, maker.runs, maker.adapters, maker.chats, maker.evaluations, maker.jobs, maker.trash):
        part()
    maker.draft()
    house.save_preferences(language="zh", theme="dark", notify=False, model_folders=(str(PLACE / "home" / "models"),))
    maker.finish(Path(__file__).with_name("homes") / commit, commit)


if __name__ == "__main__":
    main()
