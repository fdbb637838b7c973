"""How long the tests took: `make times` prints the slowest ones, and what each technique costs.

Each run of pytest adds its tests to `.cache/times.json` (`tests/conftest.py`); the seconds are wall-clock, set-up and
tear-down of fixtures included.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from reference_impls import strict

from .files import write_atomically
from .knowledge.paths import TECHNIQUES

FILE = Path(".cache/times.json")
SLOWEST = 10
KINDS = ("tests", "smoke run", "notebook")


def load(root: Path) -> dict[str, float]:
    """Test -> seconds, as far as it is known."""
    try:
        known = strict.loads((root / FILE).read_bytes())
        return {str(test): float(seconds) for test, seconds in known.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def save(root: Path, seconds: Mapping[str, float], *, anew: bool = False) -> None:
    """Add the tests of one run; `anew` if it ran all there are, so that what is known of others is out of date."""
    known = {} if anew else load(root)
    rounded = {test: round(value, 3) for test, value in sorted((known | dict(seconds)).items())}
    write_atomically(root / FILE, json.dumps(rounded, indent=0) + "\n")


def by_technique(seconds: Mapping[str, float], ids: Iterable[str]) -> dict[str, dict[str, float]]:
    """Technique -> kind of test -> seconds, the most expensive technique first."""
    modules = {id_.replace("-", "_"): id_ for id_ in ids}
    sums: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(KINDS, 0.0))
    for test, value in seconds.items():
        if id_ := _technique(test, modules):
            smoke, notebook = "::test_smoke_run[" in test, "/test_notebooks.py" in test
            sums[id_]["smoke run" if smoke else "notebook" if notebook else "tests"] += value
    return dict(sorted(sums.items(), key=lambda item: -sum(item[1].values())))


def _technique(test: str, modules: Mapping[str, str]) -> str | None:
    """The technique of a test, told by its file or by its parameter, which begins with the id."""
    if match := re.match(r"tests/techniques/test_(\w+)\.py", test):
        return modules.get(match[1])
    parameter = test.partition("[")[2].rstrip("]")
    found = [id_ for id_ in modules.values() if parameter == id_ or parameter.startswith(f"{id_}-")]
    return max(found, key=len, default=None)


def report(seconds: Mapping[str, float], ids: Iterable[str]) -> str:
    """The slowest tests and the cost per technique, as text."""
    lines = [f"{SLOWEST} slowest of {len(seconds)} tests ({sum(seconds.values()):.0f} s in all)"]
    slowest = sorted(seconds.items(), key=lambda item: -item[1])[:SLOWEST]
    lines += [f"{value:7.1f} s  {test}" for test, value in slowest]
    lines += ["", f"{'seconds per technique':32}" + "".join(f"{kind:>11}" for kind in ("all", *KINDS))]
    for id_, parts in by_technique(seconds, ids).items():
        values = [sum(parts.values()), *(parts[kind] for kind in KINDS)]
        lines.append(f"{id_:32}" + "".join(f"{value:11.1f}" for value in values))
    return "\n".join(lines)


def main(root: Path) -> int:
    """Print the report; 1 where no test has been timed."""
    seconds = load(root)
    if not seconds:
        print("no test has been timed yet: run `make test`", file=sys.stderr)
        return 1
    ids = [path.stem.replace("_", "-") for path in (root / TECHNIQUES).iterdir() if not path.name.startswith("_")]
    print(report(seconds, ids))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).parents[1]))
