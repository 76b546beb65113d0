"""Draw the icon as pictures of points from assets/ui/icon.svg, with the Chromium that the UI tests use.

python packaging/make_icon.py
"""

from __future__ import annotations

import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).resolve().parents[1] / "assets" / "ui"
SIZES = {"icon.png": 256, "icon-512.png": 512}


def main() -> None:
    """Write each size beside the drawing."""
    drawing = (FOLDER / "icon.svg").read_text("utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, size in SIZES.items():
            page = browser.new_page(viewport={"width": size, "height": size})
            page.set_content(
                f"<style>*{{margin:0}}svg{{display:block;width:{size}px;height:{size}px}}</style>{drawing}"
            )
            page.screenshot(path=FOLDER / name, omit_background=True)
            print(f"{name}: {(FOLDER / name).stat().st_size:,} bytes")
        browser.close()


if __name__ == "__main__":
    main()
