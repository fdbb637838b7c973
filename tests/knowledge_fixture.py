"""A small atlas on disk, without a finding: tests damage it and expect exactly what is found."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.site_fixture import record

ROOT = Path(__file__).parents[1]
ENTRY = "taxonomy/techniques/token-merging.yml"
DRAFT = "taxonomy/techniques/token-dropping.yml"
PAPER = "papers/bolya-2023-token.yml"
MODULE = "reference_impls/techniques/token_merging.py"
EXPERIMENTS = "reference_impls/experiments/token_merging.py"
RESULT = "reference_impls/results/token-merging/photos.json"
NOTEBOOK = "notebooks/token_merging.py"
TEST = "tests/techniques/test_token_merging.py"

FILES = {
    ENTRY: r"""# yaml-language-server: $schema=../../tools/knowledge/schemas/entry.schema.json
id: token-merging
kind: technique
name: Token merging
aliases: [ToMe]
status: stable
added: 2026-11-22
axes:
  data_kind: [image, video]
  location: tokens
  granularity: token
  relation: [spatial_similarity, irrelevance]
  detection_time: dynamic
  detection_mechanism: similarity_score
  exploitation: merge
  stage: inference
  objective: [throughput, latency]
  support: dense
  adaptation: training_free
  guarantee: empirical
  scope: core
summary: Averages the most similar tokens in every block, dropping none.
definition: |
  In each block $r$ tokens merge, where $s < t$ and `<b>` is code.
algorithm:
  - {step: Match the tokens., function: match}
  - {step: Merge them., function: TokenMerging.apply}
cost_model: N^2 C \to (N - r)^2 C
symbols: {N: tokens, r: tokens merged, C: channels}
when_to_use: [Many tokens are alike.]
when_not_to_use: [Few tokens.]
limits: [Dense outputs need unmerging.]
papers:
  - {key: bolya-2023-token, role: introduces}
relations:
  - {type: composes-with, target: token-dropping, note: Each works alone.}
implementation: reference_impls.techniques.token_merging:TokenMerging
""",
    DRAFT: """# yaml-language-server: $schema=../../tools/knowledge/schemas/entry.schema.json
id: token-dropping
kind: technique
name: Token dropping
status: draft
added: 2026-11-22
axes:
  location: tokens
  granularity: token
  relation: irrelevance
  exploitation: drop
  stage: both
  scope: core
summary: Leaves out the tokens that get little attention.
papers:
  - {key: bolya-2023-token, role: analyses}
""",
    PAPER: """# yaml-language-server: $schema=../tools/knowledge/schemas/paper.schema.json
key: bolya-2023-token
title: "Token Merging: Your ViT But Faster"
authors:
  - {family: Bolya, given: Daniel}
year: 2023
venue: ICLR 2023
ids: {arxiv: "2210.09461"}
code:
  - {url: https://github.com/facebookresearch/ToMe, official: true, licence: CC-BY-NC-4.0}
axes:
  location: tokens
  granularity: token
  relation: spatial_similarity
  exploitation: merge
  stage: inference
  scope: core
summary: Merges similar tokens of a vision transformer.
verified: {source: arXiv listing, on: 2026-11-22}
claims:
  - id: c1
    technique: token-merging
    kind: speedup
    statement: It is 1.3 times as fast.
    quantity: {metric: throughput, value: 1.3, unit: times}
    locator: {table: 4, file: README.md}
    check:
      scenario: photos
      field: baseline.wall_ms.median / points[r=4].wall_ms.median
      target: 1.3
      tolerance: 0.1
      unit: times
      differs: [data]
      better: higher
  - id: c2
    technique: token-merging
    kind: definition
    statement: Needs no training.
    locator: {section: abstract}
""",
    MODULE: '''"""Token merging (bolya-2023-token, arXiv 2210.09461)."""

from reference_impls.contract import Technique


def match(x):
    """Match tokens."""


class TokenMerging(Technique):
    """The class."""

    id = "token-merging"
    execution = "real"
    waivers = {"undo": "Nothing is changed, "
                       "so nothing is undone."}

    def apply(self, host):
        """Apply."""
''',
    EXPERIMENTS: """from reference_impls.study import Scenario

SCENARIOS = (Scenario("photos", "Photos", run=None, assets={}),)
""",
    NOTEBOOK: "# %% [markdown]\n# # Token merging\n\n# %%\nimport reference_impls\n",
    TEST: "CASES = None\n\n\ndef test_nothing():\n    pass\n",
}


def write(root: Path) -> Path:
    """Write the atlas into `root`."""
    for file, text in FILES.items():
        put(root, file, text)
    put(root, RESULT, record().to_json())
    (root / "taxonomy").mkdir(exist_ok=True)
    shutil.copy(ROOT / "taxonomy/axes.yml", root / "taxonomy/axes.yml")
    return root


def put(root: Path, file: str, text: str | bytes) -> None:
    """Write one file."""
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def replace(root: Path, file: str, old: str, new: str) -> int:
    """Replace `old`, which must stand there exactly once; the line of what was replaced."""
    text = (root / file).read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file}"
    put(root, file, text.replace(old, new))
    return text[: text.index(old)].count("\n") + 1
