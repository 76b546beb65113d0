"""Start the app: one server in this process, and a window that is another. Closing the window ends the server; runs and jobs have
their own processes and go on.
"""

from __future__ import annotations

import errno
import json
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Literal

from finetune_local import __version__
from finetune_local.gui.window import opening
from finetune_local.gui.window.displays import Chromium, Display, WebView
from finetune_local.gui.window.gtk import no_screen
from finetune_local.gui.window.instance import Instance
from finetune_local.gui.window.notify import Notifier, tell
from finetune_local.gui.window.opening import browse
from finetune_local.system import paths
from finetune_local.system.errors import SpecError
from finetune_local.system.messages import msg
from finetune_local.system.paths import Home
from finetune_local.system.untrusted.text import parse_json_object

if TYPE_CHECKING:
    from finetune_local.gui.http.server import Server
    from finetune_local.gui.shell.context import Context
    from finetune_local.system.preferences import Language

Show = Literal["window", "browser", "nothing"]
Say = Callable[[str], None]

LEAVE = "Quit it in its settings, or here with Ctrl-C."
BACKGROUNDS = {"dark": "#14181d", "light": "#f7f8f9", "system": "#f7f8f9"}
"""What the window shows before the page is there, by theme."""

WORDS = (
    "menu_file", "open_data", "quit", "menu_view", "reload", "zoom_in", "zoom_out", "zoom_reset", "full_screen", "menu_help",
    "diagnostics", "diagnostics_here", "about", "about_text", "open_file", "open_files", "open_folder", "save_file",
)  # fmt: skip


@dataclass(frozen=True)
class LaunchRequest:
    """How the app is to be started: what shows it, at which port (0: a free one), in which language (None: the preferred)."""

    show: Show = "window"
    port: int = 0
    language: Language | None = None


def launch(home: Home, wanted: LaunchRequest, say: Say) -> None:
    """Run the app until its window is closed, or show the one that runs. `say` takes sentences for the user.

    Raises SpecError where the port is taken, RunError where the running app does not answer.
    """
    instance = Instance(home)
    if not instance.take():
        _show_other(home, instance, wanted, say)
        return
    try:
        app = App(home, wanted, say)
        instance.tell(app.server.port, app.server.access.control_key)
        app.run()
    finally:
        instance.release()


def end(home: Home, say: Say) -> None:
    """End the app of this home, where it runs. Raises RunError where it does not answer."""
    say("Finetune Local has ended." if Instance(home).quit() else f"Finetune Local is not running for {home.root}.")


