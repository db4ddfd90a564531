"""Writing: the old, the new, or nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from castling_convert import files
from castling_convert.errors import OutputError
from castling_convert.files import (
    locked,
    recover,
    replace_folder,
    require_space,
    sha256,
    writing,
    writing_errors,
    writing_file,
)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture
def old(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "old").write_text("old")
    return tmp_path / "target"


@pytest.mark.parametrize(("mask", "folder", "file"), [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600)])
def test_permissions_are_those_of_new_files(tmp_path, mask, folder, file):
    """Also of what a library writes for its owner alone, as safetensors does."""
    before = os.umask(mask)
    try:
        with writing(tmp_path / "target") as fresh:
            (fresh / "inner").mkdir()
            (fresh / "inner" / "private").touch(mode=0o600)
        with writing_file(tmp_path / "single") as path:
            path.touch(mode=0o600)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"target": folder, "inner": folder, "private": file, "single": file}


def test_a_folder_appears_whole(tmp_path):
    with writing(tmp_path / "deep" / "target") as fresh:
        (fresh / "file").write_text("new")
        assert not (tmp_path / "deep" / "target").exists()
    assert names(tmp_path) == ["deep", "deep/target", "deep/target/file"]
    assert (tmp_path / "deep" / "target").stat().st_mode & 0o777 == 0o755


@pytest.fixture(params=["exchanged", "moved aside"])
def swap(request, monkeypatch):
    """Both ways to replace a folder: at once, and as systems without an exchange of folders have to."""
    if request.param == "moved aside":
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)


def test_folders_are_exchanged_at_once(tmp_path, old):
    """On the file systems of Linux; there the path is never without a folder."""
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    if not files._exchange(fresh, old):
        pytest.skip("this file system can't exchange two folders")
    assert names(tmp_path) == ["fresh", "fresh/old", "target"]
    assert not files._exchange(tmp_path / "nothing", old)
    with pytest.raises(FileNotFoundError, match="nothing"):
        replace_folder(tmp_path / "nothing", old)
    assert names(tmp_path) == ["fresh", "fresh/old", "target"]


def test_a_folder_is_replaced_whole(tmp_path, old, swap):
    with writing(old) as fresh:
        (fresh / "new").write_text("new")
        assert (old / "old").exists()
    assert names(tmp_path) == ["target", "target/new"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_leaves_the_old_one(tmp_path, old, error):
    with pytest.raises(error), writing(old) as fresh:
        (fresh / "new").write_text("new")
        raise error
    assert names(tmp_path) == ["target", "target/old"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_stopped_between_the_two_renames_the_old_one_is_back(tmp_path, old, monkeypatch, error):
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    whole = Path.rename

    def stopped(self, target):
        if self == fresh:
            raise error
        return whole(self, target)

    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises(error):
        replace_folder(fresh, old)
    assert names(tmp_path) == ["fresh", "target", "target/old"]


def test_what_a_killed_process_left_is_cleared(tmp_path, old):
    for left in (".target.ab12cd_9", ".target.old.ab12cd_9", ".target.notours", ".other.ab12cd_9"):
        (tmp_path / left).mkdir()
    (tmp_path / ".target.ab12cd_9" / "half").write_text("half")
    recover(old)
    assert names(tmp_path) == [".other.ab12cd_9", ".target.notours", "target", "target/old"]


def test_what_was_moved_aside_comes_back(tmp_path, old):
    """A process killed between the two renames leaves no target at all."""
    (tmp_path / ".target.old.ab12cd_9").mkdir()
    old.rename(tmp_path / ".target.old.ab12cd_9" / "target")
    (tmp_path / ".target.zz12cd_9").mkdir()
    recover(old)
    assert names(tmp_path) == ["target", "target/old"]


HOLDS = """
import sys, time
from pathlib import Path
from castling_convert.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_dies_with_its_process(tmp_path):
    """What its file says stays behind and means nothing; the next one clears it away."""
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for name in ("target", "link"):  # the same place by another name
        command = [sys.executable, "-c", HOLDS, str(tmp_path / "target")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout.readline() == "held\n"
            refused = pytest.raises(OutputError, match=rf"{name} is in the hands of process {other.pid} on ")
            with refused, locked(tmp_path / name):
                pytest.fail("two have it")
            other.kill()
            other.wait()
        assert names(tmp_path) == [".target.lock", "link"]
        with locked(tmp_path / name):
            assert f"process {os.getpid()} on" in (tmp_path / ".target.lock").read_text()
        assert names(tmp_path) == ["link"]


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_a_lock_leaves_nothing(tmp_path, error):
    with contextlib.suppress(ValueError, KeyboardInterrupt), locked(tmp_path / "deep" / "er" / "target"):
        assert names(tmp_path) == ["deep", "deep/er", "deep/er/.target.lock"]
        if error:
            raise error
    assert names(tmp_path) == []
    with locked(tmp_path / "deep" / "target"):
        (tmp_path / "deep" / "target").mkdir()
    assert names(tmp_path) == ["deep", "deep/target"]


def test_a_lock_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="file/target"), locked(tmp_path / "file" / "target"):
        pytest.fail("there is no folder")
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_a_file_appears_whole_or_not(tmp_path, error):
    (tmp_path / "file").write_text("old")
    try:
        with writing_file(tmp_path / "file") as fresh:
            assert fresh.name == "file"
            fresh.write_text("new")
            assert (tmp_path / "file").read_text() == "old"
            if error:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == ("old" if error else "new")


def test_a_folder_in_the_place_of_a_file(old):
    with pytest.raises(OutputError, match="target"), writing_file(old) as fresh:
        fresh.write_text("new")
    assert names(old) == ["old"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left for out; .*--output"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space left for out"),
        (OSError(errno.EFBIG, "File too large"), "no space left for out"),
        (PermissionError(errno.EACCES, "Permission denied"), "can't write out: permission denied; .*--output"),
        (OSError(errno.EROFS, "Read-only file system"), "can't write out: read-only file system"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory"), "can't write out: not a directory"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "no space left for out"),
        (RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter file write failed"), "no space left"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), "no space left"),
    ],
)
def test_what_the_system_says_is_one_line(error, words):
    with pytest.raises(OutputError, match=words), writing_errors(Path("out")):
        raise error


@pytest.mark.parametrize("error", [ValueError("a defect"), OSError(errno.EIO, "I/O error")])
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught, writing_errors(Path("out")):
        raise error
    assert caught.value is error


def test_require_space(tmp_path):
    require_space(tmp_path / "not" / "there", 1)
    with pytest.raises(OutputError, match=r"no space for .*there: 1000000000000 MB are needed and \d+ MB are free"):
        require_space(tmp_path / "not" / "there", 10**18)


def test_sha256(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert sha256(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
