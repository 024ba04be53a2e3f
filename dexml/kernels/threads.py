"""The one lock under which numba's parallel loops run: its default threading layer aborts when two Python threads enter it."""

from __future__ import annotations

import threading

ONE_AT_A_TIME = threading.Lock()
