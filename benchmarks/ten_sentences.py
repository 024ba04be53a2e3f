"""Ten English sentences about numpy and scipy, written down before the first try, and the functions that would be right.

usage: python benchmarks/ten_sentences.py [BUNDLE]     after `make demo SERVE=0`
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from index.retriever import Retriever

# Where numpy, scipy and torch offer the same operation, each of them is right.
SENTENCES: dict[str, tuple[str, ...]] = {
    "compute the singular value decomposition of a matrix": ("numpy.linalg.svd", "scipy.linalg.svd", "torch.linalg.svd"),
    "fit a polynomial of given degree to data points by least squares": (
        "numpy.polyfit",
        "numpy.polynomial.polynomial.polyfit",
        "numpy.polynomial.Polynomial.fit",
    ),
    "return the indices that would sort an array": ("numpy.argsort", "torch.argsort"),
    "find the unique elements of an array": ("numpy.unique", "torch.unique"),
    "numerically integrate a function between two limits": ("scipy.integrate.quad",),
    "solve an initial value problem for a system of ordinary differential equations": (
        "scipy.integrate.solve_ivp",
        "scipy.integrate.odeint",
    ),
    "find a root of a function in an interval where its sign changes": (
        "scipy.optimize.brentq",
        "scipy.optimize.bisect",
        "scipy.optimize.brenth",
        "scipy.optimize.toms748",
        "scipy.optimize.ridder",
    ),
    "multidimensional Gaussian filter to blur an image": ("scipy.ndimage.gaussian_filter",),
    "compute the inverse of a square matrix": ("numpy.linalg.inv", "scipy.linalg.inv", "torch.linalg.inv", "torch.inverse"),
    "convolve two one-dimensional signals using the fast Fourier transform": ("scipy.signal.fftconvolve",),
}


def main(bundle: Path) -> int:
    """Print each sentence with its first answer, and return how many were right."""
    retriever = Retriever.open(bundle)
    console, right = Console(highlight=False, width=140), 0
    for sentence, functions in SENTENCES.items():
        first = retriever.labels.ids[int(retriever.search([sentence], 1).topk.ids[0, 0])]
        right += first in functions
        console.print(f"{'✓' if first in functions else '✗'} {sentence} → [bold]{first}[/]")
    console.print(f"{right} of {len(SENTENCES)} right")
    return right


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo/run"))
