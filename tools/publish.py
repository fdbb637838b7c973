"""Builds every published version of the site: `python tools/publish.py public --base https://.../`.

`public/main/` is this checkout, `public/` and `public/<version>/` the latest release, and `public/versions.json` is
what the theme's choice of versions reads. Needs git and make alone, so that it can run before anything is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TAG = re.compile(r"v(\d+)\.(\d+)\.(\d+)")


def latest(tags: list[str]) -> str | None:
    """The tag of the highest version that is no candidate."""
    found = [(tuple(map(int, match.groups())), tag) for tag in tags if (match := TAG.fullmatch(tag))]
    return max(found)[1] if found else None


def versions(tag: str | None) -> list[dict[str, object]]:
    """What `versions.json` holds: the latest release first."""
    found: list[dict[str, object]] = [{"version": "main", "title": "main", "aliases": []}]
    if tag:
        name = tag.removeprefix("v")
        found.insert(0, {"version": name, "title": name, "aliases": ["latest"]})
    return found


def built(checkout: Path, target: Path, address: str) -> None:
    """The site of a checkout, in `target`."""
    environment = os.environ | {"SITE_URL": address, "ATLAS_SITE_CONFIG": "mkdocs.publish.yml"}
    subprocess.run(["make", "site"], cwd=checkout, env=environment, check=True)
    shutil.copytree(checkout / "site", target, dirs_exist_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", type=Path)
    parser.add_argument("--base", default="http://localhost/", help="address of the whole, with a slash at its end")
    options = parser.parse_args()
    listed = subprocess.run(["git", "tag", "--list"], cwd=ROOT, capture_output=True, text=True, check=True)
    tag = latest(listed.stdout.split())
    target = options.target.resolve()
    shutil.rmtree(target, ignore_errors=True)
    if tag:
        with tempfile.TemporaryDirectory() as folder:
            checkout = Path(folder, "release")
            subprocess.run(["git", "worktree", "add", "--detach", str(checkout), tag], cwd=ROOT, check=True)
            try:
                built(checkout, target, options.base)
                shutil.copytree(target, target / tag.removeprefix("v"), dirs_exist_ok=True)
            finally:
                subprocess.run(["git", "worktree", "remove", "--force", str(checkout)], cwd=ROOT, check=True)
    built(ROOT, target / "main", f"{options.base}main/")
    if not tag:
        (target / "index.html").write_text(
            '<!doctype html><meta charset="utf-8"><title>Redundancy Atlas</title>'
            '<meta http-equiv="refresh" content="0; url=main/"><a href="main/">The site of main</a>\n',
            encoding="utf-8",
        )
    (target / "versions.json").write_text(json.dumps(versions(tag), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
