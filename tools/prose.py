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
PLACES = ("README.md", "CONTRIBUTING.md", "taxonomy", "papers", "reference_impls", "notebooks", "tests", "tools")
SUFFIXES = (".py", ".md", ".yml", ".txt", ".html", ".json")
LEFT_OUT = ("tools/prose.py", "CHANGELOG.md", "tools/knowledge/schemas/")

_OPERATIONS = r"(?:counted|executed|fewer|saved|saves|million|billion) operations"
"""What a paper counts may be called so in what is said of the paper."""
_COUNTED = "MACs|operations|images|frames|tokens|neurons|evaluations|draws|passes|seeds|paths|bits"
_UNITS = "second|step|frame|value|row|token|sample|block|image|seed|cycle|unit|point"
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
    _OPERATIONS: "MACs",
    r"becomes? less than nothing": "falls below zero",
    r"variance (?:of \w+ )*filled in": "explained variance",
    r"(?-i:[Bb]ehind)(?<!norms behind)(?!(?<=[\"']behind)[\"'])": "after, or which cause",
    r"in front of": "before",
    rf"(?:{_COUNTED}) an? (?:{_UNITS})(?! (?:needs|has|leaves))": "per",
    r"the (?:top|highest) share": "a fraction of ..., the highest",
    r"hangs? on": "depends on",
    r"says? nothing of": "says nothing about",
    r"the same thought": "the same idea",
    r"gives? out (?:the|a) (?:\w+ )?(?:mean|output|result|value)": "outputs",
    r"bears? (?:fewer|less|more)": "tolerates, needs",
    r"go(?:es)? round": "bypasses",
    r"good part of": "most of",
    r"made up when": "computed when",
}
_PATTERN = re.compile("|".join(f"(?P<w{n}>\\b(?:{word})\\b)" for n, word in enumerate(WORDS)), re.IGNORECASE)


def findings(name: str, text: str) -> Iterator[str]:
    """Every word of a text that the atlas does not use, as `file:line:column: message`."""
    for number, line in enumerate(text.splitlines(), start=1):
        if "prose: ok" in line:
            continue
        for match in _PATTERN.finditer(line):
            word, instead = list(WORDS.items())[int((match.lastgroup or "w0")[1:])]
            if word == _OPERATIONS and name.startswith("papers/"):
                continue
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
