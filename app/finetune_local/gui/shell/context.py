"""What every page shares: the home, the strings, the worker processes, and `on()`, which connects an event with a handler.

A handler is called with the window that the event came from. An error of the app appears as a sentence in the notice at the top of the
page, with a button to the page where it can be solved. Any other exception appears as a defect, with its traceback.
"""

from __future__ import annotations

import inspect
import locale as system_locale
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from finetune_local.chat.client import ChatClient
from finetune_local.gui.i18n.formats import Formats
from finetune_local.gui.i18n.strings import Language, Strings
from finetune_local.gui.shell.ended import Endings
from finetune_local.gui.shell.lookups import MachineFacts
from finetune_local.gui.shell.windows import FIRST, Window, Windows
from finetune_local.gui.widgets.html import Html
from finetune_local.gui.widgets.parts import defect_notice, error_notice, pressed
from finetune_local.runtime.rpc import RpcClient
from finetune_local.system import preferences
from finetune_local.system.errors import FinetuneError
from finetune_local.system.files import FREE_SPACE, failure
from finetune_local.system.paths import Home
from finetune_local.training.run_folder.runs import Run
from finetune_local.training.run_folder.watch import Watch

Handler = Callable[..., Any]
CHAT, LOOKUPS = "finetune_local.chat.worker", "finetune_local.gui.lookups.worker"


