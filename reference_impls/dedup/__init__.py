"""Deduplication of data sets that may outgrow one machine: rows in, a table of what goes out.

    from reference_impls.dedup import dedup
    table = dedup(["one text", "another", "one text"], method="exact")

- `sources` reads and writes rows: JSONL, Parquet, CSV, folders of texts or images, data sets of Hugging Face.
- `methods` sketches blocks of rows, each by itself, and decides from all sketches: the same on every engine.
- `pipeline` drives both, keeps finished blocks for a resumed run, and writes the results whole or not at all.
- `local` does the work in this process, `on_ray` on a cluster. `page` shows the groups.
"""

from reference_impls.dedup.methods import METHODS, Options
from reference_impls.dedup.pipeline import dedup, run
from reference_impls.dedup.sources import DedupError, Source
