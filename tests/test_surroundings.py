"""Whatever is around a command: a line, exit code 2 and what to do; progress that a terminal shows as it is."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests import knowledge_fixture as base
from tests.site_fixture import record
from tools import bench, progress, runner
from tools.cli import main
from tools.knowledge import load
from tools.runner import Outcome

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base.write(tmp_path_factory.mktemp("surroundings") / "atlas")


@pytest.mark.parametrize(
    ("shell", "code", "says"),
    [
        ("{} list >/dev/full", 2, "free some room"),
        ("{} list >&-", 2, "the standard output is closed"),
        ("{} new technique <&-", 2, "missing: --name"),
        ("{} run no-such-thing 2>&- ", 2, ""),
        ("{} --root /nowhere list", 2, "--root is '/nowhere'"),
        ("ATLAS_ROOT=/nowhere {} list", 2, "ATLAS_ROOT is '/nowhere'"),
        ("ln -s loop loop; {} --root loop list", 2, "symbolic links"),
        ("ln -s loop loop; {} fmt loop", 2, "symbolic links"),
        ("{} check $(printf 'a%.0s' {{1..300}})", 2, "name too long"),
        ("{} export csl --out nosuch/..", 2, "no file"),
        ("{} export csv --out /dev/full", 2, "File exists"),
        ("ATLAS_CACHE=/dev/null {} assets get minilm", 1, "set ATLAS_CACHE"),
        ("ATLAS_CACHE=~nobody-here/x {} assets list", 2, "ATLAS_CACHE names no folder"),
        ("{} show $'\\xff'", 2, ""),
        ("{} list --where $'relation=\\xff'", 2, "no term"),
        ("mkdir gone; cd gone; rmdir ../gone; {} list", 0, ""),
    ],
)
def test_the_surroundings_of_a_command(shell: str, code: int, says: str, tmp_path: Path, atlas: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "ATLAS_ROOT": str(atlas)}
    command = shell.format('"$PYTHON" -m tools.cli')
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr


@pytest.mark.parametrize("by", ["--root", "ATLAS_ROOT"])
@pytest.mark.parametrize("where", ["", "papers", "nowhere"])
def test_the_root_means_the_same_however_it_is_named(
    by: str, where: str, atlas: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(atlas / where)
    if by == "ATLAS_ROOT":
        monkeypatch.setenv(by, root)
    result = CliRunner().invoke(main, [*(["--root", root] if by == "--root" else []), "list"])
    assert result.exit_code == (2 if where else 0)
    assert ("token-merging" in result.stdout) == (not where)


def test_records_are_saved_into_the_atlas_that_is_named_and_full_ones_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = base.write(tmp_path / "atlas")
    (root / base.RESULT).unlink()
    measured = record()
    monkeypatch.setattr(bench.runner, "scenarios", lambda *_, **__: {"photos": "Photos"})
    monkeypatch.setattr(runner, "run", lambda *_, budget, **__: Outcome(measured.model_copy(update={"budget": budget})))

    def save(*options: str) -> int:
        monkeypatch.setenv("ATLAS_ROOT", str(root))
        return CliRunner().invoke(main, ["bench", "token-merging", "--save", *options]).exit_code

    def saved() -> str:
        return load(root).results["token-merging"][0].budget

    assert save("--budget", "smoke") == 0
    assert saved() == "smoke"
    assert save() == 0
    assert saved() == "full"
    assert save("--budget", "smoke") == 2
    assert saved() == "full"
    assert save("--budget", "smoke", "--force") == 0
    assert saved() == "smoke"


NONSENSE = [
    "--seconds=nan", "--seconds=0", "--seconds=-1", "--seconds=inf", "--seconds=x", "--seconds=1e9", "--device=cpu:99",
    "--device=", "--device=cuda:x", "--budget=half",
]  # fmt: skip


@pytest.mark.parametrize("option", NONSENSE)
def test_nonsense_is_refused(option: str, atlas: Path) -> None:
    result = CliRunner().invoke(main, ["--root", str(atlas), "run", "token-merging", option])
    assert result.exit_code == 2
    assert option.partition("=")[2] in result.stderr


def on_a_terminal(report: str) -> str:
    """What a terminal shows of progress reported by this piece of Python."""
    code = f"from tools.progress import progress\nwith progress() as report:\n    {report}"
    ours, theirs = pty.openpty()
    done = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=theirs, stdout=theirs)
    os.close(theirs)
    shown = b""
    with io.FileIO(ours) as terminal:
        while done.poll() is None or shown == b"":
            try:
                shown += terminal.read(65536)
            except OSError:  # the other end is closed
                break
    assert done.wait() == 0, shown.decode()
    return shown.decode()


def test_labels_are_shown_as_they_are_and_no_terminal_obeys_them() -> None:
    shown = on_a_terminal(
        "report('loss [/epoch]', 1, 2); report('model [vit]', 10**400, -(10**400)); "
        "report('a\\x1b]0;x\\x07b\\nc', 1, 2)"
    )
    assert "loss [/epoch]" in shown
    assert "model [vit]" in shown
    assert "]0;xbc" in shown
    assert "\x1b]0" not in shown


def test_a_flood_of_labels_leaves_few_bars() -> None:
    shown = on_a_terminal("[report(f'label {n}', n, 3000) for n in range(3000)]")
    assert "label 2999" in shown
    assert shown.count("label") < 3000


def test_lines_of_progress_hold_any_number(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress(unit="bytes") as report:
        report("a\nb", 10**400, 10**400)
    assert capsys.readouterr().err == "ab: 1000000000000 of 1000000000000 MB\n"