class App:
    """The server and what shows it."""

    def __init__(self, home: Home, wanted: LaunchRequest, say: Say) -> None:
        screen = no_screen() is None
        window = WebView(home) if wanted.show == "window" and screen else None
        if window is not None:
            window.begin()  # it loads its libraries while we load ours
        self._say, self._wanted = say, wanted
        self._ending = threading.Event()
        self.displays: list[Display] = [window, Chromium(home)] if window is not None else []
        self.current: Display | None = None
        try:
            self.context = _context(home, wanted.language)
            self.server = _server(home, self.context, wanted.port)
        except BaseException:
            if window is not None:
                window.close()
            raise
        if window is not None:
            window.told = self._told()
            window.opened = lambda: self.server.access.opened
        self.server.access.on_control = self._control
        self.context.quit = self.server.stop
        self.notifier = Notifier(self.context)

    def run(self) -> None:
        """Until the window is closed, Ctrl-C, or Quit in the settings."""
        self.server.socket.listen(128)  # so that the window finds somebody, however early it is
        for name, handler in (("SIGTERM", _interrupt), ("SIGHUP", self._hang_up)):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), handler)
        self.notifier.start()
        threading.Thread(target=self._display, name="display", daemon=True).start()
        try:
            self.server.run()
        except KeyboardInterrupt:
            self.server.stop()
        finally:
            self._ending.set()
            self.notifier.stop()
            if self.current is not None:
                self.current.close()
            opening.remove_launch_pages(opening.launch_page_folder(self.context.home.window))
        if (still := _still_running(self.context)) is not None:
            self._say(f"Closed. {still[0]}")

    def _display(self) -> None:
        """In a thread: show the page the best way that works, until it is closed."""
        for display in self.displays:
            while not self._ending.is_set():
                self.current = display
                outcome = display.present(self.server.access.link())
                if self._ending.is_set():
                    return
                if outcome.closed:
                    self._closed()
                    return
                if outcome.shown:
                    self._say(f"Finetune Local is shown. {LEAVE}")
                    return
                self._say(outcome.reason)
                if not outcome.again:
                    break
        self.current = None
        if self._ending.is_set():
            return
        if self._wanted.show != "nothing" and browse(self.server.access.link(), self.context.home.window):
            self._say(f"Finetune Local is open in your browser. {LEAVE}")
        self._say(f"Open it by this link, which works once:\n{self.server.access.link()}")

    def _closed(self) -> None:
        if (still := _still_running(self.context)) is not None and self.context.preferences.notify:
            tell(*still[1])
        self.server.stop()

    def _control(self, do: str) -> str:
        """What another start of the app asks. Called by the server while it serves, so it may not wait."""
        if do == "quit":
            self.server.stop()
            return json.dumps({"ending": True})
        if do == "show" and self.current is not None and self.current.show(self.server.access.link()):
            return json.dumps({"shown": True})
        return json.dumps({"link": self.server.access.link()}) if do in ("show", "link") else ""

    def _told(self) -> dict[str, object]:
        """All that window.py needs besides the link."""
        t, home = self.context.t, self.context.home
        words = {name: t(f"desktop.{name}") for name in WORDS}
        words |= {"app": t("common.app"), "close": t("common.close")}
        words["version"] = t("desktop.version", version=__version__)
        return {
            "origin": f"http://127.0.0.1:{self.server.port}",
            "page": self.server.access.page,
            "words": words,
            "icon": str(paths.assets() / "ui" / "icon.png"),
            "place": str(home.window / "place.json"),
            "diagnostics": str(home.window / "machine.json"),
            "background": BACKGROUNDS[self.context.preferences.theme],
        }

    def _hang_up(self, _number: int, _frame: FrameType | None) -> None:
        self.server.stop()


def _show_other(home: Home, instance: Instance, wanted: LaunchRequest, say: Say) -> None:
    answer = parse_json_object(instance.ask("show" if wanted.show == "window" else "link"))
    if "link" not in answer:
        say("Finetune Local is running already: here is its window.")
    elif wanted.show != "nothing" and browse(answer["link"], home.window):
        say("Finetune Local is running already: your browser shows it.")
    else:
        say(f"Finetune Local is running already. Open it by this link, which works once:\n{answer['link']}")


def _context(home: Home, language: Language | None) -> Context:
    from finetune_local.gui.shell.context import Context

    context = Context(home)
    if language is not None:
        context.preferences = context.preferences.model_copy(update={"language": language})
        context.speak()
    return context


def _server(home: Home, context: Context, port: int) -> Server:
    from finetune_local.gui.http.server import Server

    try:
        return Server(home, context, port)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        why = "another program uses it" if error.errno == errno.EADDRINUSE else "this user may not use it"
        raise SpecError(
            msg("--port {port}: {why}. Choose another, or leave --port out: a free one is found.", port=port, why=why)
        ) from None


def _still_running(context: Context) -> tuple[str, tuple[str, str]] | None:
    """What goes on without the app: as a sentence, and as title and text in the window's language. None where nothing does."""
    from finetune_local.workspace import work

    t, found = context.t, work.running(context.home)
    if not found:
        return None
    named = ", ".join(f"{one.kind.key} '{one.name}'" for one in found)
    if len(found) > 1:
        text = t("desktop.closed_several", n=len(found))
    else:
        key = found[0].kind.key
        own = f"desktop.closed_{key}"
        text = t(own, name=found[0].name) if t.get(own) else t("desktop.closed_job", name=t(f"jobs.{key}"))
    return f"Still at work: {named}. Open the app again to see it.", (t("desktop.closed_title"), text)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
