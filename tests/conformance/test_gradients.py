"""Every method's gradients on every backend against finite differences of the loss, by the port alone.

A step of AdamW tells only a gradient's sign, so gradients are taken from the backends' own insides (gradients_of); what they
are compared with is `score()` at tensors moved by hand.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conforming import Case, batch, gradients_of, make_case
from finetune_local.backend import Backend
from finetune_local.spec.tuners import presets, tuner_of

MOVE = 2e-2
CONSTANT_NORM = {"dora": ("lora_A", "lora_B"), "qdora": ("lora_A", "lora_B")}
"""DoRA takes the norm as a constant (section 4.3), so only the magnitude's gradient is a slope of the loss."""


def loss(case: Case, tensors: dict[str, np.ndarray]) -> float:
    """The mean loss on the batch with these tensors; of prompts side by side the sum, as each gets its own gradient."""
    case.session.attach("moved", case.plan, 1, tensors)
    found = -float(case.session.score(batch()).astype(np.float64).mean())
    case.session.detach("moved")
    return found * tuner_of(case.plan).virtual_ids(case.plan).ensemble_size


@pytest.mark.parametrize("method", list(presets()))
def test_gradients_are_the_slopes_of_the_loss(backend: Backend, tiny: Path, method: str) -> None:
    case = make_case(backend, method, tiny, precision="fp32")
    case.attach()
    case.session.prepare("a", case.spec.training)
    case.train(3)  # at the start some gradients are zero
    tensors, gradients = case.session.tensors("a"), gradients_of(case.session, batch())
    lr_multipliers = tuner_of(case.plan).lr_multipliers(case.plan)
    assert gradients.keys() == {name for name in tensors if lr_multipliers.get(name, 1.0)}
    rng = np.random.default_rng(0)
    kinds: dict[str, list[str]] = {}
    for name in gradients:
        if not any(part in name for part in CONSTANT_NORM.get(method, ())):
            kinds.setdefault(name.split("layers.0.")[-1].split("layers.1.")[-1], []).append(name)
    assert kinds
    compared = 0
    for names in kinds.values():
        # All tensors of one kind are moved at once, along the gradient and a bit aside, for a slope that stands out.
        moves = {}
        for name in names:
            aside = rng.normal(size=gradients[name].shape)
            moves[name] = gradients[name] + 0.3 * aside / np.linalg.norm(aside) * np.linalg.norm(gradients[name])
        length = np.sqrt(sum(float((m**2).sum()) for m in moves.values()))
        if length < 1e-4:
            continue  # too flat to say anything
        slope = sum(float((gradients[n] * m).sum()) for n, m in moves.items()) / length
        ends = []
        for sign in (1, -1):
            moved = {
                n: (t + sign * MOVE * moves[n] / length).astype(np.float32) if n in moves else t
                for n, t in tensors.items()
            }
            ends.append(loss(case, moved))
        assert slope == pytest.approx((ends[0] - ends[1]) / (2 * MOVE), rel=0.03, abs=2e-4), names
        compared += 1
    assert compared
