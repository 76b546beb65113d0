"""A small hub for tests of models (tests/hubserver.py), and no keyring of the user's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_local.system import paths
from hubserver import Hub, serving


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one model, some/tiny; HF_ENDPOINT points at it."""
    with serving(tmp_path / "served") as made:
        monkeypatch.setenv("HF_ENDPOINT", made.address)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield made


@pytest.fixture
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Preferences of this test's own; child processes see them too."""
    monkeypatch.setenv(paths.CONFIG_VARIABLE, str(tmp_path / "config"))


@pytest.fixture(autouse=True)
def keyring_in_memory() -> Iterator[None]:
    """No test sees the user's keyring: a real backend that keeps its passwords in memory."""
    import keyring
    from keyring.backend import KeyringBackend
    from keyring.errors import PasswordDeleteError

    class Memory(KeyringBackend):
        priority = 1  # type: ignore[assignment]

        def __init__(self) -> None:
            super().__init__()
            self.kept: dict[tuple[str, str], str] = {}

        def get_password(self, service: str, username: str) -> str | None:
            return self.kept.get((service, username))

        def set_password(self, service: str, username: str, password: str) -> None:
            self.kept[service, username] = password

        def delete_password(self, service: str, username: str) -> None:
            if (service, username) not in self.kept:
                raise PasswordDeleteError(username)
            del self.kept[service, username]

    before = keyring.get_keyring()
    keyring.set_keyring(Memory())
    yield
    keyring.set_keyring(before)
