"""Builds the app in Gradio: the frame, the pages, the theme, and the options for Gradio's server. assets/ui/app.css has all other styles."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from finetune_local.gui.shell import frame
from finetune_local.gui.shell.context import Context
from finetune_local.gui.shell.pages import pages, solution
from finetune_local.gui.shell.windows import FIRST, Window
from finetune_local.gui.widgets import parts
from finetune_local.system import paths

if TYPE_CHECKING:
    import gradio as gr

NAME = "Finetune Local"

SANS = (
    "system-ui",
    "-apple-system",
    "Segoe UI",
    "Noto Sans",
    "PingFang SC",
    "Microsoft YaHei",
    "Noto Sans CJK SC",
    "sans-serif",
)
MONO = (
    "ui-monospace",
    "SF Mono",
    "Cascadia Mono",
    "Consolas",
    "DejaVu Sans Mono",
    "Noto Sans Mono CJK SC",
    "monospace",
)
LIGHT = {
    "ground": "#f5f6f8",
    "surface": "#ffffff",
    "line": "#dde2e8",
    "ink": "#1b2430",
    "soft": "#566171",
    "accent": "#0f766e",
}
DARK = {
    "ground": "#12161b",
    "surface": "#1a2027",
    "line": "#2c343e",
    "ink": "#e5eaf0",
    "soft": "#9ba7b4",
    "accent": "#2dd4bf",
}
_COLOURS = {
    "body_background_fill": "ground",
    "background_fill_primary": "surface",
    "background_fill_secondary": "ground",
    "block_background_fill": "surface",
    "block_border_color": "line",
    "border_color_primary": "line",
    "border_color_accent": "accent",
    "body_text_color": "ink",
    "body_text_color_subdued": "soft",
    "block_label_text_color": "ink",
    "block_title_text_color": "ink",
    "block_info_text_color": "soft",
    "input_background_fill": "surface",
    "input_border_color": "line",
    "input_placeholder_color": "soft",
    "color_accent": "accent",
    "button_secondary_background_fill": "surface",
    "button_secondary_border_color": "line",
    "button_secondary_text_color": "ink",
}
"""The colour of each variable of Gradio's theme, for light and dark."""
_FIXED = {
    "block_shadow": "none",
    "block_label_background_fill": "transparent",
    "block_label_background_fill_dark": "transparent",
    "block_title_text_weight": "550",
    # A field has its own border, so there is no box around label and field.
    "block_border_width": "0px",
    "block_padding": "0px",
    "block_background_fill": "transparent",
    "block_background_fill_dark": "transparent",
    "input_border_width": "1px",
    "input_radius": "8px",
    "input_padding": "7px 10px",
    "button_border_width": "1px",
    "button_primary_background_fill": LIGHT["accent"],
    "button_primary_background_fill_hover": "#0c5f58",
    "button_primary_text_color": "#ffffff",
    "button_primary_background_fill_dark": "#14b8a6",
    "button_primary_background_fill_hover_dark": "#2dd4bf",
    "button_primary_text_color_dark": "#06201d",
    "button_cancel_background_fill": "#b42318",
    "button_cancel_background_fill_dark": "#b42318",
    "button_cancel_text_color": "#ffffff",
    "button_cancel_text_color_dark": "#ffffff",
    "input_border_color_focus": LIGHT["accent"],
    "input_border_color_focus_dark": DARK["accent"],
    "slider_color": LIGHT["accent"],
    "slider_color_dark": DARK["accent"],
}
"""Other variables of Gradio's theme."""


def create_app(context: Context) -> gr.Blocks:
    """The app with all its pages, in the context's language."""
    import gradio as gr

    context.begin()
    context.solution = solution
    t = context.t
    blocks = gr.Blocks(title=NAME, fill_width=True, analytics_enabled=False)
    with blocks:
        which = gr.Textbox(visible="hidden", elem_id="which-window")
        foot = frame.build(context)
        context.notice = parts.view(id="notice")
        endings = frame.build_endings()
        with gr.Tabs(elem_id="nav", selected=FIRST, overflow_behavior="wrap") as context.nav:
            tabs = {}
            for key, page in pages().items():
                with gr.Tab(t(page.title), id=key, elem_id=f"page-{key}") as tabs[key]:
                    page.build(context)
        frame.wire(context, foot)
        frame.wire_endings(context, endings)
        for key, tab in tabs.items():
            _wire_page(context, key, tab, which)
        offered, outputs = context.offers()
        context.on(context.notice.click, offered, None, outputs)
        missed = _tick(context, which, tabs)
        _redraw(context, tabs, _attach(context, blocks, which, tabs).then, missed.change)
    return blocks


