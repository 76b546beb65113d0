"""An error leads to the page where the user can solve it."""

from __future__ import annotations

import pytest

from finetune_local.gui.i18n.strings import Strings
from finetune_local.gui.shell.pages import solution
from finetune_local.models.resolve import find
from finetune_local.system.errors import DataError, FinetuneError, SpecError
from finetune_local.system.messages import msg
from finetune_local.system.paths import Home


def page_of(error: FinetuneError) -> str:
    return str(solution(Strings("en"), error) or "")


def test_a_missing_model_leads_to_the_models(home: Home) -> None:
    with pytest.raises(FinetuneError) as raised:
        find("no-such-model", home)
    assert 'data-value="model"' in page_of(raised.value)


def test_unusable_data_leads_to_the_data() -> None:
    assert 'data-value="data"' in page_of(DataError(msg("x: no rows.")))


def test_a_wrong_setting_leads_nowhere() -> None:
    assert page_of(SpecError(msg("x"))) == ""
