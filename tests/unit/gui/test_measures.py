"""What an objective reports in validation is shown beside the loss wherever a run is shown, from the objective's declaration."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from finetune_local.gui.i18n.formats import Formats
from finetune_local.gui.i18n.strings import Strings
from finetune_local.gui.pages.runs import compare, detail
from finetune_local.gui.pages.runs.state import Look
from finetune_local.gui.widgets import runview
from finetune_local.gui.widgets.measures import charted, measures
from finetune_local.runtime.status import Status
from finetune_local.spec.batch import Batch, Readout
from finetune_local.spec.objectives import LOSS, objectives
from finetune_local.spec.run import parse_spec
from finetune_local.system.paths import Home
from finetune_local.training.events import Validation
from finetune_local.training.run_folder import runs
from finetune_local.training.run_folder.facts import facts_of
from finetune_local.training.run_folder.runs import Run
from finetune_local.training.run_folder.watch import Watch

REPORTING = [key for key, objective in objectives().items() if objective.reports]


@pytest.fixture
def context() -> Any:
    t = Strings("en")
    watches: dict[Any, Watch] = {}
    return SimpleNamespace(t=t, f=Formats("en", t), watch=lambda folder: watches.setdefault(folder, Watch(Run(folder))))


@pytest.fixture
def trained(home: Home) -> Callable[..., Run]:
    """A run whose objective reported 0.25 of everything before the first step and 0.75 after the tenth."""

    def made(name: str, key: str) -> Run:
        run = runs.create(home, parse_spec({"name": name, "data": {"files": ["x"]}, "objective": key}, "test"))
        for step, value in ((0, 0.25), (10, 0.75)):
            reported = {metric.key: value for metric in objectives()[key].reports}
            run.append(Validation(step=step, loss=1.0 - value, best=True, metrics=reported))
        return run

    return made


@pytest.mark.parametrize("key", list(objectives()))
def test_an_objective_reports_what_it_declares(key: str) -> None:
    rows = 4
    ids, mask = np.ones((rows, 3), np.int32), np.tile([False, True, True], (rows, 1))
    weight = np.array([1, -1] * (rows // 2), np.float32)
    logprobs = -np.ones(2 * rows, np.float32)
    batch = Batch(ids, np.full(rows, 3, np.int32), mask, np.repeat(np.arange(2, dtype=np.int32), 2), weight, logprobs)
    found = objectives()[key].metrics(Readout(logprobs), batch)
    assert list(found) == [LOSS, *(metric.key for metric in objectives()[key].reports)]


@pytest.mark.parametrize("key", REPORTING)
def test_every_metric_is_a_figure_and_a_curve(key: str, context: Any, trained: Callable[..., Run]) -> None:
    run = trained("one", key)
    watch = context.watch(run.folder).refresh(0)
    shown = measures(context.t, [objectives()[key]])
    live = str(runview.figures(context, watch, Status.RUNNING)), str(runview.curves(context, watch))
    row = facts_of(run)
    of_run = str(detail.drawn(context, run, row, editing=False))
    for measure in shown:
        value = "75%" if measure.metric.share else "0.7500"
        figure = re.compile(rf"<span>{measure.title}</span><b>{value}</b>")
        assert figure.search(live[0]) and figure.search(of_run), measure.key
        assert measure.title in live[1] and measure.title in of_run.partition("figures")[2]
    for drawn in (live[1], of_run):
        charts = drawn.partition(context.t("train.validation_metrics"))[2].partition("</section>")[0]
        assert charts.count("<figure") == len(list(charted(shown))) and charts.count("<polyline") == len(shown)
    assert objectives()[key].key in of_run  # which objective it was


def test_a_comparison_has_a_chart_and_a_column_of_every_metric(context: Any, trained: Callable[..., Run]) -> None:
    found = [(run, facts_of(run)) for run in (trained(key, key) for key in objectives())]
    page = str(compare.drawn(context, found, Look()))
    for measure in measures(context.t, objectives().values()):
        assert f"<h3>{measure.title}</h3>" in page and f">{measure.title}</th>" in page
    charts = page.partition(context.t("train.validation_metrics"))[2].partition("</section>")[0]
    reported = sum(len(objective.reports) for objective in objectives().values())
    assert charts.count("<polyline") == reported  # one line each: only the run that has this objective


def test_a_run_that_reports_the_loss_alone_has_no_empty_card(context: Any, trained: Callable[..., Run]) -> None:
    (plain,) = [key for key in objectives() if key not in REPORTING]
    watch = context.watch(trained("plain", plain).folder).refresh(0)
    assert runview.metric_figures(context, watch) == [] and str(runview.metric_charts(context, watch)) == ""


def test_foreign_objectives_and_values_are_left_out(context: Any, trained: Callable[..., Run]) -> None:
    run = trained("strange", REPORTING[0])
    key = objectives()[REPORTING[0]].reports[0].key
    run.append(Validation(step=20, loss=1.0, best=False, metrics={key: "<b>", "new": 1.0, "flag": True}))
    watch = context.watch(run.folder).refresh(0)
    assert watch.metric(key) == [(0, 0.25), (10, 0.75)] and watch.metric("flag") == []
    assert "<b>" not in str(runview.metric_charts(context, watch))
    file = run.folder / "run.json"
    for text in ("{", '{"objective": "of a later version"}', '{"objective": [1]}'):
        file.write_text(text, "utf-8")
        unknown = Watch(run).refresh(0)
        assert unknown.objective is None and runview.metric_figures(context, unknown) == []
    file.write_text("{}", "utf-8")  # of a version before objectives
    assert Watch(run).objective is objectives()["sft"]
