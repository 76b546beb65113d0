"""What all tests share: an isolated home, no downloads, few threads, tiny models, and the backends of this machine."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_local.backend import Backend, backends
from finetune_local.system import paths
from offline.sitecustomize import refuse
from tiny import tiny_model

# Nothing above imports a framework, so this comes in time. Tests share a few cores, and tiny models lose by threads.
for _name, _value in {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}.items():
    os.environ.setdefault(_name, _value)

EXPECTED = "FINETUNE_LOCAL_EXPECT_BACKENDS"
SMALL_MODEL = "FINETUNE_LOCAL_SMALL_MODEL"
USABLE = [name for name, backend in backends().items() if backend.missing() is None]


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many mutated inputs tests/fuzz tries."""
    parser.addoption("--thorough", action="store_true", help="tests/fuzz: an hour of inputs instead of a minute")
    parser.addoption("--from-seed", type=int, default=0, help="tests/fuzz: the first input's number")


def pytest_sessionstart(session: pytest.Session) -> None:
    """A backend that CI expects and does not find must not look like a pass."""
    wanted = {name for name in os.environ.get(EXPECTED, "").split(",") if name}
    if lacking := sorted(wanted - set(USABLE)):
        known = backends()
        why = "; ".join(f"{n}: {known[n].missing() if n in known else 'no such package'}" for n in lacking)
        raise pytest.UsageError(f"{EXPECTED} names backends that cannot be used here: {why}")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tests and modules stay to the end: the garbage collector need not look through them each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Neither the user's runs nor their Hugging Face cache are read or written."""
    place = tmp_path_factory.mktemp("isolated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(paths.ENVIRONMENT_VARIABLE, str(place / "home"))
        patch.setenv(paths.CONFIG_VARIABLE, str(place / "config"))
        patch.setenv("HF_HOME", str(place / "huggingface"))
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        yield


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> paths.Home:
    """An empty home of this test's own, under a name with a space and Chinese in it; child processes see it too."""
    place = tmp_path / "my home 主页"
    monkeypatch.setenv(paths.ENVIRONMENT_VARIABLE, str(place))
    return paths.Home(place)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama folder; do not change it."""
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny llama 小")


@pytest.fixture(params=USABLE)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend that can be used here."""
    return backends()[request.param]


@pytest.fixture(scope="session")
def small_model() -> Path:
    """The real small model's folder, for `slow` tests: $FINETUNE_LOCAL_SMALL_MODEL, else fetched once into .cache/."""
    if given := os.environ.get(SMALL_MODEL):
        return Path(given)
    from finetune_local.models.resolve import resolve
    from finetune_local.spec.run import DEFAULT_MODEL

    place = paths.Home(Path(__file__).resolve().parents[1] / ".cache" / "home")
    return resolve(DEFAULT_MODEL, place, lambda *_: None).path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection is refused, in this process and in the Python processes it starts."""
    refuse(monkeypatch.setattr)
    folder = str(Path(__file__).parent / "offline")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")])))
