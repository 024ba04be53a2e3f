"""How likely an annotator was to name a label that is true, after Jain et al., KDD 2016: labels rarely named weigh more."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dexml.positives import Int64Array

Float64Array = npt.NDArray[np.float64]
DEFAULT_PROPENSITY = (0.55, 1.5)  # for sets without constants of their own
_WIKIPEDIA, _AMAZON = (0.5, 0.4), (0.6, 2.6)
CONSTANTS = {
    "LF-WikiTitles-500K": _WIKIPEDIA,
    "LF-Wikipedia-500K": _WIKIPEDIA,
    "WikiLSHTC-325K": _WIKIPEDIA,
    "WikiTitles-500K": _WIKIPEDIA,
    "Wikipedia-500K": _WIKIPEDIA,
    "Amazon-670K": _AMAZON,
    "Amazon-3M": _AMAZON,
    "AmazonTitles-670K": _AMAZON,
    "AmazonTitles-3M": _AMAZON,
    "LF-Amazon-131K": _AMAZON,
    "LF-AmazonTitles-131K": _AMAZON,
    "LF-AmazonTitles-1.3M": _AMAZON,
    "AmazonCat-13K": DEFAULT_PROPENSITY,
    "AmazonCat-14K": DEFAULT_PROPENSITY,
    "Bibtex": DEFAULT_PROPENSITY,
    "Delicious": DEFAULT_PROPENSITY,
    "Delicious-200K": DEFAULT_PROPENSITY,
    "EURLex-4K": DEFAULT_PROPENSITY,
    "EURLex-4.3K": DEFAULT_PROPENSITY,
    "LF-WikiSeeAlso-320K": DEFAULT_PROPENSITY,
    "LF-WikiSeeAlsoTitles-320K": DEFAULT_PROPENSITY,
    "Mediamill": DEFAULT_PROPENSITY,
    "RCV1-2K": DEFAULT_PROPENSITY,
    "Wiki10-31K": DEFAULT_PROPENSITY,
    "WikiSeeAlsoTitles-350K": DEFAULT_PROPENSITY,
}
"""(A, B) of the XC repository's sets, by their exact names: `AmazonCat-13K` is no Amazon set, nor is `Wiki10-31K` Wikipedia."""


def propensity_constants(name: str) -> tuple[float, float]:
    """Return (A, B) of a set of the XC repository. Raises InputError for a name that is not in CONSTANTS letter by letter."""
    if name not in CONSTANTS:
        from dexml.table import unknown

        raise unknown("data set", name, list(CONSTANTS))
    return CONSTANTS[name]


def propensity_weights(train_counts: Int64Array, train_rows: int, a: float, b: float) -> Float64Array:
    """Return inverse propensities w_l = 1 + C (N_l + B)^(−A), C = (ln N_train − 1)(B+1)^A (L)."""
    if train_rows < 1:
        raise ValueError("propensities need at least one training row")
    c = (np.log(train_rows) - 1) * (b + 1) ** a
    return np.asarray(1 + c * (train_counts.astype(np.float64) + b) ** -a)
