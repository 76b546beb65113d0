"""Why a row is rejected, as the Data page shows it: without the advice for the command line, and never empty."""

from __future__ import annotations

import pytest

from finetune_local.data.conversation import other_kind
from finetune_local.gui.i18n.strings import LANGUAGES, Strings
from finetune_local.gui.pages.data.rows import reason_text
from finetune_local.spec.objectives import ROWS, ExampleKind, objectives
from finetune_local.system.messages import msg


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_reason_stays_and_the_flag_goes(language: str) -> None:
    t = Strings(language)  # type: ignore[arg-type]
    kinds: list[ExampleKind] = list(ROWS)
    for objective in objectives().values():
        for kind in kinds:
            if kind not in objective.examples:
                shown = reason_text(t, other_kind(kind, objective))
                assert objective.key in shown and "--" not in shown


@pytest.mark.parametrize("language", LANGUAGES)
def test_advice_alone_is_better_than_nothing(language: str) -> None:
    assert "--format" in reason_text(Strings(language), msg("Use --format openai."))  # type: ignore[arg-type]
    assert "--format" in reason_text(Strings(language), "请用 --format openai。")  # type: ignore[arg-type]
