"""Memory of this process on the host: freed memory is kept for the next step instead of given back to the system.

XLA on a CPU asks for all temporary memory of a program at every call and frees it afterwards. Above 32 MB glibc maps
it anew each time, and the system clears every page at its first touch: on small models that cost a quarter of an
update (docs/performance.md). Accelerators have allocators of their own, which do this already.
"""

import ctypes
import sys

# Numbers of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Large blocks come from one heap that never shrinks; whether the C library could be told so.

    To be called at the start of a command, before JAX has threads. The process keeps its peak until it ends.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    options = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: _LARGEST, _TOP_PAD: 64 * 2**20}
    return all([mallopt(option, value) for option, value in options.items()])
