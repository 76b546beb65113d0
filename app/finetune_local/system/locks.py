"""File locks: a process works while it holds its lock, and the system releases it however the process ends. No clocks or ids.

The holder's lock is exclusive. An observer takes a shared one for a moment, so observers do not block each other. A starting
process that meets an observer's lock recognises it by trying a shared lock itself, and retries; so a run can be started however often
it is observed.

Some network drives have no locks. The result is None then, and the caller falls back to process.py.
"""

from __future__ import annotations

import errno
import os
import random
import sys
import time
from pathlib import Path

_HELD = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
_LOOKERS_SECONDS = 10.0
"""How long a starting process waits for observers, which hold the lock for microseconds."""


def acquire(descriptor: int) -> bool | None:
    """Lock an open file for this process until it is closed; False if another process holds it, None if the drive has no locks. Waits
    for observers, never for a holder.
    """
    until = time.monotonic() + _LOOKERS_SECONDS
    while (mine := _try(descriptor, shared=False)) is False:
        # A shared lock can be taken beside an observer's, but not beside a holder's.
        if not _try(descriptor, shared=True) or time.monotonic() > until:
            return False
        _free(descriptor)
        time.sleep(random.uniform(0.0002, 0.003))  # two processes that start together must not collide repeatedly
    return mine


def held(path: Path) -> bool | None:
    """Whether a process holds the lock of a file, which need not exist; None if that cannot be determined."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return None
    try:
        shared = _try(descriptor, shared=True)
        if shared:
            _free(descriptor)
        return None if shared is None else not shared
    finally:
        os.close(descriptor)


if sys.platform == "win32":
    import ctypes
    import msvcrt
    from ctypes import wintypes

    _KERNEL = ctypes.WinDLL("kernel32", use_last_error=True)
    _AT_ONCE, _EXCLUSIVE = 1, 2
    _VIOLATED = (33, 997)  # ERROR_LOCK_VIOLATION, ERROR_IO_PENDING

    class _Overlapped(ctypes.Structure):
        _fields_ = [
            ("internal", ctypes.c_void_p),
            ("internal_high", ctypes.c_void_p),
            ("offset", wintypes.DWORD),
            ("offset_high", wintypes.DWORD),
            ("event", wintypes.HANDLE),
        ]

    def _try(descriptor: int, *, shared: bool) -> bool | None:
        """The first byte's lock: the one that msvcrt.locking() takes, so that workers of older versions are seen."""
        handle, flags = wintypes.HANDLE(msvcrt.get_osfhandle(descriptor)), _AT_ONCE | (0 if shared else _EXCLUSIVE)
        if _KERNEL.LockFileEx(handle, flags, 0, 1, 0, ctypes.byref(_Overlapped())):
            return True
        return False if ctypes.get_last_error() in _VIOLATED else None

    def _free(descriptor: int) -> None:
        handle = wintypes.HANDLE(msvcrt.get_osfhandle(descriptor))
        _KERNEL.UnlockFileEx(handle, 0, 1, 0, ctypes.byref(_Overlapped()))

else:
    import fcntl

    def _try(descriptor: int, *, shared: bool) -> bool | None:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            return False if error.errno in _HELD else None
        return True

    def _free(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
