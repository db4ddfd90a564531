"""Writing files so that a reader sees the old, the new, or nothing; never half of something."""

from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from .errors import OutputError

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_NOT_WRITABLE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY
}  # fmt: skip

_FULL = ("No space left", "File too large", "file write failed", "unexpected pos")
"""What safetensors and torch say of a full disk, in exceptions of their own."""


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """Yield a fresh sibling folder of `target` and rename it to `target` when the block ends well.

    When the block fails the sibling is removed and `target` is as it was.

    Raises:
        OutputError: no space, no permission.
    """
    with writing_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            yield fresh
            _as_usual(fresh)
            replace_folder(fresh, target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


@contextmanager
def writing_file(target: Path) -> Iterator[Path]:
    """As `writing`, for a single file: yields a path in a fresh sibling folder with the target's name."""
    with writing_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            yield folder / target.name
            _as_usual(folder)
            (folder / target.name).replace(target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _as_usual(folder: Path) -> None:
    """Give a folder, and all in it, the permissions that a new one has. Temporary folders are their owner's alone, and
    so is what safetensors writes."""
    mask = os.umask(0o077)  # it can't be read without being set
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def replace_folder(fresh: Path, target: Path) -> None:
    """Put `fresh` in the place of `target`, at once where the system can exchange two folders; what was there is
    removed last. Elsewhere it is moved aside first, and `recover` brings it back after a kill between the two."""
    if not target.exists():
        fresh.rename(target)
        return
    if _exchange(fresh, target):
        shutil.rmtree(fresh, ignore_errors=True)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent)) / target.name
    target.rename(aside)
    try:
        fresh.rename(target)
    except BaseException:  # a Ctrl-C between the two renames too
        if not target.exists():
            aside.rename(target)
        raise
    finally:
        if target.exists():
            shutil.rmtree(aside.parent, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths of one file system atomically; False, and nothing is done, where that can't be."""
    current_folder, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return rename(current_folder, os.fsencode(one), current_folder, os.fsencode(other), exchange) == 0


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """While open, `target` is this process's alone among those that ask; the system lets go of it when the process
    dies, on another machine too where the network file system knows locks. Where nothing does, nothing is locked.

    Raises:
        OutputError: another process has it; it is named. No permission.
    """
    refuse_long_name(target)
    path = target.resolve()
    path = path.parent / f".{path.name}.lock"
    made = [folder for folder in path.parents if not folder.exists()]
    with writing_errors(target):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _lock(path, target)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # as long as it is ours
        file.close()
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _lock(path: Path, target: Path) -> TextIO:
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            if fcntl is not None:  # not flock, which data workers would inherit, and hold when this process is killed
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                owner = file.read() or "another process"
                file.close()
                raise OutputError(
                    f"{target} is in the hands of {owner}; wait for it, or give another --output"
                ) from None
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            break
        file.close()  # its owner has removed it in between
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}, since {since}")
    file.flush()
    return file


def recover(target: Path) -> None:
    """After a process that was killed while it wrote `target`: bring back what it had moved aside, and remove what
    it left half-written beside it."""
    for path in sorted(target.parent.glob(f".{glob.escape(target.name)}.*")):
        if written_half(path) != target.name:
            continue
        if not target.exists() and path.name.startswith(f".{target.name}.old.") and (path / target.name).exists():
            (path / target.name).rename(target)
        shutil.rmtree(path, ignore_errors=True)


def written_half(path: Path) -> str | None:
    """The name of what is, or was when the process was killed, being written by way of `path`; None for others."""
    found = re.fullmatch(r"\.(.+?)(\.old)?\.[a-z0-9_]{8}", path.name)
    return found[1] if found else None


@contextmanager
def writing_errors(target: Path) -> Iterator[None]:
    """Turn what an operating system or a native writer says of a full disk into one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(f"no space left for {target}; free some, or use another --output") from None
        if error.errno in _NOT_WRITABLE:
            reason = (error.strerror or "not writable").lower()
            raise OutputError(f"can't write {target}: {reason}; use another --output") from None
        raise
    except Exception as error:
        text = str(error)
        if any(words in text for words in _FULL):
            raise OutputError(f"no space left for {target}; free some, or use another --output") from None
        raise


def expanded(path: str | Path) -> Path:
    """A path with `~` as the home folder, which a shell leaves as it is in `--output=~/mine` and Python everywhere."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # nobody has that name
        return Path(path)


def cache_folder() -> Path:
    """Where this user's caches of this package go, as the system wants it; it may not exist."""
    usual = {"win32": os.environ.get("LOCALAPPDATA"), "darwin": "~/Library/Caches"}
    root = os.environ.get("XDG_CACHE_HOME") or usual.get(sys.platform) or "~/.cache"
    return expanded(root) / "castling-convert"


def refuse_long_name(path: Path) -> None:
    """Raise OutputError for a name beside which `writing` could have no name of its own."""
    longest = 255 - len("..old.") - 8
    if len(os.fsencode(path.name)) > longest:
        raise OutputError(f"{path.name[:40]}... is too long a name; give one of up to {longest} letters with --output")


def require_space(folder: Path, needed: int) -> None:
    """Raise OutputError when the disk that holds `folder` has fewer than `needed` bytes free."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OutputError(
            f"no space for {folder}: {needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free; "
            "free some, or use another --output"
        )
    if not os.access(existing, os.W_OK):
        raise OutputError(f"can't write {folder}: permission denied; use another --output")


def sha256(path: Path) -> str:
    """The file's SHA-256 as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
