"""Every code of a finding, explained, with an example of wrong and right: what `redundancy explain CODE` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FAMILIES: Final = {
    "E1": "syntax and encoding",
    "E2": "schema and vocabulary",
    "E3": "links between files",
    "E4": "completeness for the status",
    "E5": "claims and numbers",
    "W6": "style",
    "E7": "the contract in the code",
    "E8": "notebooks",
}


@dataclass(frozen=True)
class Code:
    """What a code means."""

    code: str
    title: str
    explanation: str
    wrong: str
    right: str

    @property
    def family(self) -> str:
        """The family that the code belongs to, in words."""
        return FAMILIES[self.code[:2]]

    def text(self) -> str:
        """The explanation as it is printed."""
        parts = [f"{self.code}: {self.title} ({self.family})", self.explanation]
        for label, example in (("Wrong", self.wrong), ("Right", self.right)):
            parts.append(f"{label}:\n" + "\n".join(f"    {line}" for line in example.split("\n")))
        return "\n\n".join(parts)


def _table(*rows: tuple[str, str, str, str, str]) -> dict[str, Code]:
    return {row[0]: Code(*row) for row in rows}


CODES: Final[dict[str, Code]] = _table(
    (
        "E101",
        "the file cannot be read",
        "The file is missing, is a folder, or may not be read by this user.",
        "taxonomy/axes.yml is missing",
        "git checkout -- taxonomy/axes.yml",
    ),
    (
        "E102",
        "not UTF-8",
        "All texts of the atlas are UTF-8. The place is that of the first byte that is not.",
        "family: Müller   (saved as Latin-1)",
        "family: Müller   (saved as UTF-8)",
    ),
    (
        "E103",
        "byte order mark",
        "Some editors put an invisible mark at the start of a UTF-8 file. It breaks other tools; save without it.",
        "<BOM>id: token-merging",
        "id: token-merging",
    ),
    (
        "E104",
        "file too large",
        "A file of the knowledge base has at most 1 MB. Longer data belong into an asset.",
        "a result record with every pixel in `extra`",
        "a result record with means and quantiles in `extra`",
    ),
    (
        "E105",
        "tab",
        "YAML does not allow tabs as indentation, and elsewhere nobody sees them.",
        "axes:\n<tab>scope: core",
        "axes:\n  scope: core",
    ),
    (
        "E106",
        "character that does not belong in a text",
        (
            "Control characters and the invisible line breaks U+0085, U+2028 and U+2029 are refused. The usual "
            "cause is LaTeX in double quotes, where `\\t` of `\\times` means a tab and `\\b` of `\\beta` a backspace."
        ),
        'cost_model: "N \\times C"',
        "cost_model: 'N \\times C'",
    ),
    (
        "E107",
        "not YAML",
        (
            "The parser stopped here; the cause may stand on the line before. Most often a text holds `: ` and "
            "needs quotes."
        ),
        "summary: Two passes: one matches, one merges.",
        "summary: >-\n  Two passes: one matches, one merges.",
    ),
    (
        "E108",
        "duplicate key",
        "A key may stand once in a mapping. Most readers of YAML silently keep the last one.",
        "status: draft\nstatus: stable",
        "status: stable",
    ),
    (
        "E109",
        "anchor, alias or merge key",
        (
            "References inside a file are refused: a few of them can blow up to gigabytes, and they hide what an "
            "entry says."
        ),
        "axes: &shared {scope: core}\nother: *shared",
        "axes: {scope: core}",
    ),
    (
        "E110",
        "tag or directive",
        "A value's type follows from how it is written; tags such as `!!python/object` are refused.",
        "year: !!str 2023",
        "year: 2023",
    ),
    (
        "E111",
        "more than one document",
        "One file holds one entry or one paper, so `---` stands at the top or nowhere.",
        "id: token-merging\n---\nid: delta-convolution",
        "id: token-merging   (and a second file for the other entry)",
    ),
    (
        "E112",
        "nested too deep",
        "No file of the atlas needs more than 40 levels.",
        "[[[[[[ ... ]]]]]]",
        "[a, b]",
    ),
    (
        "E113",
        "key that is no plain text",
        "A key is text on one line.",
        "? [a, b]\n: value",
        "a: value\nb: value",
    ),
    (
        "E114",
        "empty file",
        "The file holds nothing but comments or white space.",
        "# to do",
        "id: token-merging\nkind: technique\n...",
    ),
    (
        "E115",
        "not JSON",
        "A result record is JSON as `redundancy bench --save` writes it. Do not edit records by hand.",
        '{"technique": "token-merging",}',
        '{"technique": "token-merging"}',
    ),
    (
        "E116",
        "Windows line ends",
        (
            "Texts of the atlas end their lines with LF alone. `.gitattributes` sees to it in a clone; an editor that "
            "was told otherwise does not. The place is that of the first such line end."
        ),
        "id: token-merging<CR><LF>",
        "id: token-merging<LF>",
    ),
    (
        "E117",
        "a merge that is not finished",
        (
            "Where two branches changed the same lines, git leaves both versions in the file, between lines that begin "
            "with <<<<<<<, ======= and >>>>>>>. Nothing else is said of such a file."
        ),
        "<<<<<<< HEAD\nstatus: draft\n=======\nstatus: stable\n>>>>>>> my-branch",
        "status: stable",
    ),
    (
        "E118",
        "curly quotes in the place of quotes",
        (
            "YAML knows straight quotes only; curly ones, which word processors and web pages make of them, are part "
            "of the text. Inside a text they are welcome, and a text that begins with one goes into a block (`>-`)."
        ),
        "arxiv: “2210.09461”",
        'arxiv: "2210.09461"',
    ),
    (
        "E201",
        "unknown key",
        "The schema has no such key here. Often a typing error, or a key at the wrong depth.",
        "sumary: Merges tokens.",
        "summary: Merges tokens.",
    ),
    (
        "E202",
        "missing key",
        "The schema needs this key. The place is that of the mapping that lacks it.",
        "quantity: {metric: throughput, value: 2.0}",
        "quantity: {metric: throughput, value: 2.0, unit: times}",
    ),
    (
        "E203",
        "wrong type",
        (
            "A number stands where a text belongs, a text where a list belongs, and so on. An arXiv id needs "
            "quotes: as a number, 2210.09460 loses its last digit."
        ),
        "arxiv: 2210.09461",
        'arxiv: "2210.09461"',
    ),
    (
        "E204",
        "value that is not among the choices",
        "The schema lists what may stand here.",
        "status: done",
        "status: stable",
    ),
    (
        "E205",
        "value of the wrong form",
        "The type is right, but not the form, the length or the range.",
        "added: 22/11/2026",
        'added: "2026-11-22"',
    ),
    (
        "E206",
        "unknown axis",
        "The axes are those of taxonomy/axes.yml.",
        "axes: {relations: temporal_similarity}",
        "axes: {relation: temporal_similarity}",
    ),
    (
        "E207",
        "unknown term",
        "The terms of an axis are those of taxonomy/axes.yml.",
        "axes: {relation: temporal}",
        "axes: {relation: temporal_similarity}",
    ),
    (
        "E208",
        "too many terms, or one twice",
        "An axis whose `choice` is `single` takes exactly one term; no axis takes a term twice.",
        "axes: {stage: [training, inference]}",
        "axes: {stage: both}",
    ),
    (
        "E209",
        "id or key differs from the file name",
        "The id names the file, the page, the module, the notebook and the test. Ids are never renamed.",
        "taxonomy/techniques/tome.yml with `id: token-merging`",
        "taxonomy/techniques/token-merging.yml with `id: token-merging` and `aliases: [ToMe]`",
    ),
    (
        "E210",
        "raw HTML, or a link that is no link",
        (
            "Prose is Markdown. HTML, links to `javascript:` and the like, and images from other sites do not "
            "reach a page."
        ),
        "definition: Set <b>r</b> tokens free.",
        "definition: Set **r** tokens free.",
    ),
    (
        "E211",
        "a day, a year or an identifier of another time",
        (
            "Entries were added, papers read and results measured on a day that has been, since the atlas began. A "
            "year may be the next one, since proceedings run ahead, and is none before there were computers. The first "
            "four digits of an arXiv id are the year and the month of its submission: from 9107 on, and none to come."
        ),
        'added: "2126-11-22"',
        'added: "2026-11-22"',
    ),
    (
        "E212",
        "a file that does not belong here",
        "Folders of the knowledge base hold nothing but `*.yml`; results lie in `results/<technique>/<scenario>.json`.",
        "papers/bolya-2023-token.yaml",
        "papers/bolya-2023-token.yml",
    ),
    (
        "E213",
        "a letter that looks like another one",
        (
            "A word that mixes Latin letters with Cyrillic or Greek ones that look the same, or an invisible character "
            "inside a word: a search for the word does not find it. Formulas and words of one alphabet are fine."
        ),
        "name: T\u043eken merging   (with a Cyrillic o)",
        "name: Token merging",
    ),
    (
        "E214",
        "a formula that the site cannot show",
        "Formulas become MathML when the site is built: plain LaTeX without packages or macros of your own.",
        "definition: The norm $\\Norm{x}$.",
        "definition: The norm $\\lVert x \\rVert$.",
    ),
    (
        "E215",
        "the same item twice in a list",
        "Nothing is gained by saying it twice; most often one of the two was meant to be another.",
        "aliases: [ToMe, tome]",
        "aliases: [ToMe]",
    ),
    (
        "E301",
        "an entry names a paper that is not there",
        "Every paper of an entry has a file in papers/.",
        "papers: [{key: bolya-2023-tokn, role: introduces}]",
        "papers: [{key: bolya-2023-token, role: introduces}]",
    ),
    (
        "E302",
        "a claim names an entry that is not there",
        "Every claim is about an entry of taxonomy/techniques/.",
        "technique: tome",
        "technique: token-merging",
    ),
    (
        "E303",
        "a relation, a part or a replacement names an entry that is not there",
        "Its target is the id of another entry.",
        "relations: [{type: composes-with, target: early-exit, note: ...}]",
        "relations: [{type: composes-with, target: confidence-early-exit, note: ...}]",
    ),
    (
        "E304",
        "the implementation is not where the id says",
        "The module of an entry is reference_impls.techniques.<id with underscores>, and the entry names it.",
        "implementation: reference_impls.techniques.tome:TokenMerging",
        "implementation: reference_impls.techniques.token_merging:TokenMerging",
    ),
    (
        "E305",
        "the module has no such class",
        "The class that the entry names stands at the top level of its module.",
        "implementation: reference_impls.techniques.token_merging:ToMe",
        "implementation: reference_impls.techniques.token_merging:TokenMerging",
    ),
    (
        "E306",
        "the class has the id of another entry",
        "The class attribute `id` is that of the entry which names the class.",
        'class TokenMerging(Technique):\n    id = "tome"',
        'class TokenMerging(Technique):\n    id = "token-merging"',
    ),
    (
        "E307",
        "a step names a function that is not there",
        "A step of the algorithm names a function, class or `Class.method` of the implementation or of `layers/`.",
        "algorithm: [{step: Match the tokens., function: match}]",
        "algorithm: [{step: Match the tokens., function: bipartite_soft_matching}]",
    ),
    (
        "E308",
        "a paper makes a claim about an entry that does not name the paper",
        "The two refer to each other, so that the entry's page shows the paper.",
        "papers: []   in the entry, technique: token-merging   in the claim",
        "papers: [{key: bolya-2023-token, role: introduces}]   in the entry",
    ),
    (
        "E309",
        "code or a result without an entry or a benchmark",
        (
            "Every implementation, experiment, notebook and test belongs to the entry of its name; a result, to the "
            "entry or to the benchmark of the name of its folder, and the names inside it are known too."
        ),
        "notebooks/tokenmerging.py",
        "notebooks/token_merging.py",
    ),
    (
        "E310",
        "a result that does not belong where it lies",
        "The technique and the scenario of a record are those of its path, and its experiments define the scenario.",
        'results/token-merging/photos.json with "scenario": "digits"',
        'results/token-merging/digits.json with "scenario": "digits"',
    ),
    (
        "E311",
        "a name or an identifier that is taken",
        "Ids, names and aliases of entries, identifiers of papers and ids of claims in a paper are unique.",
        "aliases: [ToMe]   in two entries",
        "aliases: [ToMe]   in one entry",
    ),
    (
        "E312",
        "replacements that go in a circle",
        "Following `replaced_by` must end at an entry that is not replaced.",
        "a: replaced_by: b\nb: replaced_by: a",
        "a: replaced_by: b",
    ),
    (
        "E313",
        "entries that stand above each other in a circle",
        (
            "What generalises another entry, has it as a variant, supersedes it or is composed of it cannot also, over "
            "any number of steps, be below it. `a generalises b` and `b variant-of a` say the same, and "
            "`a replaced_by b` says that b supersedes a."
        ),
        "a: {type: generalises, target: b}\nb: {type: generalises, target: a}",
        "a: {type: generalises, target: b}",
    ),
    (
        "E314",
        "a hard case or a statement names something that is not there",
        "Every statement points to the entries, papers, claims or results that support it, and they must exist.",
        "support: [{claim: bolya-2023-token#c99}]",
        "support: [{claim: bolya-2023-token#c1}]",
    ),
    (
        "E401",
        "a stable entry lacks a part",
        "What a stable entry of this kind must say. A draft may leave it out.",
        "status: stable   (and no limits)",
        "status: stable\nlimits:\n  - Dense prediction needs the tokens back.",
    ),
    (
        "E402",
        "a stable entry lacks a file, or a file what belongs in it",
        (
            "A stable entry with an implementation has a notebook, a test with `CASES` for the conformance checks, "
            "experiments with `SCENARIOS`, and a measured result with a null case. One point is enough where a "
            "technique is either on or off. `redundancy gaps ID` lists what is missing."
        ),
        "status: stable   (and no notebooks/token_merging.py)",
        "status: stable   (with notebooks/token_merging.py)",
    ),
    (
        "E403",
        "an entry or a paper is not classified on an axis",
        (
            "A stable entry is classified on every axis; a draft, and a paper that is no survey, on those by which "
            "entries are listed."
        ),
        "axes: {scope: core}",
        "axes: {scope: core, relation: spatial_similarity, location: tokens, ...}",
    ),
    (
        "E404",
        "a stable technique without its paper or without a claim",
        "A stable technique has a paper that introduces it, and at least one claim about it with a locator.",
        "papers: [{key: bolya-2023-token, role: applies}]",
        "papers: [{key: bolya-2023-token, role: introduces}]",
    ),
    (
        "E405",
        "an entry that is replaced, yet not deprecated",
        "`replaced_by` says what to use in place of a deprecated entry.",
        "status: stable\nreplaced_by: token-merging",
        "status: deprecated\nreplaced_by: token-merging",
    ),
    (
        "E406",
        "a stable entry whose code is still a stand-in",
        (
            "`redundancy new` writes a small technique that works, so that every check runs from the first minute. "
            "Each of its files says so in a paragraph that you delete when your own code is in its place."
        ),
        '"""Row sharing.\n\nTO DO (redundancy new): everything below is a small technique that works...',
        '"""Row sharing.\n\nThe idea: ...',
    ),
    (
        "E407",
        "an invariant that nobody has tried",
        (
            "The invariant of a draft is tried on numbers by a test of its name in `tests/test_invariants.py`, which "
            "shows a case that a wrong sentence would let through; or `invariant_untested` says why that needs an "
            "implementation first. An entry with tests of its own needs neither."
        ),
        "invariant: Equal keys can be merged without error.",
        "invariant: ...\ninvariant_untested: Which items are twins is decided by an embedding, on real data.",
    ),
    (
        "E501",
        "a check of a scenario without a result",
        "A claim's check compares with the committed result of a scenario of the claim's technique.",
        "check: {scenario: speed, ...}",
        "check: {scenario: vit-small-latency, ...}",
    ),
    (
        "E502",
        "a field that cannot be read",
        (
            "A field is a path into the result record, or the ratio or difference of two, with spaces around the "
            "sign. Points of the sweep are picked by their knobs, or with `at` as the one nearest to the paper's "
            "operating point: `points[point=nearest]`."
        ),
        "field: with.r13.quality",
        "field: points[r=13].quality.value - baseline.quality.value",
    ),
    (
        "E503",
        "a field that the record does not hold",
        "The path leads nowhere in the committed record, or to something else than one number.",
        "field: points[r=14].quality.value   (the sweep has r = 4, 8, 13)",
        "field: points[r=13].quality.value",
    ),
    (
        "E504",
        "a committed result of the smoke budget",
        "Published numbers come from the full budget.",
        "redundancy bench token-merging --save --budget smoke",
        "redundancy bench token-merging --save",
    ),
    (
        "E505",
        "a claim without its number",
        "A claim on speed, MACs, accuracy, memory or energy says how much.",
        "kind: speedup\nstatement: It is faster.",
        "kind: speedup\nstatement: It doubles the throughput.\nquantity: {metric: throughput, value: 2.0, unit: times}",
    ),
    (
        "E506",
        "an unverified statement",
        "What notes mark `[unverified]` does not enter the atlas before somebody has found the source.",
        "statement: It is 3 times faster [unverified].",
        "statement: It is 2 times faster.   (with its locator)",
    ),
    (
        "E507",
        "a file of a repository that the paper does not name",
        "A locator `file` refers to the official repository, which stands under `code`.",
        "locator: {file: README.md}   (and no `code`)",
        "code: [{url: https://github.com/facebookresearch/ToMe, official: true}]",
    ),
    (
        "E508",
        "a reference that leads to no number",
        (
            "A measured number in a text is a reference to a record, `{{scenario: field | format}}`, with the field of "
            "a check; of another entry's record, or in a paper, a hard case or a statement, "
            "`{{entry-id/scenario: field}}`. Formats: none (3 digits), .2 (decimals), % or %0, saved (1 - the value in "
            "per cent), points (+2.4 points), x (1.63×), k, M, G (counts), ms. `plain` in front leaves out the plus, "
            "`-` turns the sign."
        ),
        "limits: ['It loses {{photos: points[r=9].quality.valu | points}}.']",
        "limits: ['It loses {{photos: points[r=8].quality.value - baseline.quality.value | -.2}}.']",
    ),
    (
        "E509",
        "a check without its unit, or without what differs",
        (
            "The paper's number and ours stand beside each other in one unit, `unit` of the check, which is that of "
            "`target` and `tolerance` too. `differs` says in which of task, data and model our setting is another one; "
            "where it is all three, the verdict says so. `quantity` stands there where ours is another one, such as an "
            "explained variance beside an accuracy: then the direction alone is compared."
        ),
        "check: {scenario: photos, field: redundancy.value, target: 0.4, tolerance: 0.1}",
        "check: {scenario: photos, field: redundancy.value, target: 40, tolerance: 10, unit: percent, differs: [data]}",
    ),
    (
        "W601",
        "a summary that is no sentence",
        "The summary is shown alone in lists: one sentence, with a capital letter and a full stop.",
        "summary: merging of tokens",
        "summary: Averages the most similar tokens in every block.",
    ),
    (
        "W602",
        "the key and the year disagree",
        (
            "The key holds the year of the publication when it was made. Keys are never renamed, so correct the "
            "year if it is the year that is wrong."
        ),
        "key: bolya-2022-token\nyear: 2023",
        "key: bolya-2023-token\nyear: 2023",
    ),
    (
        "W603",
        "a formula that is not closed",
        "Formulas stand between dollar signs; a real dollar sign is written `\\$`.",
        "definition: Merges $r tokens.",
        "definition: Merges $r$ tokens.",
    ),
    (
        "W604",
        "no line for editors",
        "The first line tells editors which schema the file follows, so that they complete and check while you type.",
        "id: token-merging",
        "# yaml-language-server: $schema=../../tools/knowledge/schemas/entry.schema.json\nid: token-merging",
    ),
    (
        "W605",
        "a number that looks measured, without its record",
        (
            "In `when_to_use`, `when_not_to_use`, `limits` and `deviations` of a stable entry a decimal, a percentage, "
            "or a number of times or points is a reference to a record, so that it changes when the record does. Not "
            "meant are values that a knob takes in the entry's records, what stands in code or a formula, and numbers "
            "of a sentence that names the paper that they are from by its key."
        ),
        "limits: [It keeps 84.4 % of the accuracy.]",
        "limits: ['It keeps {{photos: points[r=4].quality.value / baseline.quality.value | %}} of the accuracy.']",
    ),
    (
        "E701",
        "a class attribute that is not stated, or not as a literal",
        "Tools read `id`, `execution`, `stateful`, `waivers` and `knobs` without importing the module.",
        "execution = choose_execution()",
        'execution = "real"',
    ),
    (
        "E702",
        "a class attribute of the wrong form",
        "`execution` is real or simulated, `stateful` true or false, `waivers` a mapping from a check to the reason.",
        'waivers = {"undo": ""}',
        'waivers = {"undo": "It selects data and changes no model, so there is nothing to undo."}',
    ),
    (
        "E703",
        "a module that does not name its paper",
        (
            "The docstring of a module starts with its references: the key of the paper that introduces it, and "
            "its arXiv id."
        ),
        '"""Token merging."""',
        '"""Token merging (bolya-2023-token, arXiv 2210.09461)."""',
    ),
    (
        "E704",
        "not Python",
        "The file does not parse.",
        "def merge(x:",
        "def merge(x):",
    ),
    (
        "E705",
        "a class that is not on the contract",
        "The class of an entry is a subclass of reference_impls.contract.Technique.",
        "class TokenMerging:",
        "class TokenMerging(Technique):",
    ),
    (
        "E801",
        "a notebook without cells, or with a marker that makes none",
        (
            "A notebook is Python in jupytext's py:percent form, without outputs. Its cells begin with `# %%` or "
            "`# %% [markdown]`, written with these spaces."
        ),
        "import torch",
        "# %% [markdown]\n# # Token merging\n\n# %%\nimport torch",
    ),
    (
        "E802",
        "a notebook that imports the tools",
        "A reader must be able to run a notebook with reference_impls alone.",
        "from tools.knowledge import load",
        "from reference_impls.techniques import token_merging",
    ),
    (
        "E804",
        "code under a markdown cell",
        (
            "Whatever stands below `# %% [markdown]` is text of that cell, up to the next marker: code there is never "
            "run, and shows as prose."
        ),
        "# %% [markdown]\n# ## The algorithm\nrows = technique.distinct_rows(x)",
        "# %% [markdown]\n# ## The algorithm\n\n# %%\nrows = technique.distinct_rows(x)",
    ),
    (
        "E803",
        "a notebook with magic or shell lines",
        "A notebook also runs as a script, in the tests.",
        "%matplotlib inline",
        "import matplotlib.pyplot as plt",
    ),
)
