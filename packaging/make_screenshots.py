"""Screenshots of every page of the window, in both languages and themes: docs/images/app/PAGE-LANGUAGE-THEME.png.

    python packaging/make_screenshots.py                          what is in docs/ (1280×800)
    python packaging/make_screenshots.py --out DIR --sizes 1280x800 1920x1080 900x700    to look at

What is shown is real: the small model is trained on the shipped example, evaluated, talked to and exported first, in a home of the
script's own that is kept (--home), so that the second call takes a minute. Needs Chromium; the first call fetches the model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "assets" / "example" / "orders.jsonl"
OUT = ROOT / "docs" / "images" / "app"
LANGUAGES, THEMES = ("en", "zh"), ("light", "dark")
PAGES = ("home", "model", "data", "train", "training", "chat", "evaluate", "adapters", "runs", "export", "settings")
"""`train` is the form, `training` a run as it stands at its end."""

BROWSER = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--force-color-profile=srgb",
]


def main() -> None:
    """Prepare what is to be seen, then take every picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path(tempfile.gettempdir()) / "finetune-local")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--sizes", nargs="+", default=["1280x800"])
    parser.add_argument("--pages", nargs="+", choices=PAGES, default=list(PAGES))
    parser.add_argument("--languages", nargs="+", choices=LANGUAGES, default=list(LANGUAGES))
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    _prepare(chosen.home)
    for language in chosen.languages:
        with _server(chosen.home, language) as link:
            _take(link, chosen, language)


def _prepare(home: Path) -> None:
    """Fill the home with a model, runs, chats, evaluations and exports; what exists is skipped."""

    def cli(*arguments: object) -> None:
        command = [sys.executable, "-m", "finetune_local", *map(str, arguments), "--home", str(home)]
        if subprocess.run(command, check=False).returncode:
            sys.exit(f"{' '.join(command)} failed")

    home.mkdir(parents=True, exist_ok=True)
    if not (home / "models" / "smollm2-135m").exists():
        cli("models", "get", "smollm2-135m")
    common = ("--data", EXAMPLE, "--batch-size", 4, "--validate-every", 10, "--sample-tokens", 24, "--max-steps")
    for run, more in (
        ("café-orders", (60,)),
        ("café-orders-dora", (30, "--method", "dora")),
        ("café-orders-slow", (30, "--learning-rate", 1e-4)),
    ):
        if not (home / "runs" / run / "adapter").exists():
            shutil.rmtree(home / "runs" / run, ignore_errors=True)
            cli("train", "--run", run, *common, *more)
    if not any((home / "evaluations").glob("*")) if (home / "evaluations").exists() else True:
        cli("evaluate", "--adapter", "café-orders", "--limit", 12)
    if not (home / "exports" / "café-orders.gguf").exists():
        (home / "exports").mkdir(exist_ok=True)
        cli("export", "café-orders", "--to", "gguf", "--out", home / "exports" / "café-orders.gguf")


@contextmanager
def _server(home: Path, language: str) -> Iterator[Callable[[], str]]:
    """The app without a window, in a language; gives launch links."""
    config = home / "config"
    config.mkdir(exist_ok=True)
    (config / "preferences.json").write_text(json.dumps({"language": language}), "utf-8")
    command = [sys.executable, str(ROOT / "tests" / "ui" / "serve.py"), str(home)]
    environment = {**os.environ, "FINETUNE_LOCAL_CONFIG": str(config)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        stdin, stdout = process.stdin, process.stdout

        def link() -> str:
            stdin.write("\n")
            stdin.flush()
            return stdout.readline().strip()

        yield link
        stdin.close()
        process.wait(20)


def _take(link: Callable[[], str], chosen: argparse.Namespace, language: str) -> None:
    from playwright.sync_api import sync_playwright

    program = next(found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=BROWSER)
        for size in chosen.sizes:
            width, height = map(int, size.split("x"))
            for theme in THEMES:
                locale = "zh-CN" if language == "zh" else "en-GB"
                context = browser.new_context(
                    viewport={"width": width, "height": height},
                    color_scheme=theme,
                    locale=locale,
                    reduced_motion="reduce",
                )
                context.set_default_timeout(30_000)
                page = context.new_page()
                page.goto(link())
                page.wait_for_selector(".page-header:visible, #chat-message textarea:visible")  # where it was last
                time.sleep(1)
                for name in chosen.pages:
                    _show(page, name)
                    suffix = "" if size == "1280x800" else f"-{size}"
                    _save(page, chosen.out / f"{name}-{language}-{theme}{suffix}.png")
                context.close()
        browser.close()


def _show(page: Any, name: str) -> None:
    """Bring a page into view, with something on it."""
    tab = "train" if name == "training" else name
    page.click(f"#nav [role=tablist] [data-tab-id={tab}]")
    page.wait_for_selector(f"#page-{tab} .page-header:visible, #page-{tab} h1:visible")
    STEPS.get(name, lambda _page: None)(page)
    page.mouse.move(5, 5)
    time.sleep(1.5)


def _data(page: Any) -> None:
    if not page.locator("#data-files >> text=orders").count():
        page.click("[data-do='data.example']")
    page.wait_for_selector("[data-do='data.train']:not([disabled])")
    page.wait_for_selector("#data-found table")


def _form(page: Any) -> None:
    if page.locator("#train-head [data-do=new]:visible").count():
        page.click("#train-head [data-do=new]")
    page.wait_for_selector("#train-methods .choice")


def _runs(page: Any) -> None:
    """The list, also where a window last looked at one run."""
    if page.locator("#runs-main .back:visible").count():
        page.click("#runs-main .back")
    page.wait_for_selector("#runs-main .row-name:visible")


def _training(page: Any) -> None:
    page.click("#nav [role=tablist] [data-tab-id=runs]")
    page.wait_for_selector("#page-runs .page-header:visible")
    _runs(page)
    page.click("#runs-main .row-name[data-value='café-orders']")
    page.click("#page-runs [data-do='runs.show']")
    page.wait_for_selector("#train-curves .line:visible")


def _chat(page: Any) -> None:
    """The base beside what was trained, in a conversation that is begun once."""
    page.wait_for_selector("#chat-message textarea:visible")
    if page.locator("#chat-said article.answer").count() >= 2:
        return
    page.click("#nav [role=tablist] [data-tab-id=train]")
    page.click("#train-head [data-do=go][data-value=chat]")
    page.wait_for_selector("#chat-who summary:has-text('café-orders')")
    page.fill("#chat-message textarea", "Two large teas and a small soup to go, please.")
    page.press("#chat-message textarea", "Enter")
    page.wait_for_selector("#chat-said [data-do=again]", timeout=120_000)


def _export(page: Any) -> None:
    page.wait_for_selector("#export-form [data-do=start]")


STEPS: dict[str, Callable[[Any], None]] = {
    "data": _data, "train": _form, "training": _training, "chat": _chat, "runs": _runs,
    "export": _export,
}  # fmt: skip


def _save(page: Any, file: Path) -> None:
    """As a PNG of 256 colours: a third of the size, and nobody sees it on a page of flat colours."""
    from io import BytesIO

    from PIL.Image import Dither
    from PIL.Image import open as read

    picture = read(BytesIO(page.screenshot()))
    picture.convert("RGB").quantize(256, dither=Dither.NONE).save(file, optimize=True)
    print(file)


if __name__ == "__main__":
    main()
