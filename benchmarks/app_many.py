"""The window with much to show: a library of a thousand runs, and a run of a hundred thousand steps that goes on.

    python benchmarks/app_many.py --runs 1000 --steps 100000

The runs are folders as training writes them, filled in by this script. The long one gets forty steps a second while its page is
watched: "longest pause" is the longest time between two frames that the browser drew, "server" the CPU-seconds each second.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import psutil
from app_start import COMMAND, asked, instance_of
from playwright.sync_api import Page, sync_playwright

from finetune_local.spec.run import parse_spec
from finetune_local.system.paths import Home
from finetune_local.training.events import Finished, Step, Validation
from finetune_local.training.run_folder import runs

WATCHED = 15.0
"""Seconds for which the long run's page is watched."""
PAUSES = """seconds => new Promise(done => {
    let last = performance.now(), worst = 0, frames = 0; const end = last + 1000 * seconds;
    const frame = now => { worst = Math.max(worst, now - last); last = now; frames++;
        now < end ? requestAnimationFrame(frame) : done({worst, frames}); };
    requestAnimationFrame(frame);
})"""


def main() -> None:
    """Fill a home, open it, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=100_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        home = Home(Path(folder))
        long_one = filled(home, given.runs, given.steps)
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        process = subprocess.Popen([*COMMAND, folder], stderr=subprocess.DEVNULL)
        try:
            link = str(json.loads(asked(instance_of(home.root, time.monotonic())))["link"])
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto(link)
            page.wait_for_selector("#page-home .page-header:visible")
            rows = [("library opens", library(page), "s"), *training(page, long_one, given.steps, process.pid)]
        finally:
            process.terminate()
            process.wait(60)
            browser.close()
    print(f"{given.runs} runs, one of {given.steps} steps; {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    print("| | |\n|---|---|")
    for name, value, unit in rows:
        print(f"| {name} | {value:.2f} {unit} |")


def filled(home: Home, number: int, steps: int) -> runs.Run:
    """A home with runs that have ended, and a long one that this process, as its worker, goes on with."""
    spec = parse_spec({"data": {"files": ["/data/my.jsonl"]}, "training": {"max_steps": 60}}, "benchmark")
    for one in range(number):
        run = runs.create(home, spec.model_copy(update={"name": f"run {one:04}"}))
        for step in range(1, 61, 6):
            run.append(step_of(step, 60))
        run.append(Finished(reason="all steps are done", summary={"steps": 60, "best_loss": 1 + one / number}))
    whole = spec.training.model_copy(update={"max_steps": 2 * steps})
    run = runs.create(home, spec.model_copy(update={"name": "long", "training": whole}))
    with run.events_file.open("a", encoding="utf-8") as file:
        for step in range(1, steps + 1):
            file.write(json.dumps(step_of(step, 2 * steps).as_json()) + "\n")
            if step % 1000 == 0:
                file.write(json.dumps(Validation(step=step, loss=2.0, best=False).as_json()) + "\n")
    started = psutil.Process().create_time()
    run.worker_file.write_text(json.dumps({"pid": os.getpid(), "started": started}), "utf-8")
    return run


def step_of(step: int, steps: int) -> Step:
    """A step of a loss that falls and swings."""
    return Step(
        step=step, steps=steps, loss=1 + 3 / math.sqrt(step) + 0.3 * math.sin(step * 1.7), learning_rate=1e-4,
        gradient_norm=1.0, tokens=512, supervised_tokens=128, tokens_per_second=4000.0, seconds_left=1000.0, peak_memory_bytes=10**9,
    )  # fmt: skip


def library(page: Page) -> float:
    """Seconds from the click on Runs to its first row."""
    page.wait_for_timeout(3000)
    began = time.monotonic()
    page.click("#nav [data-tab-id=runs] >> visible=true")
    page.wait_for_selector("#page-runs tbody tr:visible")
    return time.monotonic() - began


def training(page: Page, run: runs.Run, steps: int, server: int) -> list[tuple[str, float, str]]:
    """The page of the long run: when it is there, and how it goes while steps come in."""
    began = time.monotonic()
    page.click("#nav [data-tab-id=train] >> visible=true")
    page.wait_for_selector("#train-curves .line:visible")
    shown = time.monotonic() - began
    over = threading.Event()

    def go_on() -> None:
        at = steps
        while not over.wait(0.025):
            at += 1
            run.append(step_of(at, 2 * steps))

    writer = threading.Thread(target=go_on)
    writer.start()
    process = psutil.Process(server)
    before = sum(process.cpu_times()[:2])
    told = page.evaluate(PAUSES, WATCHED)
    spent = (sum(process.cpu_times()[:2]) - before) / WATCHED
    over.set()
    writer.join()
    points = len((page.locator("#train-curves .line").first.get_attribute("points") or "").split())
    return [
        ("run of many steps opens", shown, "s"),
        ("points drawn", points, ""),
        ("frames each second", told["frames"] / WATCHED, ""),
        ("longest pause", told["worst"] / 1000, "s"),
        ("server", spent, "CPU s/s"),
        ("server's memory", process.memory_info().rss / 1e6, "MB"),
    ]


if __name__ == "__main__":
    main()
