"""The knowledge of the atlas: reads it, checks it, and hands it to the command, the site and the exports.

Imports neither torch nor any implementation: modules of `reference_impls` are read as source, never run.

    from tools.knowledge import find_root, load

    knowledge = load(find_root())
    knowledge.entries["token-merging"].axes["relation"].primary
"""

from tools.knowledge.findings import Finding
from tools.knowledge.load import Knowledge, find_root, load

__all__ = ["Finding", "Knowledge", "find_root", "load"]
