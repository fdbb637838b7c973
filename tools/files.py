"""Writing files whole or not at all, one writer at a time, and folders that go when their owner does.

Every file of the knowledge is written through `write_atomically`, or through `Changes`, which is what a command gets
that changes files (`changing`): it holds the lock of the checkout, so that what it reads is what it changes, and what
it writes comes all together or not at all. What a command was killed over is undone by the next one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from reference_impls import strict
from reference_impls.whole import OutsideError as OutsideError
from reference_impls.whole import place
from reference_impls.whole import write_atomically as write_atomically

JOURNAL = Path(".cache/changing/journal.json")
JOURNAL_MB = 64
OWNED = "owner.lock"
"""Lock inside a scratch folder: who can take it knows that the folder's owner is gone."""


# --- changes of a checkout --------------------------------------------------------------------------------------------


class Changes:
    """What one command changes below `root`, while it has the lock."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(
        self, texts: Mapping[str, str], *, new: Mapping[str, str] | None = None, check: Callable[[], None] | None = None
    ) -> None:
        """Replace the text of files, and write new ones, by name relative to the root; all of them, or none.

        `check` runs when they are there; when it raises, they are taken back.

        Raises: FileExistsError where a new one is there already; OSError.
        """
        new = new or {}
        for name in new:
            if os.path.lexists(self.root / name):
                raise FileExistsError(f"{name} exists")
        after = {**texts, **new}
        for name in after:
            place(self.root / name, self.root)
        before = {name: _content(self.root / name) for name in after}
        journal = {name: [before[name], text.encode().decode("latin-1")] for name, text in after.items()}
        write_atomically(self.root / JOURNAL, json.dumps(journal), self.root)
        try:
            for name, text in after.items():
                write_atomically(self.root / name, text, self.root)
            if check is not None:
                check()
        except BaseException:
            undo(self.root)
            raise
        _forget(self.root)


def undo(root: Path) -> None:
    """Take back what a command was ended over; what somebody has changed since stays as it is."""
    if not (root / JOURNAL).parent.exists():
        return
    try:
        journal = strict.loads(strict.read(root / JOURNAL, JOURNAL_MB * 2**20))
        changes = [(root / name, before, after) for name, (before, after) in journal.items()]
    except (OSError, ValueError, AttributeError, TypeError):
        changes = []  # it is written whole, so that this one is not ours
    for file, before, after in changes:
        try:
            place(file, root)
        except OutsideError:
            continue
        ours = _content(file) == after
        if ours and before is None:
            file.unlink(missing_ok=True)
        elif ours:
            write_atomically(file, before.encode("latin-1"), root)
        _tidy(file.parent)
    _forget(root)


def _tidy(folder: Path) -> None:
    """Remove what writers that were killed left in a folder of which we have the lock."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


def _forget(root: Path) -> None:
    """Remove the journal, and its folders where they hold nothing else: what is written now stays."""
    (root / JOURNAL).unlink(missing_ok=True)
    _tidy((root / JOURNAL).parent)
    with contextlib.suppress(OSError):
        for folder in list((root / JOURNAL).parents)[:2]:
            folder.rmdir()


def _content(file: Path) -> str | None:
    """The bytes of a file as characters, of which JSON holds any; None where there is none."""
    try:
        return file.read_bytes().decode("latin-1")
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def changing(root: Path) -> Iterator[Changes]:
    """What may be changed at `root` under the lock of the checkout, which the system frees when this process ends."""
    with _locked(root):
        undo(root)
        yield Changes(root)


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """The lock of a folder, which leaves nothing in it."""
    if sys.platform == "win32":  # locks no folders
        name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
        with FileLock(Path(tempfile.gettempdir()) / f"atlas-{name}.lock"):
            yield
        return
    import fcntl

    descriptor = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another command that changes files ...", file=sys.stderr)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# --- folders for a time -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def scratch(prefix: str, home: Path | None = None) -> Iterator[Path]:
    """A folder of our own below `home` (the system's place for such), gone at the end.

    Folders with this prefix whose owners were killed before that go now.
    """
    home = home or Path(tempfile.gettempdir())
    home.mkdir(parents=True, exist_ok=True)
    for left in home.glob(f"{prefix}*"):
        _sweep(left)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=home))
    lock = FileLock(folder / OWNED)
    lock.acquire()
    try:
        yield folder
    finally:
        lock.release()
        _remove(folder)


def _sweep(folder: Path) -> None:
    """Remove the folder of somebody who is gone; not one of another user, nor through a link."""
    with contextlib.suppress(OSError, Timeout):
        about = folder.lstat()
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != getattr(os, "geteuid", lambda: about.st_uid)():
            return
        if not (folder / OWNED).is_file():
            return  # being made at this moment, or not ours
        with FileLock(folder / OWNED, timeout=0):
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder, with the folders in it that nobody may enter."""
    for here, names, _ in os.walk(folder):
        for inner in (Path(here, name) for name in names):
            with contextlib.suppress(OSError):
                if not inner.is_symlink():
                    inner.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
