"""Start the app: a server in this process and a window in another. Closing the window ends the server; runs and jobs have their own
processes and continue.
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
from finetune_local.gui.window.notify import Notifier, notify
from finetune_local.gui.window.opening import browse
from finetune_local.gui.window.window import WindowOptions
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
"""Background colours of the window before the page is drawn, by theme."""

WORDS = (
    "menu_file", "open_data", "quit", "menu_view", "reload", "zoom_in", "zoom_out", "zoom_reset", "full_screen", "menu_help",
    "diagnostics", "diagnostics_here", "about", "about_text", "open_file", "open_files", "open_folder", "save_file",
)  # fmt: skip


@dataclass(frozen=True)
class LaunchRequest:
    """How to start the app: what shows it, at which port (0: a free one), and in which language (None: the preferred one)."""

    show: Show = "window"
    port: int = 0
    language: Language | None = None


def launch(home: Home, request: LaunchRequest, say: Say) -> None:
    """Run the app until its window is closed. If it runs already, show its window. `say` receives sentences for the user.

    Raises SpecError if the port is in use, RunError if the running app does not answer.
    """
    instance = Instance(home)
    if not instance.take():
        _show_other(home, instance, request, say)
        return
    try:
        app = App(home, request, say)
        instance.publish(app.server.port, app.server.access.control_key)
        app.run()
    finally:
        instance.release()


def end(home: Home, say: Say) -> None:
    """End the app of this home, if it runs. Raises RunError if it does not answer."""
    say("Finetune Local has ended." if Instance(home).quit() else f"Finetune Local is not running for {home.root}.")


class App:
    """The server and the window that shows its page."""

    def __init__(self, home: Home, request: LaunchRequest, say: Say) -> None:
        screen = no_screen() is None
        window = WebView(home) if request.show == "window" and screen else None
        if window is not None:
            window.begin()  # its libraries load while the server's do
        self._say, self._request = say, request
        self._ending = threading.Event()
        self.displays: list[Display] = [window, Chromium(home)] if window is not None else []
        self.current: Display | None = None
        try:
            self.context = _context(home, request.language)
            self.server = _server(home, self.context, request.port)
        except BaseException:
            if window is not None:
                window.close()
            raise
        if window is not None:
            window.options = self._window_options()
            window.opened = lambda: self.server.access.opened
        self.server.access.on_control = self._control
        self.context.quit = self.server.stop
        self.notifier = Notifier(self.context)

    def run(self) -> None:
        """Serve until the window is closed, Ctrl-C is pressed, or the user quits in the settings."""
        self.server.socket.listen(128)  # so that an early window can connect
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
        """Show the page in the first window that works, until it is closed. Runs in a thread."""
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
        if self._request.show != "nothing" and browse(self.server.access.link(), self.context.home.window):
            self._say(f"Finetune Local is open in your browser. {LEAVE}")
        self._say(f"Open it by this link, which works once:\n{self.server.access.link()}")

    def _closed(self) -> None:
        if (still := _still_running(self.context)) is not None and self.context.preferences.notify:
            notify(*still[1])
        self.server.stop()

    def _control(self, do: str) -> str:
        """Answer a control request of another start of the app. The server calls this while serving, so it must not block."""
        if do == "quit":
            self.server.stop()
            return json.dumps({"ending": True})
        if do == "show" and self.current is not None and self.current.show(self.server.access.link()):
            return json.dumps({"shown": True})
        return json.dumps({"link": self.server.access.link()}) if do in ("show", "link") else ""

    def _window_options(self) -> WindowOptions:
        """The options of the window, without a link."""
        t, home = self.context.t, self.context.home
        words = {name: t(f"desktop.{name}") for name in WORDS}
        words |= {"app": t("common.app"), "close": t("common.close")}
        words["version"] = t("desktop.version", version=__version__)
        return WindowOptions(
            origin=f"http://127.0.0.1:{self.server.port}",
            page=self.server.access.page,
            words=words,
            icon=str(paths.assets() / "ui" / "icon.png"),
            place=str(home.window / "place.json"),
            diagnostics=str(home.window / "machine.json"),
            background=BACKGROUNDS[self.context.preferences.theme],
        )

    def _hang_up(self, _number: int, _frame: FrameType | None) -> None:
        self.server.stop()


def _show_other(home: Home, instance: Instance, request: LaunchRequest, say: Say) -> None:
    answer = parse_json_object(instance.request("show" if request.show == "window" else "link"))
    if "link" not in answer:
        say("Finetune Local is running already: here is its window.")
    elif request.show != "nothing" and browse(answer["link"], home.window):
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
            msg("--port {port}: {why}. Choose another, or remove --port to use a free one.", port=port, why=why)
        ) from None


def _still_running(context: Context) -> tuple[str, tuple[str, str]] | None:
    """Runs and jobs that continue without the app, as a sentence, and as the title and text of a notification; None if there are none."""
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
    return f"Still running: {named}. Open the app again to see it.", (t("desktop.closed_title"), text)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
