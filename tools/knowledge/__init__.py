"""The knowledge of the atlas: reads it, checks it, and hands it to the command, the site and the exports.

Imports neither torch nor any implementation: modules of `reference_impls` are read as source, never run.

    from . import find_root, load

    knowledge = load(find_root())
    knowledge.entries["token-merging"].axes["relation"].primary
"""

from pathlib import Path

from .base import Knowledge
from .check import check_all
from .findings import Finding
from .load import find_root, named_root, read

__all__ = ["Finding", "Knowledge", "find_root", "load", "named_root"]


def load(root: Path, *, check: bool = True) -> Knowledge:
    """Read the knowledge base at `root`. Never raises for what its files hold: that is what `findings` are for.

    With `check=False` the files are read and validated, but not compared with each other.
    """
    knowledge = read(root)
    if check:
        knowledge.findings.extend(check_all(knowledge))
        knowledge.findings.sort()
    return knowledge
