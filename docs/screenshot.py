"""Pictures of what a browser shows: `nox -s screenshot` and `screenshot_page`, or `python docs/screenshot.py WHAT`.

    tensorboard [RUN]   TensorBoard's Time Series page of the README's expert, trained with two evaluators watching
                        (conf/preset/watch_adaptation.yaml); RUN names a run that is there already
    page                the page of `transformer2 serve`, with a question that takes two experts at once

Both are served on the loopback interface and photographed in headless Chromium: one on the PATH (Debian: `apt-get
install chromium`), else playwright's own, which is downloaded once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HERE = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SCALARS = ("train/reward", "val/accuracy")
IMAGES = ("dispatch/confusion", "cem/alpha")
SIZE: Any = {"width": 1140, "height": 840}
QUESTION = "Craft f(): Grupot has 30 marit, eats 7, breaks 1, buys 8. Then drop by 4, triple, lift by 7."
WEIGHTS = {"math": 0.6, "code": 0.9, "reasoning": 0.0}
LARGEST = {"tensorboard": 300_000, "page": 200_000}  # bytes


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=LARGEST)
    parser.add_argument("run", nargs="?", type=Path, help="tensorboard: a run folder; none trains one (3 minutes)")
    parser.add_argument("--out", type=Path, help="default: docs/WHAT.png")
    args = parser.parse_args()
    out = args.out or HERE / f"{args.what}.png"
    with chromium() as browser:
        if args.what == "page":
            with served("--strategy", "scores") as address:
                photograph_page(browser, address, out)
        else:
            with tempfile.TemporaryDirectory() as scratch:
                shoot_tensorboard(browser, args.run or train(Path(scratch) / "tiny_math"), out, Path(scratch))
    size = out.stat().st_size
    print(f"{out}: {size / 1000:.0f} kB")
    return 0 if size <= LARGEST[args.what] else 1


@contextmanager
def chromium() -> Iterator[Browser]:
    """Headless Chromium from the PATH, else playwright's own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = next((path for name in BROWSERS if (path := shutil.which(name))), playwright.chromium.executable_path)
        if not Path(path).exists():
            subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], capture_output=True)
        if not Path(path).exists():
            raise SystemExit(f"needs {', '.join(BROWSERS)} or playwright's own; on Debian: apt-get install chromium")
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def served(*args: str, **environment: str) -> Iterator[str]:
    """The address of `transformer2 serve` with some arguments, in a process of its own."""
    command = [sys.executable, "-m", "transformer2", "serve", "--port", "0", *args]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line.startswith("serving "):
            raise SystemExit(f"`{' '.join(command[1:])}` did not start")
        yield line.split()[-1]
    finally:
        server.kill()
        server.communicate()


def photograph_page(browser: Browser, address: str, out: Path) -> None:
    """Ask one question of the base and of a mixture."""
    page = browser.new_page(viewport={"width": 1200, "height": 600}, color_scheme="light")
    page.goto(address)
    page.get_by_label("mix", exact=True).check()
    for name, weight in WEIGHTS.items():
        page.locator(f"#weight-{name}").fill(f"{weight}")
    page.get_by_label("Your question").fill(QUESTION)
    page.get_by_label("Your question").press("Enter")
    page.get_by_text("Both answers are complete.").wait_for(state="attached", timeout=60_000)
    page.locator("#strips[aria-busy=false]").wait_for()  # z of the answer
    page.evaluate("document.activeElement.blur()")
    page.screenshot(path=out, full_page=True)
    page.close()


def train(run: Path) -> Path:
    """A run of the README's command, watched."""
    configs = ["--config", "conf/tiny_math.yaml", "--config", "conf/preset/watch_adaptation.yaml"]
    subprocess.run([sys.executable, "-m", "transformer2", "fit", *configs, "--run_dir", str(run)], check=True)
    return run


def shoot_tensorboard(browser: Browser, run: Path, out: Path, scratch: Path) -> None:
    """Serve a run, photograph it, stop serving."""
    (scratch / "logs").mkdir()
    (scratch / "logs" / run.name).symlink_to(run.resolve())  # a run is named by its folder, below what is served
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    served = ["--logdir", str(scratch / "logs"), "--port", address.partition(":")[2], "--load_fast=false"]
    server = subprocess.Popen([sys.executable, "-m", "tensorboard.main", *served], stderr=subprocess.DEVNULL)
    try:
        wait_for_tags(f"http://{address}/data/plugin/timeseries/tags")
        cards = pinned(run.name)
        photograph_tensorboard(
            browser, f"http://{address}/?darkMode=false&smoothing=0&pinnedCards={cards}#timeseries", out
        )
    finally:
        server.terminate()
        server.wait()


def pinned(run: str) -> str:
    """What the page pins to its top, as its address says it."""
    cards: list[dict[str, str | int]] = [{"plugin": "scalars", "tag": tag} for tag in SCALARS]
    name = f"defaultExperimentId/{run}"
    cards += [{"plugin": "images", "tag": tag, "runId": name, "sample": 0} for tag in IMAGES]
    return quote(json.dumps(cards, separators=(",", ":")))


def photograph_tensorboard(browser: Browser, address: str, out: Path) -> None:
    """Open the page, leave only the cards on it, wait for curves and images."""
    page = browser.new_page(viewport=SIZE, device_scale_factor=2)
    page.goto(address)
    page.get_by_label("Enable step selection and data table").uncheck(timeout=60_000)
    page.get_by_label("Ignore outliers in chart scaling").uncheck()
    page.get_by_label("Close side pane").click()
    page.locator("image-card img").nth(len(IMAGES) - 1).wait_for(timeout=60_000)  # loaded when scrolled into view
    page.wait_for_timeout(2000)  # curves are drawn by a worker
    page.screenshot(path=out)


def wait_for_tags(address: str, seconds: float = 120) -> None:
    """Until TensorBoard has read every tag of the run."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(address) as answer:
                text = answer.read().decode()
        except OSError:  # not listening yet
            text = ""
        if all(f'"{tag}"' in text for tag in (*SCALARS, *IMAGES)):
            return
        time.sleep(1)
    raise SystemExit(f"TensorBoard did not read {', '.join((*SCALARS, *IMAGES))} within {seconds:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
