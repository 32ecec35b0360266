"""How the C library hands out memory: one setting that makes training on CPUs faster. No torch here."""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MOST_BYTES = 32 * 1024**2  # the largest that glibc takes


def reuse_freed_memory() -> bool:
    """Keep freed memory in the process instead of handing it back to the system.

    Every training step allocates the same feature maps. By default glibc returns blocks of that size to the system when
    they are freed, and the next step pays for fresh pages: a quarter of the time of a small network (docs/log.md).
    The setting holds for the whole process, so it is made by the command and not by the library.

    Returns:
        Whether the setting was made; it exists on glibc only.
    """
    try:
        if not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
            return False
    except (AttributeError, ValueError):
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, _MOST_BYTES)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
