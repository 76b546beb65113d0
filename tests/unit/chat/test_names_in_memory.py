"""What adapters are called once they are in memory."""

from pathlib import Path

from finetune_local.inference.engine import Opened
from finetune_local.system import paths
from made import made_adapter


def test_checkpoints_of_two_runs_are_told_apart(opened: Opened, tiny: Path, home: paths.Home) -> None:
    for name in ("一", "two"):
        folder = home.runs / name / "checkpoints" / "step-000004"
        folder.mkdir(parents=True)
        assert opened.load(str(made_adapter(tiny, folder))) == f"{name} step-000004"
    assert {"一 step-000004", "two step-000004"} <= set(opened.adapters)
