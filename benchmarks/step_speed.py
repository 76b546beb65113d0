"""Our training step beside a plain transformers + PEFT loop on the same batches: tokens per CPU-second, and both losses.

    python benchmarks/step_speed.py [--model FOLDER_OR_NAME] [--data F] [--precision fp32|bf16] [--steps 6] [--rank 16]

Both take one step in turn, so that a busy machine slows both; the first step of each warms up and is not counted. Both start
from the same adapter and use AdamW with the same rate, so in fp32 the losses must be equal.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from finetune_local.backend import backends
from finetune_local.data.dataset.batching import epoch_batches, micro_batches
from finetune_local.data.dataset.prepare import prepare
from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.models.resolve import resolve
from finetune_local.spec.batch import Batch
from finetune_local.spec.objectives import objectives
from finetune_local.spec.run import DEFAULT_MODEL, parse_spec
from finetune_local.spec.tuners import tuners
from finetune_local.system import paths

RATE = 1e-3


class Plain:
    """The peer: PEFT's layers, one padded batch, full logits, torch's cross-entropy and AdamW."""

    def __init__(self, folder: Path, precision: str, plan: Any, start: dict[str, np.ndarray]) -> None:
        import torch
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
        from transformers import AutoModelForCausalLM

        kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=kind, local_files_only=True)
        config = tuners()[plan.tuner].config(plan)
        wanted = {k: config[k] for k in ("r", "lora_alpha", "target_modules", "use_dora", "task_type")}
        self.model = get_peft_model(base, LoraConfig(**wanted))
        set_peft_model_state_dict(self.model, {k: torch.from_numpy(v) for k, v in start.items()})
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in self.trained:
            parameter.data = parameter.data.float() if precision == "fp32" else parameter.data.to(kind)
        self.optimizer = torch.optim.AdamW(self.trained, lr=RATE, weight_decay=0.0)

    def step(self, batch: Batch) -> float:
        """One step; returns the loss before it."""
        import torch

        ids = torch.from_numpy(batch.ids.astype(np.int64))
        attention = (torch.arange(ids.shape[1])[None] < torch.from_numpy(batch.lengths)[:, None]).long()
        labels = torch.where(torch.from_numpy(batch.mask), ids, -100)
        logits = self.model(input_ids=ids, attention_mask=attention).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


def main() -> None:
    """Prepare, take steps in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--data", default=str(paths.assets() / "example" / "orders.jsonl"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--method", default="lora", choices=("lora", "dora"))
    given = parser.parse_args()
    model = resolve(given.model, paths.home(), lambda *_: None)
    spec = parse_spec(
        {"method": {"key": given.method, "rank": given.rank}, "data": {"files": [given.data]}}, "benchmark"
    )
    plan = tuners()["low_rank"].plan(given.method, spec.method.settings, model.info())
    session = backends()["torch"].load(model.path, given.precision)
    session.attach("speed", plan, 42)
    session.prepare("speed", spec.training)
    plain = Plain(model.path, given.precision, plan, session.tensors("speed"))
    with tempfile.TemporaryDirectory() as scratch:
        data = prepare(spec.data, Tokenizer.load(model.path), 42, Path(scratch), 512, lambda *_: None).train
        steps = [rows for epoch in range(99) for rows in epoch_batches(data.lengths, 8, 42, epoch)][: given.steps + 1]
        ours_batches = [micro_batches(data, rows, 1024) for rows in steps]
        plain_batches = [micro_batches(data, rows, 1 << 30)[0] for rows in steps]
        seconds = {"ours": 0.0, "plain": 0.0}
        tokens = 0
        print("step  loss ours  loss plain")
        for number, (mine, one) in enumerate(zip(ours_batches, plain_batches, strict=True)):
            begin = time.process_time()
            ours = session.step(mine, objectives()["sft"], RATE).loss
            middle = time.process_time()
            theirs = plain.step(one)
            end = time.process_time()
            if number:
                seconds["ours"] += middle - begin
                seconds["plain"] += end - middle
                tokens += one.tokens
            print(f"{number:4}  {ours:9.5f}  {theirs:10.5f}", flush=True)
    speed = {name: tokens / value for name, value in seconds.items()}
    print(f"tokens per CPU-second: ours {speed['ours']:.0f}, plain transformers + PEFT {speed['plain']:.0f}, "
          f"ratio {speed['ours'] / speed['plain']:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