class Context:
    """The context of one server. It is created before Gradio is imported."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.preferences = preferences.load()
        self.windows = Windows(home)
        self.browser_locale = ""
        self.rebuild: Callable[[], None] = lambda: None
        self.chat_rpc = RpcClient(CHAT, (str(home.root),), home.window / "chat.log")
        """The process that loads a model and answers."""
        self.chat = ChatClient(self.chat_rpc)
        """Answers in progress. They continue when the page that requested them is closed."""
        self.lookups = RpcClient(LOOKUPS, (str(home.root),), home.window / "lookups.log")
        """The process that previews data; it keeps tokenizers in memory."""
        self.machine = MachineFacts(home, RpcClient(LOOKUPS, (str(home.root),), home.window / "machine.log"))
        self.endings = Endings(home)
        self.quit: Callable[[], None] = lambda: None
        self.solution: Callable[[Strings, FinetuneError], Html | None] = lambda _t, _error: None
        """A button to the page where an error can be solved. The modules of pages need this class, so main.py sets it."""
        self.speak()
        self.nav: Any = None
        self.notice: Any = None
        self._watched: dict[Path, Watch] = {}
        self._ticks: list[tuple[str | None, Handler, list[Any]]] = []
        self._shows: dict[str, list[tuple[Handler, list[Any]]]] = {}
        self._offers: dict[str, tuple[Handler, list[Any]]] = {}

    # ── words ──────────────────────────────────────────────────────────────────────────────────────────────

    def speak(self) -> None:
        """Update `t` and `f` to the preferred language and the browser's locale."""
        self.t = Strings(chosen_language(self.preferences.language))
        self.f = Formats(self.browser_locale or ("zh-CN" if self.t.language == "zh" else "en"), self.t)

    def prefer(self, **changed: Any) -> None:
        """Save preferences. A change of language rebuilds the page. Raises SpecError, DiskFull."""
        before = self.t.language
        self.preferences = preferences.save(**changed)
        self.speak()
        if self.t.language != before:
            self.rebuild()

    def watch(self, folder: Path) -> Watch:
        """The events of a run. All windows share it, so that they are read once."""
        if folder not in self._watched:
            self._watched[folder] = Watch(Run(folder))
        return self._watched[folder]

    # ── wiring ─────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self) -> None:
        """Forget all handlers, before the page is rebuilt."""
        self._ticks, self._shows, self._offers = [], {}, {}

    def on(
        self,
        trigger: Any,
        fn: Handler,
        inputs: Any = None,
        outputs: Any = None,
        *,
        js: str | None = None,
        latest: bool = False,
        drop: bool = False,
        cancels: Any = None,
    ) -> Any:
        """Call `fn(window, *inputs)` on an event. A generator function may update its outputs several times.

        A parameter of `fn` called `event` receives Gradio's EventData. `fn` returns one value per output, a dict with some of them, or
        None for no change. Of the events that arrive while it runs, `latest` keeps the last (for typing), and `drop` keeps none (for
        ticks, which would pile up on a busy machine).
        """
        targets = _listed(outputs)
        return trigger(
            self.guarded(fn, targets),
            inputs,
            [*targets, self.notice],
            js=js,
            show_progress="hidden",
            api_visibility="private",
            concurrency_limit=8,
            trigger_mode="always_last" if latest else "once" if drop else "multiple",
            cancels=cancels,
        )

    def on_show(self, page: str, fn: Handler, outputs: Any) -> None:
        """Call `fn(window)` whenever a page comes into view."""
        self._shows.setdefault(page, []).append((fn, _listed(outputs)))

    def on_tick(self, page: str | None, fn: Handler, outputs: Any) -> None:
        """Call `fn(window)` each second while a page is in view (None: any page)."""
        self._ticks.append((page, fn, _listed(outputs)))

    def on_notice(self, do: str, fn: Handler, outputs: Any) -> None:
        """Call `fn(window, value)` when the notice's button with this data-do is pressed, which also closes the notice."""
        self._offers[do] = (fn, _listed(outputs))

    def offers(self) -> tuple[Handler, list[Any]]:
        """One handler for all buttons of the notice, and its outputs."""
        wired = dict(self._offers)

        def press(window: Window, event: Any) -> dict[Any, Any]:
            do, value, _ = pressed(event)
            closed = {self.notice: ""}
            if do == "go":
                return {**closed, self.nav: self.go(window, value)}
            if do in wired:
                fn, outputs = wired[do]
                return {**closed, **_named(fn(window, value), outputs)}
            return closed

        return press, _union([[self.nav], *(outputs for _, outputs in wired.values())])

    def shows(self, page: str) -> tuple[Handler, list[Any]]:
        """One handler for all that on_show() connected with a page, and its outputs."""
        wired = self._shows.get(page, [])

        def show(window: Window) -> dict[Any, Any]:
            window.shown.clear()
            return _merged(_named(fn(window), outputs) for fn, outputs in wired)

        return show, _union([outputs for _, outputs in wired])

    def ticks(self) -> tuple[Handler, list[Any]]:
        """One handler for all that on_tick() connected, and its outputs."""
        wired = self._ticks

        def tick(window: Window) -> dict[Any, Any]:
            shown = window.shared.page or FIRST
            return _merged(_named(fn(window), outputs) for page, fn, outputs in wired if page in (None, shown))

        return tick, _union([outputs for _, _, outputs in wired])

    def guarded(self, fn: Handler, outputs: Sequence[Any]) -> Handler:
        """`fn` as a handler for Gradio, which fills in the window and shows errors in the notice. See on()."""
        import gradio as gr

        wants_event = "event" in inspect.signature(fn).parameters
        unchanged = {self.notice: gr.skip()}  # an empty dict would be taken for a value

        def call(request: Any, event: Any, inputs: tuple[Any, ...]) -> Any:
            return fn(self.windows.of(request.session_hash), *inputs, **({"event": event} if wants_event else {}))

        def failed(error: Exception) -> dict[Any, Any]:
            # An OSError for a path that the user typed is no defect.
            known = error if isinstance(error, FinetuneError) else failure(error, self.home.root, FREE_SPACE)
            if known is not None:
                return {self.notice: self.problem(known)}
            traceback.print_exception(error)
            return {self.notice: defect_notice(self.t, "".join(traceback.format_exception(error)))}

        def once(request: Any, event: Any, *inputs: Any) -> dict[Any, Any]:
            try:
                return _named(call(request, event, inputs), outputs) or unchanged
            except Exception as error:  # noqa: BLE001 - every error is shown
                return failed(error)

        def piecewise(request: Any, event: Any, *inputs: Any) -> Iterator[dict[Any, Any]]:
            try:
                for update in call(request, event, inputs):
                    yield _named(update, outputs) or unchanged
            except Exception as error:  # noqa: BLE001 - every error is shown
                yield failed(error)

        handler: Handler = piecewise if inspect.isgeneratorfunction(fn) else once
        handler.__annotations__ = {"request": gr.Request, "event": gr.EventData}  # Gradio reads from these what to pass
        return handler

    def problem(self, error: FinetuneError) -> Html:
        """The notice of an error, with a button to the page where it can be solved."""
        button = self.solution(self.t, error)
        return error_notice(self.t, error, *([button] if button else []))

    def go(self, window: Window, page: str) -> Any:
        """An update for `nav` that opens a page."""
        import gradio as gr

        window.shared.page = page
        return gr.Tabs(selected=page)

    def close(self) -> None:
        """End the server's child processes. Runs and jobs continue."""
        self.windows.close()
        self.chat_rpc.close()
        self.lookups.close()
        self.machine.close()


def chosen_language(preferred: preferences.Language) -> Language:
    """The interface language. "auto" is Chinese on a Chinese system, else English."""
    if preferred != "auto":
        return preferred
    named = [os.environ.get(name, "") for name in ("LC_ALL", "LC_MESSAGES", "LANG")]
    named.append(system_locale.getlocale()[0] or "")
    first = next((name for name in named if name and name not in ("C", "C.UTF-8", "POSIX")), "")
    return "zh" if first.lower().startswith(("zh", "chinese")) else "en"


def _listed(outputs: Any) -> list[Any]:
    if outputs is None:
        return []
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def _named(value: Any, outputs: Sequence[Any]) -> dict[Any, Any]:
    """A handler's result as {component: update}."""
    if value is None:
        return {}
    if isinstance(value, dict) and all(hasattr(key, "_id") for key in value):
        return value
    values = value if isinstance(value, tuple) else (value,)
    if len(values) != len(outputs):
        raise RuntimeError(f"{len(values)} values for {len(outputs)} outputs")
    return dict(zip(outputs, values, strict=True))


def _merged(found: Iterable[dict[Any, Any]]) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for part in found:
        result |= part
    return result


def _union(lists: Sequence[Sequence[Any]]) -> list[Any]:
    return list({component._id: component for outputs in lists for component in outputs}.values())
