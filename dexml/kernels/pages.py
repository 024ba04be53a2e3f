"""Huge pages under large matrices: rows picked here and there cost a walk of the page tables each, which is half their time."""

from __future__ import annotations

import ctypes
import sys

from torch import Tensor

PAGE = 1 << 21
LARGE = 1 << 26  # bytes from which it pays
_COLLAPSE = 25  # MADV_COLLAPSE, Linux 6.1


def on_huge_pages(tensor: Tensor) -> bool:
    """Move a large contiguous CPU tensor's memory to huge pages, in place; return whether the kernel did so.

    Speed alone depends on it: nothing is said where the system cannot. Memory mapped from a file stays where it is.
    """
    start, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
    if size < LARGE or not sys.platform.startswith("linux"):
        return False
    first = -(-start // PAGE) * PAGE
    length = (start + size) // PAGE * PAGE - first
    answer: int = ctypes.CDLL(None, use_errno=True).madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), _COLLAPSE)
    return answer == 0
