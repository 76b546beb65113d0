"""The theme: Gradio's base theme with the app's colours and the system's fonts. assets/ui/app.css has all other styles."""

from __future__ import annotations

from typing import Any

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
