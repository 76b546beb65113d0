"""Settings: language and appearance, folders and drives, network and token, diagnostics, quitting."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from finetune_local import __version__
from finetune_local.gui.i18n.strings import sentence
from finetune_local.gui.widgets import controls, parts
from finetune_local.gui.widgets.html import Html, h
from finetune_local.models.hub.access import forget_token, store_token, token_place
from finetune_local.models.hub.repository import endpoint
from finetune_local.system import paths
from finetune_local.system.errors import DiskFull, SpecError
from finetune_local.system.machine import drives
from finetune_local.system.messages import as_message, msg
from finetune_local.system.paths import located
from finetune_local.system.preferences import Preferences

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context
    from finetune_local.gui.shell.windows import Window

TITLE, ORDER = "nav.settings", 90
SOLVES = (DiskFull,)
AT_ONCE = ("language", "theme", "notify", "offline")
"""Preferences saved on every change; the others are saved when their field loses focus."""


def build(context: Context) -> None:
    """Build the page (see gui/shell/main.py)."""
    SettingsPage(context).build()


class SettingsPage:
    """The page's components and their handlers."""

    def __init__(self, context: Context) -> None:
        self.context, self.t = context, context.t
        self.fields = Preferences.model_fields

    def build(self) -> None:
        """Create the components and connect their events."""
        import gradio as gr

        t = self.t
        self.controls: dict[str, Any] = {}
        parts.view(parts.header(t("settings_page.title"), ""))
        with gr.Row(elem_classes=["settings-columns"]):
            with gr.Column(min_width=320):
                self._group(t("settings_page.appearance"), ("language", "theme", "notify"))
                with gr.Group(elem_classes=["settings-group"]):
                    parts.view(h("h2", t("settings_page.network")))
                    self._control("offline")
                    self.token_state = parts.view(id="token-state")
                    self.token = gr.Textbox(
                        label=t("settings_page.token"), info=t("settings_page.token_help"), type="password", elem_id="hub-token",
                        max_lines=1,
                    )  # fmt: skip
                    with gr.Row():
                        self.keep = gr.Button(t("settings_page.token_save"), size="sm", elem_id="token-keep")
                        self.forget = gr.Button(t("settings_page.token_delete"), size="sm", elem_id="token-forget")
            with gr.Column(min_width=320), gr.Group(elem_classes=["settings-group"]):
                parts.view(h("h2", t("settings_page.folders")))
                for name in ("home", "model_folders", "exports"):
                    self._control(name)
                    into = controls.element_id(f"preferences.{name}")
                    parts.view(
                        h(
                            "button", t("common.browse"), type="button", class_="button small needs-window",
                            data_pick="folder", data_into=into,
                        )
                    )  # fmt: skip
                self.drives = parts.view(id="drives")
        self.machine = parts.view(id="diagnostics")
        self.leave = parts.view(id="leave")
        self._wire()

    def _group(self, title: str, names: tuple[str, ...]) -> None:
        import gradio as gr

        with gr.Group(elem_classes=["settings-group"]):
            parts.view(h("h2", title))
            for name in names:
                self._control(name)

    def _control(self, name: str) -> None:
        self.controls[name] = controls.control(self.t, f"preferences.{name}", self.fields[name])

    def _wire(self) -> None:
        context = self.context
        views = [self.token_state, self.drives, self.machine, self.leave]
        context.on_show("settings", self._show, [*self.controls.values(), *views])
        context.on_tick("settings", self._tick, self.machine)
        for name, control in self.controls.items():

            def change(window: Window, value: Any, name: str = name) -> dict[Any, Any]:
                return self._change(window, name, value)

            # The page itself applies a new theme (app.js); it reloads for a new language.
            js = "(value) => { ftl.theme(value); return [value]; }" if name == "theme" else None
            trigger = control.input if name in AT_ONCE else control.blur
            context.on(trigger, change, control, [control, self.drives], js=js)
            if name not in AT_ONCE:
                context.on(control.submit, change, control, [control, self.drives])
        context.on(self.keep.click, self._keep_token, self.token, [self.token, self.token_state, context.notice])
        context.on(self.forget.click, self._forget_token, None, [self.token_state])
        context.on(self.machine.click, self._press, None, self.machine)
        context.on(self.leave.click, self._press, None, self.machine)

    def _show(self, window: Window) -> dict[Any, Any]:
        now = self.context.preferences
        shown = {
            self.controls[name]: controls.control_value(field, getattr(now, name))
            for name, field in self.fields.items()
        }
        return {
            **shown,
            self.token_state: self._token(),
            self.drives: self._drives(),
            self.machine: self._machine(window),
            self.leave: self._leave(),
        }

    def _tick(self, window: Window) -> dict[Any, Any]:
        shown = self._machine(window)
        return {self.machine: shown} if window.changed("diagnostics", shown) else {}

    def _change(self, _window: Window, name: str, value: Any) -> dict[Any, Any]:
        field = self.fields[name]
        given = controls.setting_value(field, value)
        new = field.default if given is None else given
        if name == "home" and new and not located(str(new)).is_dir():
            raise SpecError(msg("{folder}: folder not found. Create it first, or choose another.", folder=new))
        if new == getattr(self.context.preferences, name):
            return {}
        self.context.prefer(**{name: new})
        updates: dict[Any, Any] = {self.drives: self._drives()}
        if name == "home":
            updates[self.context.notice] = parts.notice(
                self.t, "note", self.t("settings_page.home_changed"), self.t("settings_page.home_changed_text")
            )
        return updates

    def _keep_token(self, _window: Window, token: str) -> dict[Any, Any]:
        if not token.strip():
            raise SpecError(as_message(self.t("settings_page.token_empty")))
        store_token(token, endpoint())
        done = parts.success_notice(self.t, self.t("settings_page.token_saved", place=endpoint()))
        return {self.token: "", self.token_state: self._token(), self.context.notice: done}

    def _forget_token(self, _window: Window) -> dict[Any, Any]:
        forget_token(endpoint())
        return {self.token_state: self._token()}

    def _press(self, window: Window, event: Any) -> dict[Any, Any]:
        do, _, _ = parts.pressed(event)
        if do == "refresh":
            self.context.machine.refresh()
        elif do == "quit":
            self.context.quit()
        return {self.machine: self._machine(window)}

    # ── views ──────────────────────────────────────────────────────────────────────────────────────────────

    def _token(self) -> Html:
        place = token_place(endpoint())
        return h(
            "p",
            self.t(f"settings_page.token_{place}", place=endpoint()),
            class_="hint good" if place != "none" else "hint",
        )

    def _drives(self) -> Html:
        t, f = self.t, self.context.f
        home = self.context.home.root
        rows = [
            (
                drive.path,
                f.size(drive.total_bytes),
                (f.size(drive.free_bytes), "number"),
                t("settings_page.here") if drive.holds(home) else "",
            )
            for drive in drives()
        ]
        used = h("p", t("settings_page.home_now", place=str(home)), class_="hint")
        headings = [t("settings_page.drive"), t("settings_page.size"), t("settings_page.free"), ""]
        return h("div", used, parts.table(headings, rows, caption=t("settings_page.drives")))

    def _machine(self, _window: Window) -> Html:
        t, machine = self.t, self.context.machine
        found = dict(machine.facts)
        text = json.dumps(
            {**found, "app": __version__, "config": str(paths.preferences_file())}, indent=2, ensure_ascii=False
        )
        notes = [h("p", sentence(t, note), class_="hint") for note in found.get("notes", ())]
        return parts.card(
            h("p", t("home.checking"), class_="soft") if machine.refreshing and not found else None,
            h("p", sentence(t, machine.problem), class_="hint bad") if machine.problem else None,
            *notes,
            h(
                "div",
                h("button", t("settings_page.copy"), type="button", class_="button small", data_copy=text),
                parts.button(t("home.refresh"), "refresh", kind="small", disabled=machine.refreshing),
                class_="row",
            ),
            h("details", h("summary", t("common.details")), h("pre", text, tabindex="0"), data_keep="diagnostics"),
            title=t("settings_page.diagnostics"),
        )

    def _leave(self) -> Html:
        t = self.t
        return parts.card(
            h("p", t("settings_page.quit_text"), class_="soft"),
            parts.button(t("settings_page.quit"), "quit", kind="danger", confirm=t("settings_page.quit_confirm")),
            title=t("settings_page.quit"),
        )
