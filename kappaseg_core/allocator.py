"""Memory that a process frees and soon wants again: kept, where the C library would give it back to the system.

glibc asks the system anew for every block above a limit that moves with what was freed before, and gives the top of
the heap back at once. Decoding photos of different sizes, one after the other, meets that with nearly every block: each
page is then handed out, zeroed and given back again.
"""

from __future__ import annotations

import ctypes
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt's names for what follows, from malloc.h
LARGEST_BLOCK = 2**30  # bytes; blocks up to here come from the heap, as a photo of 89 megapixels would
LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep up to 2 GiB of what this process frees, for processes whose memory does not grow. Only glibc can be told so.

    Gives whether it was. Costs no memory at the peak. What it saves depends on what a process did before: in one that
    has just started a part of each decoding, in one that was forked from a process of many blocks nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    tell = ctypes.CDLL(None).mallopt
    return bool(tell(MMAP_THRESHOLD, LARGEST_BLOCK)) and bool(tell(TRIM_THRESHOLD, LARGEST_INT))
