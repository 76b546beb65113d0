"""What the window says of an export's check, program by program."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

import pytest

from finetune_local.export.verification.compare import ReceiverCheck
from finetune_local.export.verification.verify import Verification
from finetune_local.gui.i18n.formats import Formats
from finetune_local.gui.i18n.strings import Language, Strings
from finetune_local.gui.pages.export import view as exportview
from finetune_local.system.messages import msg


def shown(verification: dict[str, Any], language: Language = "en") -> str:
    html = str(exportview._checks(Strings(language), Formats(language, Strings(language)), verification))
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def verification_of(*receivers: ReceiverCheck) -> dict[str, Any]:
    verification = Verification(
        True, backend="torch", precision="fp32", prompts=4, kl_mean=1e-8, kl_max=1e-7, kl_limit=1e-3, tie_tolerance=0.05
    )
    verification.receivers = list(receivers)
    return asdict(verification)


PASSED = ReceiverCheck(
    "transformers", True, version="5.23.0", chats=13, stops=2, tokens=99, equal_texts=4, kl_mean=1e-8, kl_max=1e-7
)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_each_program_has_its_own_result(language: Language) -> None:
    absent = ReceiverCheck(
        "mlx-lm", reason=msg("not verified: {reason}", reason=msg("{module} is not installed", module="mlx_lm"))
    )
    text = shown(verification_of(PASSED, absent), language)
    assert "transformers 5.23.0" in text and "13" in text and "mlx-lm" in text
    wanted = ("passed", "not verified: mlx_lm is not installed") if language == "en" else ("通过", "没有安装 mlx_lm")
    assert all(words in text for words in wanted)


def test_a_program_that_asks_otherwise_is_not_called_passed() -> None:
    other = ReceiverCheck("mlx-lm", False, "mlx-lm asks this template with enable_thinking=False, so the prompt differs from "
                          "the one in training", chats=9, stops=2, tokens=9, kl_mean=1e-8, kl_max=1e-7)  # fmt: skip
    text = shown(verification_of(PASSED, other))
    assert "Opened in mlx-lm not for this program" in text and "so the prompt differs" in text


def test_what_older_versions_wrote_is_shown_as_before() -> None:
    old = verification_of()
    del old["receivers"]
    old |= {"equal_texts": 4, "tokens": 99}
    assert "Greedy answers are equal: 4 of 4" in shown(old)
