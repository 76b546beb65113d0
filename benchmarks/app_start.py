"""How soon the app is there, and what it takes: from the command to the splash, to a page that can be used, and the idle server's memory.

    python benchmarks/app_start.py --runs 3

Each run is a new process on a new home, with headless Chromium as the window; the first run warms the disk and is not counted.
"Usable" is the moment when the home page's main button can be pressed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from playwright.sync_api import Browser, sync_playwright

COMMAND = [sys.executable, "-c", "from finetune_local.cli.main import main; main()", "app", "--no-open", "--home"]
PATIENCE = 120.0
SETTLED = 5.0
"""Seconds after the page is there at which memory is read."""


def main() -> None:
    """Measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        found = [measured(browser) for _ in range(given.runs + 1)][1:]
        browser.close()
    print(f"load average before the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    print("| | median | worst |\n|---|---|---|")
    for name, unit in (("splash", "s"), ("usable", "s"), ("memory", "MB"), ("cpu", "CPU s")):
        values = [one[name] for one in found]
        print(f"| {name} | {statistics.median(values):.2f} {unit} | {max(values):.2f} {unit} |")


def measured(browser: Browser) -> dict[str, float]:
    """One start: seconds to the splash and to a usable page, the server's megabytes and CPU-seconds."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        process = subprocess.Popen([*COMMAND, folder], stderr=subprocess.PIPE, text=True, encoding="utf-8")
        try:
            instance = instance_of(Path(folder), began)
            link = str(json.loads(asked(instance))["link"])
            page = browser.new_page()
            page.goto(link, wait_until="commit")
            page.wait_for_selector("h1, #cover", state="attached")
            splash = time.monotonic() - began
            page.wait_for_selector("#page-home button.primary:visible", timeout=1000 * PATIENCE)
            usable = time.monotonic() - began
            time.sleep(SETTLED)
            server = psutil.Process(process.pid)
            memory, spent = server.memory_info().rss / 1e6, server.cpu_times()
            page.close()
        finally:
            process.terminate()
            process.communicate(timeout=PATIENCE)
    return {"splash": splash, "usable": usable, "memory": memory, "cpu": spent.user + spent.system}


def instance_of(home: Path, began: float) -> dict[str, object]:
    """What the app writes down once it can be asked."""
    file = home / "window" / "instance.json"
    while time.monotonic() - began < PATIENCE:
        if file.exists():
            return dict(json.loads(file.read_text("utf-8")))
        time.sleep(0.01)
    raise SystemExit("the app did not start")


def asked(instance: dict[str, object]) -> str:
    """A launch link, as a second start asks for it; it is answered as soon as the server runs."""
    until = time.monotonic() + PATIENCE
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", int(str(instance["port"])), timeout=PATIENCE)
        try:
            connection.request("POST", "/control?do=link", headers={"x-finetune-local-key": str(instance["key"])})
            return connection.getresponse().read().decode("utf-8")
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)
        finally:
            connection.close()


if __name__ == "__main__":
    main()
