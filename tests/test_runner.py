"""Broken contributions can neither hang nor take down whoever runs them."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tools import runner
from tools.runner import Outcome

EXPERIMENT = """
import os, signal, socket, subprocess, sys, threading, time
from reference_impls.accounting.record import Machine, Measured, Point, Quality, Record, Variant, WallTime
from reference_impls.study import Plan, Scenario

def make(study, scenario="default", technique="made-up", **changes):
    time_ = WallTime(median=1.0, p10=1.0, p90=1.0, p99=1.0, n=15)
    variant = dict(macs=10, bytes=20, quality=Quality(metric="accuracy", value=0.5), wall_ms=time_)
    fields = dict(
        technique=technique, scenario=scenario, title="Made up", budget=study.context.budget, data="none",
        unit="one image", knobs=("r",), baseline=Variant(**variant), points=(Point(**variant, knobs={"r": 1}),),
        seeds=(0,), device=study.device,
        redundancy=Measured(measure="none", value=0.0), versions={"torch": "2"}, command="redundancy run made-up",
        machine=Machine(cpu="any", cores=1, threads=1, memory_gb=1.0), date="2026-11-22",
    )
    return Record(**fields | changes)

"""

Run = Callable[..., Outcome]
STARTS = pytest.mark.parametrize("preloaded", [False, True], ids=["started", "forked"])
"""For what must hold in an interpreter of its own and in a fork of the preloaded one; the other tests fork."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Writes an experiment whose scenario has the given body, and runs it in a fork of the preloaded process."""

    def write_and_run(body: str, *, whole: bool = False, **options: Any) -> Outcome:
        package = tmp_path / "contributed"
        package.mkdir(exist_ok=True)
        (package / "__init__.py").touch()
        scenario = "\nSCENARIOS = [Scenario(n, 'Made up', run, Plan(), Plan()) for n in ('default', 'other')]\n"
        function = "def run(study):\n" + textwrap.indent(textwrap.dedent(body), "    ")
        (package / "made_up.py").write_text(body if whole else EXPERIMENT + function + scenario)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return runner.run("made-up", package="contributed", **{"seconds": 60, "preloaded": True} | options)

    return write_and_run


@STARTS
def test_a_record_comes_back_with_progress_and_the_output_apart(
    run: Run, capfd: pytest.CaptureFixture[str], preloaded: bool
) -> None:
    seen: list[tuple[str, int, int]] = []
    outcome = run(
        """
        print("from python")
        os.write(1, b"from native code\\n")
        subprocess.run([sys.executable, "-c", "print('from a child')"])
        print("no end of line", end="")
        study.progress("training", 1, 2)
        study.progress("training", 2, 2)
        return make(study)
        """,
        progress=lambda label, done, total: seen.append((label, done, total)),
        budget="full",
        preloaded=preloaded,
    )
    assert outcome.error is None, outcome
    assert outcome.record is not None
    assert (outcome.record.technique, outcome.record.budget) == ("made-up", "full")
    assert seen == [("training", 1, 2), ("training", 2, 2)]
    assert outcome.log.splitlines() == ["from python", "from native code", "from a child", "no end of line"]
    assert outcome.seconds > 0
    assert outcome.peak_mb > 10
    assert capfd.readouterr() == ("", ""), "nothing reaches the caller's own output"


def test_a_scenario_is_chosen_by_name(run: Run) -> None:
    body = "return make(study, scenario='other')"
    assert run(body, scenario="other").record is not None
    assert runner.scenarios("made-up", package="contributed") == {"default": "Made up", "other": "Made up"}
    unknown = run(body, scenario="third")
    assert unknown.error == "usage"
    assert "no scenario 'third'; there are: default, other" in unknown.message


