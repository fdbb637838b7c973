"""The Chromium of the browser tests. As a program, it gets one where there is none: `python tests/browser/chromium.py`.

A Chromium already there is taken first (the environment variable CHROMIUM, then the PATH), then Playwright's own, then
the system's package.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
ADVICE = "set CHROMIUM to the path of one, run `playwright install chromium`, or install the package chromium"


def launch(playwright: Any) -> Any | None:
    """A running headless Chromium, or None if there is none that starts."""
    from playwright.sync_api import Error

    named = [os.environ["CHROMIUM"]] if os.environ.get("CHROMIUM") else filter(None, map(shutil.which, NAMES))
    for path in [*named, None]:  # None is Playwright's own
        try:
            return playwright.chromium.launch(executable_path=path, args=FLAGS)
        except Error:
            continue
    return None


def found() -> bool:
    """Whether a Chromium starts."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = launch(playwright)
        if browser is not None:
            browser.close()
        return browser is not None


def attempts() -> list[list[list[str]]]:
    """Ways to get a Chromium, each a list of commands."""
    ways = [[[sys.executable, "-m", "playwright", "install", "chromium"]]]
    if shutil.which("apt-get") and (os.geteuid() == 0 or shutil.which("sudo")):
        root = [] if os.geteuid() == 0 else ["sudo", "-n"]
        apt = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
        ways.append([[*apt, "update", "-qq"], [*apt, "install", "-y", "-qq", "--no-install-recommends", "chromium"]])
    return ways


def main() -> int:
    if found():
        return 0
    print("==> getting a Chromium for the browser tests", file=sys.stderr, flush=True)
    for commands in attempts():
        try:
            for command in commands:
                subprocess.run(command, check=True, capture_output=True, timeout=600)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"    {' '.join(commands[-1][-3:])}: {error}", file=sys.stderr)
        if found():
            return 0
    line = "!" * 100
    print(f"{line}\nNO BROWSER: the browser tests will be skipped; {ADVICE}.\n{line}", file=sys.stderr)
    return int(os.environ.get("ATLAS_REQUIRE_BROWSER") == "1")


if __name__ == "__main__":
    sys.exit(main())
