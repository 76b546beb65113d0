"""A file in export/targets/ is all there is to add: the window, the command line, the offers and the docs show it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_local.export import targets as package
from finetune_local.export.pipeline import export_named, offers
from finetune_local.gui.i18n.formats import Formats
from finetune_local.gui.i18n.strings import Strings
from finetune_local.gui.pages.export import form
from finetune_local.gui.shell.windows import Window
from finetune_local.system.paths import Home
from tiny import tiny_model

ROOT = Path(__file__).resolve().parents[3]
MODULE = '''
"""A target that only writes a name."""
from finetune_local.export.targets import Command, Quant, Target
from finetune_local.export.verification.verify import Verification

class Scroll(Target):
    key, title, summary = "scroll", "Scroll", "For readers of parchment."
    quants = (Quant("vellum", "Vellum", "Keeps for centuries."), Quant("reed", "Reed", "Cheap.", False))

    def is_folder(self, quant):
        return False

    def file_name(self, name, quant):
        return f"{name}.{quant}"

    def check_source(self, source):
        pass

    def size(self, source, quant):
        return 7

    def check_values(self, source, out, quant):
        pass

    def write(self, source, out, quant, progress):
        out.write_text(source.name, "utf-8")
        return [out]

    def check(self, source, out, quant, backend, progress, skip=()):
        return Verification(True, tensors=1)

    def commands(self, out, files):
        return [Command("unroll", "Read it aloud", f"unroll {out}")]

TARGET = Scroll()
'''


@pytest.fixture(autouse=True)
def scroll(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "scroll.py").write_text(MODULE, "utf-8")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / "targets")])
    package.targets.cache_clear()
    yield
    package.targets.cache_clear()
    sys.modules.pop(f"{package.__name__}.scroll", None)


def script(path: Path) -> Any:
    """A module from its file, not shared with other tests."""
    spec = importlib.util.spec_from_file_location(f"{path.stem}_of_this_test", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_offered_and_exported(home: Home, tmp_path: Path) -> None:
    tiny_model(home.models / "base")
    offer = offers(home, "base", "base").targets["scroll"]
    assert [(quant.key, quant.bytes) for quant in offer.quants] == [("vellum", 7), ("reed", 7)]
    assert offer.recommended == "vellum"
    done = export_named(home, "base", "scroll", "reed", tmp_path / "out.reed", model="base")
    assert done.out.read_text("utf-8") == "base" and done.verification.passed


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_window_shows_it_by_its_own_words(home: Home, language: Any) -> None:
    tiny_model(home.models / "base")
    t = Strings(language)
    context: Any = SimpleNamespace(t=t, f=Formats(language, t), home=home)
    window = Window(None, "w", {"export_form": {"target": "scroll"}})
    html = "".join(map(str, form._choices(context, window, offers(home, "base", "base"))))
    for words in ("Scroll", "For readers of parchment.", "Vellum", "Keeps for centuries.", "Reed", "base.vellum"):
        assert words in html


def test_the_command_line_and_the_docs_list_it() -> None:
    options = {option.name: option for option in script(ROOT / "app/finetune_local/cli/export.py").command.params}
    assert "scroll: Scroll" in options["target"].help and "scroll: vellum, reed" in options["quant"].help
    docs = script(ROOT / "packaging/make_docs.py")
    assert "| `scroll` | Scroll | `vellum`, `reed` |" in docs._targets() and "`reed`" in docs._quants()