def _wire_page(context: Context, key: str, tab: Any, which: Any) -> None:
    show, outputs = context.shows(key)

    def shown(window: Window, since: str | None) -> Any:
        return {**show(window), context.notice: ""} if window.show(key, _moment(since)) else None

    context.on(tab.select, shown, which, outputs, js=f"() => ftl.shows({json.dumps(key)})")


def _moment(text: str | None) -> float:
    """A time of the browser's clock in seconds; 0 if the page sent none."""
    try:
        moment = float(text or 0)
    except ValueError:
        return 0.0
    return moment if math.isfinite(moment) else 0.0


def _tick(context: Context, which: Any, tabs: Mapping[str, Any]) -> Any:
    """Connect the tick of each second. Returns a component that changes when the page in view must be drawn again: see Window.missed."""
    import gradio as gr

    missed = gr.Textbox(visible="hidden")
    tick, outputs = context.ticks()

    def ticked(window: Window, report: str | None) -> Any:
        page, _, since = (report or "").partition(" ")
        missing = page in tabs and window.missed(page, _moment(since))
        return {**tick(window), **({missed: str(time.monotonic())} if missing else {})}

    context.on(gr.Timer(1.0).tick, ticked, which, [*outputs, missed], js="() => ftl.page()", drop=True)
    return missed


def _attach(context: Context, blocks: Any, which: Any, tabs: Mapping[str, Any]) -> Any:
    """Connect the load of a page, which reports its window and the browser's locale. The page that was last in view is opened again."""
    import gradio as gr

    def attach(request: gr.Request, report: str | None) -> Any:
        name, _, locale = (report or "").partition(" ")
        window = context.windows.attach(request.session_hash or "", name)
        if locale and locale != context.browser_locale:
            context.browser_locale = locale
            context.speak()
        page = window.shared.page
        return gr.Tabs(selected=page) if page in tabs else gr.skip()

    attach.__annotations__ = {"request": gr.Request}
    return blocks.load(
        attach, which, context.nav, js="() => ftl.window()", show_progress="hidden", api_visibility="private"
    )


def _redraw(context: Context, tabs: Mapping[str, Any], *triggers: Any) -> None:
    """On any of the triggers, draw the page in view again if it is empty or shows another window's state."""
    shows = {key: context.shows(key)[0] for key in tabs}
    every = {component._id: component for key in tabs for component in context.shows(key)[1]}

    def redraw(window: Window) -> Any:
        again, window.again = window.again, False
        show = shows.get(window.shared.page)
        return show(window) if again and show is not None else None

    for trigger in triggers:
        context.on(trigger, redraw, None, list(every.values()))


def first_lines(context: Context) -> str:
    """The first lines of the head of the page; see with_head() in gui/http/server.py."""
    t = context.t
    config = {
        "first": FIRST,
        "theme": context.preferences.theme,
        "lang": t.language,
        "splash": [t("common.app"), t("common.splash")],
        "gone": [t("common.gone_title"), t("common.gone_text"), t("common.gone_how")],
    }
    return (
        f"<script>window.ftlConfig={json.dumps(config)}</script>"
        '<link rel="stylesheet" href="ftl/cover.css"><link rel="icon" href="ftl/icon.svg"><script src="ftl/app.js"></script>'
    )


def mount_options() -> dict[str, object]:
    """Options of gr.mount_gradio_app besides the address. The app's style sheets come after Gradio's own."""
    styles = ["app.css", *sorted(f"pages/{file.name}" for file in (paths.assets() / "ui" / "pages").glob("*.css"))]
    head = "".join(f'<link rel="stylesheet" href="ftl/{name}">' for name in styles)
    return {
        "theme": theme(),
        "head": head,
        "footer_links": [],
        "run_history": False,
        "pwa": False,
        "ssr_mode": False,
        "mcp_server": False,
        "enable_monitoring": False,
        "show_error": True,
        "favicon_path": str(paths.assets() / "ui" / "icon.svg"),
        "allowed_paths": [],
    }


def theme() -> Any:
    """The theme, a gr.themes.Base. It fetches no fonts."""
    import gradio as gr

    base = gr.themes.Base(
        primary_hue="teal",
        neutral_hue="slate",
        radius_size="md",
        spacing_size="sm",
        text_size="md",
        font=SANS,
        font_mono=MONO,
    )
    light = {name: LIGHT[colour] for name, colour in _COLOURS.items()}
    dark = {f"{name}_dark": DARK[colour] for name, colour in _COLOURS.items() if name != "color_accent"}
    return base.set(**(light | dark | _FIXED))
