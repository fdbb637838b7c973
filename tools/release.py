"""Prepares a release: `python -m tools.release 0.2.0` (`make release VERSION=0.2.0`).

The version goes into pyproject.toml and CITATION.cff, the unreleased changes of CHANGELOG.md become those of the
version, and all of it is committed and tagged here. Nothing leaves this machine: pushing the tag publishes.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from reference_impls.whole import write_atomically

ROOT = Path(__file__).parents[1]
VERSION = re.compile(r"\d+\.\d+\.\d+((a|b|rc)\d+)?")


class ReleaseError(ValueError):
    """No release can be made; the message says what to mend."""


def prepared(texts: Mapping[str, str], version: str, day: str) -> dict[str, str]:
    """The files of a release: name -> text, from what they hold now. Raises: ReleaseError."""
    if not VERSION.fullmatch(version):
        raise ReleaseError(f"{version!r} is no version: write it like 0.2.0 or 0.2.0rc1")
    (current,) = re.findall(r'^version = "(.+)"$', texts["pyproject.toml"], re.MULTILINE)
    if _order(version) <= _order(current):
        raise ReleaseError(f"the version is {current} already: the next one must be above it, got {version}")
    heading, _, rest = texts["CHANGELOG.md"].partition("## Unreleased\n")
    changes = rest.partition("\n## ")[0].strip()
    if not changes:
        raise ReleaseError("CHANGELOG.md names no change under `## Unreleased`")
    return {
        "pyproject.toml": texts["pyproject.toml"].replace(f'version = "{current}"', f'version = "{version}"', 1),
        "CITATION.cff": re.sub(
            r'^date-released: ".*"$', f'date-released: "{day}"',
            re.sub(r"^version: .*$", f"version: {version}", texts["CITATION.cff"], flags=re.MULTILINE),
            flags=re.MULTILINE,
        ),
        "CHANGELOG.md": f"{heading}## Unreleased\n\n## {version} ({day})\n{rest}",
    }  # fmt: skip


def _order(version: str) -> tuple[tuple[int, ...], str]:
    numbers, _, rest = re.sub(r"(a|b|rc)", r" \1", version).partition(" ")
    return tuple(map(int, numbers.split("."))), rest or "z"  # 0.2.0rc1 comes before 0.2.0


def release(root: Path, version: str) -> str:
    """Write, commit and tag; the name of the tag. Raises: ReleaseError."""
    if _git(root, "status", "--porcelain").strip():
        raise ReleaseError("there are changes that are not committed: commit or stash them first")
    tag = f"v{version}"
    if _git(root, "tag", "--list", tag).strip():
        raise ReleaseError(f"there is a tag {tag} already")
    names = ("pyproject.toml", "CITATION.cff", "CHANGELOG.md")
    texts = {name: (root / name).read_text(encoding="utf-8") for name in names}
    for name, text in prepared(texts, version, datetime.now(UTC).strftime("%Y-%m-%d")).items():
        write_atomically(root / name, text)
    _git(root, "commit", "--quiet", "--all", "--message", f"Release {version}")
    _git(root, "tag", "--annotate", tag, "--message", f"Redundancy Atlas {version}")
    return tag


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReleaseError(f"git {words[0]} failed: {done.stderr.strip()}")
    return done.stdout


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python -m tools.release VERSION", file=sys.stderr)
        return 2
    try:
        tag = release(ROOT, sys.argv[1])
    except ReleaseError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"committed and tagged {tag}; `git push --follow-tags` publishes it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