FAILURES = {
    "an exception": ("raise KeyError('lost')", "exception", "KeyError: 'lost'"),
    "exit": ("sys.exit(0)", "exception", "SystemExit"),
    "a hard exit": ("os._exit(0)", "crash", "exit code 0"),
    "no record": ("return float('nan')", "invalid-record", "must return a record"),
    "NaN": ("return make(study, redundancy=Measured(measure='m', value=float('nan')))", "invalid-record", "finite"),
    "the network": (
        "import urllib.request as u; u.urlopen('http://127.0.0.1:9')",
        "network",
        "experiments run offline",
    ),
    "a missing extra": (
        "raise ModuleNotFoundError('No module', name='skimage.data')",
        "missing-extra",
        'skimage is needed and not installed: pip install "redundancy-atlas[data]"',
    ),
    "a hidden refusal": (
        "try: socket.socket(socket.AF_UNIX).connect('/nowhere')\nexcept OSError: raise RuntimeError('hidden')",
        "network",
        "experiments run offline",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures_have_a_kind_and_a_message(run: Run, name: str) -> None:
    body, kind, says = FAILURES[name]
    outcome = run(body)
    assert outcome.record is None
    assert (outcome.error, says in outcome.message) == (kind, True), outcome


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, None),
        ({"technique": "other"}, "technique: 'other', but the run was of 'made-up'"),
        ({"scenario": "other"}, "scenario: 'other', but the run was of 'default'"),
        ({"extra": {"loss": float("nan")}}, "NaN is no number"),
        ({"seeds": []}, "seeds"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_the_record_is_validated_again_outside_the_child(
    tmp_path: Path, change: dict[str, Any], says: str | None
) -> None:
    time_ = {"median": 1.0, "p10": 1.0, "p90": 1.0, "p99": 1.0, "n": 15}
    variant = {"macs": 1, "bytes": 1, "quality": {"metric": "accuracy", "value": 0.5}, "wall_ms": time_}
    record = {
        "technique": "made-up", "scenario": "default", "title": "Made up", "budget": "smoke", "data": "none",
        "unit": "one image", "knobs": ["r"], "baseline": variant, "points": [variant | {"knobs": {"r": 1}}],
        "seeds": [0],
        "redundancy": {"measure": "none", "value": 0.0}, "versions": {}, "command": "-", "date": "2026-11-22",
        "machine": {"cpu": "any", "cores": 1, "threads": 1, "memory_gb": 1.0},
    }  # fmt: skip
    text, wanted = json.dumps(record | change), {"technique": "made-up", "scenario": "default", "budget": "smoke"}
    if says is None:
        assert runner._record(text, wanted).title == "Made up"
    else:
        with pytest.raises(ValueError, match=says):
            runner._record(text, wanted)


@pytest.mark.parametrize("text", ["", "[1]", "{", "null", "\x00"])
def test_a_result_that_is_no_record(tmp_path: Path, text: str) -> None:
    result = tmp_path / "result.json"
    result.write_text(text)
    _, delivered = runner._delivered(Outcome(), result, 0)
    assert delivered == text
    with pytest.raises(ValueError):
        runner._record(text, {})


@STARTS
def test_the_log_of_a_crash_names_the_line(run: Run, preloaded: bool) -> None:
    body = "print('x' * 10**6)\nfor i in range(1000): print('line', i)\nimport ctypes; ctypes.string_at(0)"
    outcome = run(body, preloaded=preloaded)
    assert (outcome.error, "SIGSEGV" in outcome.message) == ("crash", True), outcome
    assert "made_up.py" in outcome.log
    assert len(outcome.log) < 10**6


@pytest.mark.parametrize(
    ("text", "says"),
    [("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'"), ("x = 1", "SCENARIOS")],
)
def test_modules_that_cannot_be_imported(run: Run, text: str, says: str) -> None:
    outcome = run(text, whole=True)
    assert (outcome.error, says in outcome.message) == ("import", True), outcome


@STARTS
def test_the_callers_packages_come_before_folders_of_the_clone(run: Run, tmp_path: Path, preloaded: bool) -> None:
    for name in ("tools", "tests", "notebooks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("OWNER = 'caller'")
    outcome = run(
        """
        import notebooks, tests, tools
        assert tools.OWNER == tests.OWNER == notebooks.OWNER
        return make(study)
        """,
        preloaded=preloaded,
    )
    assert outcome.record is not None, outcome


@STARTS
def test_the_implementations_are_those_that_are_asked_for(run: Run, tmp_path: Path, preloaded: bool) -> None:
    package = tmp_path / "another clone" / "reference_impls"
    package.mkdir(parents=True)
    (package / "__main__.py").write_text("raise SystemExit('the other clone')")
    outcome = run("return make(study)", implementations=package, preloaded=preloaded)
    assert outcome.error == "crash"
    assert "the other clone" in outcome.log


def test_an_unknown_technique() -> None:
    with pytest.raises(RuntimeError, match="no-such-technique"):
        runner.scenarios("no-such-technique")


def test_a_missing_asset_says_how_to_get_it(run: Run) -> None:
    body = """
    class MissingAsset(Exception): pass
    raise MissingAsset("the asset 'vit' is not in the cache; run `redundancy assets get vit`")
    """
    outcome = run(body)
    assert outcome.error == "missing-asset"
    assert "redundancy assets get vit" in outcome.message


@pytest.mark.parametrize(
    "body",
    [
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass",
        "while True: os.write(1, b'x' * 65536)",
    ],
    ids=["silently", "with a flood of output"],
)
def test_a_run_for_ever_is_stopped(run: Run, body: str) -> None:
    outcome = run(body, seconds=2)
    assert outcome.error == "timeout"
    assert "within 2 s" in outcome.message
    assert outcome.seconds < 60
    assert len(outcome.log) <= runner.LOG_LINES * (runner.LINE_LENGTH + 1)


@pytest.mark.parametrize(
    "body",
    [
        "kept = []\nwhile True: kept.append(bytearray(2**24))",
        "import torch; torch.ones(2**31)",
        # each child stays under the limit, all together do not
        """
        hold = "import time; kept = bytearray(b'x') * 2**28; time.sleep(100)"
        children = [subprocess.Popen([sys.executable, '-c', hold]) for _ in range(6)]
        time.sleep(100)
        """,
    ],
    ids=["objects", "one tensor", "children"],
)
def test_memory_without_end_is_stopped(run: Run, body: str) -> None:
    outcome = run(body, memory_gb=1.0)
    assert outcome.error == "memory", outcome
    assert "memory" in outcome.message
    assert outcome.peak_mb < 2500


LEFT = {
    "brackets without end": ("open(p, 'w').write('[' * 10**6); os._exit(0)", "invalid-record", "nested more than"),
    "a folder": ("os.mkdir(p); os._exit(0)", "invalid-record", "a folder"),
    "a pipe": ("os.mkfifo(p); os._exit(0)", "invalid-record", "a pipe"),
    "a link to a device": ("os.symlink('/dev/zero', p); os._exit(0)", "invalid-record", "a link"),
    "a file without end": ("open(p, 'w').truncate(2**40); os._exit(0)", "invalid-record", "larger than 32 MiB"),
    "an error of no kind": (
        "open(p, 'w').write('{\"error\": [1], \"message\": {}}'); os._exit(0)", "invalid-record", "not valid",
    ),
    "pictures that are none": (
        "open(p[:-4] + 'npz', 'w').write('x' * 99); return make(study)", "invalid-record", "no file of pictures",
    ),
    "a pipe of pictures": ("os.mkfifo(p[:-4] + 'npz'); return make(study)", "invalid-record", "a pipe"),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_whatever_is_left_as_the_result_the_caller_stands(run: Run, name: str) -> None:
    body, kind, says = LEFT[name]
    outcome = run("p = os.path.abspath('result.json')\n" + body)
    assert (outcome.error, says in outcome.message) == (kind, True), outcome


def test_a_pipe_as_the_result_does_not_outlast_the_grace(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "GRACE_S", 0.5)
    outcome = run("os.mkfifo('result.json')\ntime.sleep(1000)", seconds=30)
    assert outcome.error == "invalid-record"
    assert outcome.seconds < 30


@pytest.mark.parametrize(
    "line",
    [
        b'{"label": 1, "done": 1e999, "total": 1}', b"[" * 3900,
        b'{"label": "x", "done": 1' + b"0" * 400 + b', "total": 1}',
        b'{"label": "x", "done": true, "total": null}', b"\xff\xfe", b'{"label": "\\ud800", "done": 1, "total": 1}',
    ],
    ids=["infinity", "brackets", "digits", "no numbers", "no text", "half a character"],
)  # fmt: skip
def test_a_bad_line_of_progress_costs_nothing(run: Run, line: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[str, int, int]] = []
    body = f"os.write(2, b'\\nATLAS-PROGRESS ' + {line!r} + b'\\n')\nfor _ in range(300): os.write(2, b'x' * 1000)\n"
    outcome = run(
        body + "study.progress('then', 1, 1)\nprint('said')\nreturn make(study)",
        progress=lambda *told: seen.append(told),
    )
    assert outcome.record is not None, outcome
    assert seen == [("then", 1, 1)]
    assert outcome.log.endswith("said")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("label", ["'steps'", "f'step {n}'"], ids=["one label", "many labels"])
def test_the_deadline_holds_in_a_flood_of_progress(run: Run, label: str) -> None:
    told = 0

    def slow(label: str, done: int, total: int) -> None:
        nonlocal told
        told += 1
        time.sleep(0.02)

    body = f"n = 0\nwhile True:\n    n += 1\n    study.progress({label}, n, n + 1)"
    outcome = run(body, seconds=3, progress=slow)
    assert outcome.error == "timeout"
    assert told <= 500
    assert outcome.seconds < 6


@pytest.mark.parametrize("device", ["cpu:99", "nowhere", "xpu:7"])
def test_a_device_that_is_not_there_is_wrong_usage(run: Run, device: str) -> None:
    outcome = run("return make(study)", device=device)
    assert (outcome.error, f"the device {device!r} cannot be used" in outcome.message) == ("usage", True), outcome


@pytest.mark.parametrize("limits", [{"seconds": 0}, {"seconds": -1}, {"seconds": float("nan")}, {"memory_gb": 0}])
def test_limits_that_are_none_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        runner.run("made-up", **limits)


def test_labels_and_logs_reach_no_terminal_as_commands(run: Run) -> None:
    seen: list[str] = []
    body = "study.progress('\\x1b[2J[/x]' + 'y' * 999, 1, 1)\nprint('\\x1b]0;title\\x07text')\nreturn make(study)"
    outcome = run(body, progress=lambda label, done, total: seen.append(label))
    assert seen[0].startswith("[2J[/x]yyy")
    assert len(seen[0]) == runner.LABEL_LENGTH
    assert outcome.log == "]0;titletext"


@STARTS
def test_no_process_is_left_behind(run: Run, tmp_path: Path, preloaded: bool) -> None:
    """Neither children, nor those that were handed to another parent in a session of their own."""
    pids = tmp_path / "pids"
    outcome = run(
        f"""
        sleep = "import os, time; open({str(pids)!r}, 'a').write(str(os.getpid()) + ' '); time.sleep(1000)"
        subprocess.Popen([sys.executable, "-c", sleep])
        orphan = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True)"
        subprocess.run([sys.executable, "-c", orphan, sleep])
        while not os.path.exists({str(pids)!r}) or len(open({str(pids)!r}).read().split()) < 2: time.sleep(0.05)
        return make(study)
        """,
        preloaded=preloaded,
    )
    assert outcome.record is not None, outcome
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == 2
    assert not [pid for pid in started if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]


def test_a_thread_that_never_ends_does_not_cost_the_record(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "GRACE_S", 0.5)
    outcome = run("threading.Thread(target=time.sleep, args=(1000,)).start()\nreturn make(study)", seconds=30)
    assert outcome.record is not None
    assert outcome.seconds < 30


def test_the_workers_of_a_data_loader_work(run: Run) -> None:
    outcome = run(
        """
        import torch
        from torch.utils.data import DataLoader, TensorDataset
        loader = DataLoader(TensorDataset(torch.arange(32.0)), 8, num_workers=2)
        assert sum(batch[0].sum().item() for batch in loader) == 496
        return make(study)
        """
    )
    assert outcome.record is not None, outcome


@pytest.mark.skipif(sys.platform != "linux", reason="programs are cut off by a Linux namespace")
@STARTS
def test_programs_that_it_starts_are_offline_where_the_system_allows(run: Run, preloaded: bool) -> None:
    outcome = run(
        """
        code = "import os; print('devices', sorted(n for n in os.listdir('/proc/sys/net/ipv4/conf')))"
        subprocess.run([sys.executable, "-c", code])
        return make(study)
        """,
        preloaded=preloaded,
    )
    assert outcome.record is not None
    allowed = os.system("unshare --user --net true 2>/dev/null") == 0
    devices = next(line for line in outcome.log.splitlines() if line.startswith("devices"))
    if allowed:
        assert "eth0" not in devices


def test_the_callers_folder_stays_clean_and_errors_of_the_callback_pass(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert run("open('litter', 'w').write('x')\nreturn make(study)").record is not None
    assert not list(folder.iterdir())

    before = {p.pid for p in psutil.Process().children(recursive=True)}

    def broken(label: str, done: int, total: int) -> None:
        raise BrokenPipeError(label)

    with pytest.raises(BrokenPipeError, match="training"):
        run("study.progress('training', 1, 2)\ntime.sleep(1000)", progress=broken)
    assert not {p.pid for p in psutil.Process().children(recursive=True)} - before
