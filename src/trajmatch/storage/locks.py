"""Exclusive locks between processes, each held on a file.

The locks are those of the `filelock` library in its kernel-backed form (`flock`; `LockFileEx` on
Windows), so the kernel frees one when its process ends, also by SIGKILL. The library's fallback, a
marker file that outlives a killed process, is switched off: a file system without locks is an
error. A lock file is opened without truncation and never through a symbolic link, so neither its
content nor that of another file is lost.

Two locks on the same file exclude each other also within one process. Waiting polls the file every
50 ms.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

import filelock

from trajmatch.errors import SettingError

_UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


class ProcessLock:
    """A lock on the file `path`, which is created if absent. Not held until `acquire` returns True.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> first, second = (ProcessLock(Path(folder.name, "a.lock")) for _ in range(2))
        >>> first.acquire(), second.acquire()
        (True, False)
        >>> first.release(remove=True)
        >>> folder.cleanup()
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Not thread-local: the thread that releases the lock may be another.
        self._lock = filelock.FileLock(path, thread_local=False, fallback_to_soft=False)

    def acquire(self, *, wait: bool = False) -> bool:
        """Take the lock; False if it is held elsewhere and `wait` is False.

        Raises SettingError for a symbolic link at `path` and for a file system without locks, and
        OSError as opening the file does.
        """
        try:
            self._lock.acquire(blocking=wait)
        except filelock.Timeout:
            return False
        except OSError as error:
            if self.path.is_symlink():
                raise SettingError(
                    f"{self.path} is a symbolic link where a lock file belongs; remove it"
                ) from error
            if error.errno in _UNSUPPORTED:
                raise SettingError(
                    f"the file system of {self.path} has no file locks ({error.strerror}); give a "
                    "folder on another one"
                ) from error
            raise
        return True

    def release(self, *, remove: bool = False) -> None:
        """Free the lock; with `remove` the file goes as well. Nothing happens if it is not held.

        Removing is safe while others wait: a lock won on a removed file is given up and taken anew
        on the file that has the name by then.
        """
        if remove and self._lock.is_locked:
            # While it is held: once it is free, the name may be another process's. On Windows an
            # open file cannot be removed, and filelock does it on release.
            with contextlib.suppress(OSError):
                self.path.unlink()
        self._lock.release()


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Wait for the lock on the file `path` and hold it in the block. Errors as `ProcessLock`."""
    process_lock = ProcessLock(path)
    process_lock.acquire(wait=True)
    try:
        yield
    finally:
        process_lock.release()


@contextlib.contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold the lock on the file `path` in the block if it is free; yields whether it was.

    Errors as `ProcessLock`.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, try_lock(Path(folder, ".lock")) as free:
        ...     free
        True
    """
    process_lock = ProcessLock(path)
    free = process_lock.acquire()
    try:
        yield free
    finally:
        process_lock.release()
