"""Errors by the names they have on disk."""

import pytest

from finetune_local.system import errors


@pytest.mark.parametrize("name", ["SpecError", "DiskFull", "Stopped", "FinetuneError"])
def test_a_code_is_the_class_s_name(name: str) -> None:
    assert errors.error_class(name) is getattr(errors, name)


def test_a_renamed_class_keeps_the_code_that_was_written_before() -> None:
    assert errors.VerificationFailed.code == "GateFailed"
    assert errors.error_class("GateFailed") is errors.VerificationFailed


def test_an_unknown_code_has_no_class() -> None:
    assert errors.error_class("") is None and errors.error_class("typed") is None
