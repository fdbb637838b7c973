"""Words that the atlas does not use, and what it writes instead: `python -m tools.prose`, part of `make lint`.

The list is small on purpose: terms of the field that came in two forms, and order of words that reads as translated. It
is looked for in the knowledge, the pages, and the comments, docstrings and messages of the code. A word that is meant
otherwise is let through by `# prose: ok` (in Markdown `<!-- prose: ok -->`) on its line.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACES = ("README.md", "CONTRIBUTING.md", "taxonomy", "reference_impls", "notebooks", "tests", "tools")
SUFFIXES = (".py", ".md", ".yml", ".txt", ".html", ".json")
LEFT_OUT = ("tools/prose.py", "CHANGELOG.md", "tools/knowledge/schemas/")

WORDS = {
    r"specimens?": "case, fixture",
    r"battery of (?:\d+ )?checks": "conformance checks",
    r"(?:the|its|a) battery": "conformance checks",
    r"(?:every|each|all|an|no|the) arms?": "variant",
    r"batch norms? (?:estimated )?anew": "batch norm recalibrated",
    r"(?:against|and|of) the clock": "latency, wall-clock",
    r"tells? clothes apart": "classifies Fashion-MNIST",
    r"images? of clothes": "Fashion-MNIST",
    r"at fewer pixels|on fewer pixels": "at lower resolution",
    r"[Tt]raining knew nothing": "was trained without",
    r"one label an item": "one label per item",
    r"how they hang together": "how they relate",
    r"multiply-accumulate operations": "multiply-accumulates (MACs)",
    r"(?:counted|executed|fewer|saved|saves|million|billion) operations": "MACs",
    r"becomes? less than nothing": "falls below zero",
    r"variance (?:of \w+ )*filled in": "explained variance",
}
_PATTERN = re.compile("|".join(f"(?P<w{n}>\\b(?:{word})\\b)" for n, word in enumerate(WORDS)), re.IGNORECASE)


def findings(name: str, text: str) -> Iterator[str]:
    """Every word of a text that the atlas does not use, as `file:line:column: message`."""
    for number, line in enumerate(text.splitlines(), start=1):
        if "prose: ok" in line:
            continue
        for match in _PATTERN.finditer(line):
            instead = list(WORDS.values())[int((match.lastgroup or "w0")[1:])]
            yield f'{name}:{number}:{match.start() + 1}: "{match.group()}": write {instead}'


def files(root: Path) -> Iterator[str]:
    """The files that are looked at."""
    for place in PLACES:
        found = [root / place] if (root / place).is_file() else sorted((root / place).rglob("*"))
        for name in (path.relative_to(root).as_posix() for path in found if path.suffix in SUFFIXES):
            if not name.startswith(LEFT_OUT):
                yield name


def main() -> int:
    """Print what is found; 1 if there is something."""
    found = [line for name in files(ROOT) for line in findings(name, (ROOT / name).read_text(encoding="utf-8"))]
    print("\n".join(found) or "no word that the atlas does not use")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
