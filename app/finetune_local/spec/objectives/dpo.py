"""Direct preference optimisation: the chosen answer of a pair is made likelier than the rejected one, measured against the base.

Rafailov et al. 2023, "Direct Preference Optimization" (arXiv:2305.18290), equation 7. Of a pair with chosen answer c and rejected
answer r to the prompt x, the margin is

    m = β·[log π(c|x)/π₀(c|x) − log π(r|x)/π₀(r|x)]

with π the base with the adapter and π₀ the base alone (the reference); the loss is the mean of −log σ(m) over pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from finetune_local.spec.batch import Batch, Readout
from finetune_local.spec.objectives import LOSS, ExampleKind, Mean, Need, Objective, ObjectiveMetric, ReferenceSettings
from finetune_local.spec.ops import NUMPY, Ops
from finetune_local.system.fields import setting


class DpoSettings(ReferenceSettings):
    """What can be set."""

    beta: float = setting(
        0.1,
        help="DPO's β: how strongly answers are kept close to the base's; smaller values allow larger changes.",
        group="objective",
        gt=0,
    )


class Dpo(Objective):
    """See Objective. A pair's rows have weight +1 (chosen) and −1 (rejected)."""

    key = "dpo"
    title = "DPO"
    summary = "Learns from pairs of answers which one is better, and stays near the base."
    settings = DpoSettings
    examples = frozenset[ExampleKind]({"pair"})
    needs = frozenset[Need]({"reference"})
    reports = (
        ObjectiveMetric("accuracy", "Pair accuracy", share=True),
        ObjectiveMetric("margin", "Margin", chart="rewards"),
        ObjectiveMetric("chosen_reward", "Chosen reward", chart="rewards"),
        ObjectiveMetric("rejected_reward", "Rejected reward", chart="rewards"),
    )
    lr_factor = 0.1
    """The loss only sees differences of whole answers' log-probabilities, so at the rate of supervised fine-tuning both answers
    soon become unlikely. Tunstall et al. 2023 (Zephyr, arXiv:2310.16944) train with 2e-5 and then 5e-7; adapters, whose base
    stays as it is, take a tenth."""

    @property
    def beta(self) -> float:
        """β."""
        return cast(DpoSettings, self.chosen).beta

    def count(self, batch: Batch) -> int:
        """Pairs."""
        return batch.examples

    def loss(self, ops: Ops, readout: Readout, batch: Batch, total: float) -> Any:
        """−Σ log σ(m) / total over the batch's pairs."""
        signed = self._rewards(ops, readout, batch) * ops.array(batch.weight)
        margins = ops.segment_sum(signed, batch.row_groups, batch.examples)
        return -ops.sum(ops.log_sigmoid(margins)) / total

    def metrics(self, readout: Readout, batch: Batch) -> Mapping[str, Mean]:
        """The loss; the share of pairs with a positive margin; the mean margin and rewards β·log π/π₀ of either answer."""
        exact = Readout(np.asarray(readout.logprobs, np.float64))
        rewards, pairs = self._rewards(NUMPY, exact, batch), batch.examples
        margins = NUMPY.segment_sum(rewards * batch.weight, batch.row_groups, pairs)
        found = {
            LOSS: -NUMPY.log_sigmoid(margins).sum(),
            "accuracy": (margins > 0).sum(),
            "margin": margins.sum(),
            "chosen_reward": rewards[batch.weight > 0].sum(),
            "rejected_reward": rewards[batch.weight < 0].sum(),
        }
        return {name: Mean(float(total), pairs) for name, total in found.items()}

    def _rewards(self, ops: Ops, readout: Readout, batch: Batch) -> Any:
        """β·log π/π₀ of each row's answer, (rows,)."""
        assert batch.reference is not None, "the session computes what an objective needs"
        ratios = readout.logprobs - ops.array(batch.reference)
        return self.beta * ops.segment_sum(ratios, batch.token_rows, len(batch.ids))


OBJECTIVE = Dpo()
