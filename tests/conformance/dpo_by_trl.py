"""DPO's loss and gradients by TRL, on log-probabilities made here: writes dpo_by_trl.json, which test_dpo.py compares with.

Needs torch and `pip install --no-deps trl==0.19.1`: DPOTrainer.dpo_loss is taken from its source, as importing it takes more.
"""

from __future__ import annotations

import ast
import importlib.util
import json
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its name in TRL's source

BETAS = (0.1, 0.5)
PAIRS = 5


class FDivergenceType(Enum):
    """As TRL's."""

    REVERSE_KL = "reverse_kl"
    ALPHA_DIVERGENCE = "alpha_divergence"
    JS_DIVERGENCE = "js_divergence"


def by_trl() -> Any:
    """TRL's dpo_loss as a function."""
    found = importlib.util.find_spec("trl")
    assert found is not None and found.submodule_search_locations is not None, "install trl first"
    source = (Path(found.submodule_search_locations[0]) / "trainer" / "dpo_trainer.py").read_text("utf-8")
    (function,) = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef) and n.name == "dpo_loss"]
    names: dict[str, Any] = {"torch": torch, "F": F, "FDivergenceType": FDivergenceType}
    exec(compile(ast.Module([function], []), "dpo_trainer.py", "exec"), names)
    return names["dpo_loss"]


def main() -> None:
    rng = np.random.default_rng(7)
    loss_of, cases = by_trl(), []
    for beta in BETAS:
        trainer = SimpleNamespace(
            accelerator=SimpleNamespace(device="cpu"), reference_free=False, beta=beta, label_smoothing=0.0,
            loss_type="sigmoid", f_divergence_type="reverse_kl", f_divergence_params=None,
        )  # fmt: skip
        lengths = rng.integers(1, 9, 2 * PAIRS).tolist()  # chosen, rejected, chosen, ...
        policy = torch.tensor(-rng.exponential(2.0, sum(lengths)), requires_grad=True)
        reference = torch.tensor(policy.detach().numpy() + rng.normal(0, 0.7, sum(lengths)))
        rows, before = (torch.stack([part.sum() for part in whole.split(lengths)]) for whole in (policy, reference))
        losses, chosen, rejected = loss_of(trainer, rows[0::2], rows[1::2], before[0::2], before[1::2])
        losses.mean().backward()
        assert policy.grad is not None
        cases.append(
            {
                "beta": beta,
                "lengths": lengths,
                "policy": policy.tolist(),
                "reference": reference.tolist(),
                "loss": losses.mean().item(),
                "chosen_reward": chosen.mean().item(),
                "rejected_reward": rejected.mean().item(),
                "accuracy": (chosen > rejected).double().mean().item(),
                "gradient": policy.grad.tolist(),
            }
        )
    Path(__file__).with_suffix(".json").write_text(json.dumps(cases, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
