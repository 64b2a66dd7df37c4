"""TensorBoard as a browser shows it: `nox -s screenshot`, or `python docs/screenshot.py [RUN] [--out PNG]`.

Trains the README's expert with two evaluators watching (conf/preset/watch_adaptation.yaml; RUN names a run that is
there already), serves it with TensorBoard on the loopback interface and photographs the Time Series page in headless
Chromium: reward, confusion matrix and alpha. Needs Chromium (Debian: `apt-get install chromium`) and the package
playwright, which drives it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

HERE = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SCALARS = ("train/reward", "val/accuracy")
IMAGES = ("dispatch/confusion", "cem/alpha")
SIZE: Any = {"width": 1140, "height": 840}
LARGEST = 300_000  # bytes


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="a run folder; none trains one (about 3 minutes)")
    parser.add_argument("--out", type=Path, default=HERE / "tensorboard.png")
    args = parser.parse_args()
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        print(f"a screenshot needs one of {', '.join(BROWSERS)}; on Debian: apt-get install chromium", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        run = args.run or train(Path(scratch) / "tiny_math")
        shoot(browser, run, args.out, Path(scratch))
    size = args.out.stat().st_size
    print(f"{args.out}: {size / 1000:.0f} kB")
    return 0 if size <= LARGEST else 1


def train(run: Path) -> Path:
    """A run of the README's command, watched."""
    configs = ["--config", "conf/tiny_math.yaml", "--config", "conf/preset/watch_adaptation.yaml"]
    subprocess.run([sys.executable, "-m", "transformer2", "fit", *configs, "--run_dir", str(run)], check=True)
    return run


def shoot(browser: str, run: Path, out: Path, scratch: Path) -> None:
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
        photograph(
            browser, f"http://{address}/?darkMode=false&smoothing=0&pinnedCards={pinned(run.name)}#timeseries", out
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


def photograph(browser: str, page_address: str, out: Path) -> None:
    """Open the page, leave only the cards on it, wait for curves and images."""
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=flags)
        page = chromium.new_page(viewport=SIZE, device_scale_factor=2)
        page.goto(page_address)
        page.get_by_label("Enable step selection and data table").uncheck(timeout=60_000)
        page.get_by_label("Ignore outliers in chart scaling").uncheck()
        page.get_by_label("Close side pane").click()
        page.locator("image-card img").nth(len(IMAGES) - 1).wait_for(timeout=60_000)  # loaded when scrolled into view
        page.wait_for_timeout(2000)  # curves are drawn by a worker
        page.screenshot(path=out)
        chromium.close()


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
