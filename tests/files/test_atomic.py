"""A file is whole or not there; what a killed write leaves is removed, what is being written is not; nobody guesses names."""

import errno
import os
import stat
import subprocess
import sys

import pytest

from xhat.files import atomic, locks
from xhat.files.atomic import PARTIAL, append_bytes, sweep, write_bytes

WRITE = """
import os, sys
from pathlib import Path
from xhat.files import atomic
real = os.fsync
def hold(file):
    print(flush=True)
    input()
    real(file)
os.fsync = hold
atomic.write_bytes(Path(sys.argv[1]), b"whole")
"""


@pytest.fixture
def writer(tmp_path):
    """A process that has written the bytes of tmp_path/file, and not yet given them their name."""
    job = subprocess.Popen([sys.executable, "-c", WRITE, tmp_path / "file"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert job.stdout.readline()
    yield job
    job.kill()
    job.wait()


def partials(folder):
    return [p for p in folder.iterdir() if PARTIAL.fullmatch(p.name)]


def test_what_is_being_written_stays_and_what_a_kill_left_goes(writer, tmp_path):
    assert len(partials(tmp_path)) == 1
    sweep(tmp_path)
    write_bytes(tmp_path / "other", b"1")
    assert len(partials(tmp_path)) == 1, "another process is writing it"
    writer.stdin.write(b"\n\n")
    writer.stdin.flush()
    assert writer.wait() == 0
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert partials(tmp_path) == []


def test_the_next_write_removes_what_a_kill_left(writer, tmp_path):
    writer.kill()
    writer.wait()
    assert len(partials(tmp_path)) == 1
    write_bytes(tmp_path / "file", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "open"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
def test_a_failed_write_names_the_file_and_leaves_the_old_one_and_nothing_else(tmp_path, monkeypatch, call, number):
    path = tmp_path / "file"
    write_bytes(path, b"old")
    monkeypatch.setattr(os, call, lambda *_, **__: (_ for _ in ()).throw(OSError(number, os.strerror(number))))
    with pytest.raises(OSError, match=r"/file'$") as raised:
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert raised.value.errno == number
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_ctrl_c_in_the_middle_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "file", b"new")
    assert list(tmp_path.iterdir()) == []


def test_parts_of_a_write_that_the_system_shortens_are_all_written(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:7]))
    write_bytes(tmp_path / "file", b"0123456789" * 3, memoryview(b"abc"), b"")
    append_bytes(tmp_path / "file", b"9876543210")
    assert (tmp_path / "file").read_bytes() == b"0123456789" * 3 + b"abc9876543210"


def test_the_name_and_the_folder_are_made_durable_in_this_order(tmp_path, monkeypatch):
    seen, fsync, replace = [], os.fsync, os.replace

    def noted(file):
        seen.append("folder" if stat.S_ISDIR(os.fstat(file).st_mode) else "file")
        fsync(file)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", lambda *paths: (seen.append("rename"), replace(*paths)))
    write_bytes(tmp_path / "file", b"1")
    assert seen == ["file", "rename", "folder"]


def test_a_planted_link_is_not_followed(tmp_path, monkeypatch):
    """Nobody can foresee the name; somebody who could would gain nothing."""
    target = tmp_path / "target"
    target.write_text("mine")
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda n: "0" * 2 * n)
    (tmp_path / f".xhat-{'0' * 16}.partial").symlink_to(target)
    with pytest.raises(FileExistsError):
        write_bytes(tmp_path / "file", b"new")
    assert target.read_text() == "mine"
    sweep(tmp_path)
    assert target.read_text() == "mine"


def test_a_new_file_has_the_rights_that_the_user_has_chosen(tmp_path):
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "file", b"1")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_must_not_go_does_not(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    write_bytes(tmp_path / "new", b"1", replace=False)
    with pytest.raises(FileExistsError, match="new"):
        write_bytes(tmp_path / "new", b"2", replace=False)
    assert (tmp_path / "new").read_bytes() == b"1"
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def test_a_file_system_without_locks_or_names_to_sync_costs_nothing(tmp_path, monkeypatch):
    real = os.fsync

    def no_folders(file):
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "no such thing")
        real(file)

    monkeypatch.setattr(os, "fsync", no_folders)
    monkeypatch.setattr(locks, "lock", lambda _: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks")))
    write_bytes(tmp_path / "file", b"1")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["my[1]", "*", "a b", "%s", "{}", "~", "line\nbreak"])
def test_names_are_no_patterns(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    (folder / f".xhat-{'0' * 16}.partial").touch()
    (folder / ".xhat-notes.partial").touch()
    write_bytes(folder / name, b"1")
    assert {p.name for p in folder.iterdir()} == {name, ".xhat-notes.partial"}


@pytest.mark.parametrize("call", ["unlink", "open", "fsync"])
def test_a_new_file_that_may_not_last_is_taken_back(tmp_path, monkeypatch, call):
    """Or a repeated command, which must replace no file, would take it for somebody else's."""
    real, seen = getattr(os, call), []

    def fails_once_it_is_there(*arguments, **named):
        if (tmp_path / "new").exists() and not seen:
            seen.append(call)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*arguments, **named)

    monkeypatch.setattr(os, call, fails_once_it_is_there)
    with pytest.raises(OSError, match="new"):
        write_bytes(tmp_path / "new", b"1", replace=False)
    monkeypatch.undo()
    assert seen == [call]
    assert list(tmp_path.iterdir()) == []
