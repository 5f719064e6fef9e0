"""Locks between processes: freed by any death, and harmless to the files they are held on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time

import pytest

from trajmatch.errors import SettingError
from trajmatch.storage.locks import ProcessLock, lock, try_lock

HOLDER = """
import sys, time
from pathlib import Path
from trajmatch.storage.locks import ProcessLock

lock = ProcessLock(Path(sys.argv[1]))
print(lock.acquire(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.lock"


@pytest.fixture
def holder(path):
    """Another process that holds the lock on `path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_until_the_first_is_killed(path, holder):
    with try_lock(path) as free:
        assert not free
    assert not ProcessLock(path).acquire()
    holder.kill()  # SIGKILL: no cleanup of its own
    holder.wait()
    with try_lock(path) as free:
        assert free


def test_waiting_ends_with_the_death_of_the_holder(path, holder):
    threading.Timer(0.3, holder.kill).start()
    with lock(path):
        assert holder.wait(timeout=10) != 0


def test_two_locks_of_one_process_exclude_each_other(path):
    first, second = ProcessLock(path), ProcessLock(path)
    assert first.acquire()
    assert not second.acquire()
    second.release()  # it holds nothing: the first keeps its lock
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()


def test_a_block_frees_its_lock_also_when_it_fails(path):
    for block in (lock, try_lock):
        with pytest.raises(RuntimeError, match="inside"), block(path):
            raise RuntimeError("inside")
        with try_lock(path) as free:
            assert free


def test_a_lock_is_released_by_another_thread(path):
    taken = ProcessLock(path)
    assert taken.acquire()
    thread = threading.Thread(target=taken.release)
    thread.start()
    thread.join()
    with try_lock(path) as free:
        assert free


def test_a_lock_file_keeps_its_content(path):
    path.write_text("not empty")
    with lock(path):
        pass
    with try_lock(path) as free:
        assert free
        with try_lock(path) as again:
            assert not again
    assert path.read_text() == "not empty"


def test_a_symbolic_link_is_refused_and_its_target_left_alone(path, tmp_path):
    target = tmp_path / "results.csv"
    target.write_text("precious")
    path.symlink_to(target)
    for take in (lock, try_lock):
        with pytest.raises(SettingError, match=r"a\.lock is a symbolic link .*; remove it") as e:
            take(path).__enter__()
        assert "\n" not in str(e.value)
    assert target.read_text() == "precious"
    target.unlink()
    with pytest.raises(SettingError, match="symbolic link"):
        lock(path).__enter__()
    assert not target.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="flock is Unix's")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_refused(path, monkeypatch, number):
    """No marker file instead, which a killed process would leave behind for ever."""
    import fcntl

    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(SettingError, match=r"no file locks \(.*\); give a folder on another one"):
        ProcessLock(path).acquire()
    monkeypatch.undo()
    assert ProcessLock(path).acquire()


def test_other_errors_are_those_of_opening_the_file(tmp_path):
    with pytest.raises(IsADirectoryError):
        ProcessLock(tmp_path).acquire()


def test_a_removed_lock_file_excludes_nobody_wrongly(path):
    """Whoever waited on the removed file takes the new one."""
    first, order = ProcessLock(path), []
    assert first.acquire()

    def wait():
        with lock(path):
            order.append("waited")
            with try_lock(path) as free:
                order.append(free)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    first.release(remove=True)
    thread.join(timeout=10)
    assert order == ["waited", False]
    assert path.exists()
    first.release(remove=True)  # no longer held: the file is not ours to remove
    assert path.exists()
