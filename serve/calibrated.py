"""Calibrated probabilities in a search: what may be asked of them, and which labels are probable enough."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from dexml.calibration import Calibration
from serve.errors import Fault, Problem


def _share(value: float) -> float:
    if not 0 <= value <= 1:
        raise PydanticCustomError("precision_out_of_range", "min_precision must be between 0 and 1, got {got}", {"got": value})
    return value


Precision = Annotated[float, AfterValidator(_share)]


def check_calibrated(normalize: str, temperature: float | None, min_precision: float | None, *, diverse: bool) -> None:
    """Raise PydanticCustomError for fields of a search that do not go together."""
    if normalize == "calibrated" and temperature is not None:
        raise PydanticCustomError("schema", "temperature must be null with normalize calibrated, which has its own")
    if min_precision is None:
        return
    if normalize != "calibrated":
        raise PydanticCustomError("schema", 'min_precision goes with normalize "calibrated" alone')
    if diverse:  # a label that is left out must push none away
        raise PydanticCustomError("schema", "min_precision and diversity do not go together")


def check_available(normalize: str, min_precision: float | None, calibration: Calibration | None) -> None:
    """Raise Problem for what the bundle's calibration does not give."""
    if normalize != "calibrated":
        return
    if calibration is None:
        message = 'must not be "calibrated": this bundle has no calibration (`dexml calibrate` fits one)'
        raise Problem("calibration_unavailable", faults=[Fault("/normalize", "calibration_unavailable", message)])
    least_probable(calibration, min_precision)


def least_probable(calibration: Calibration | None, min_precision: float | None) -> float:
    """Return the probability that a label needs to be returned. Raises Problem for a precision that is out of reach."""
    if min_precision is None or calibration is None:
        return 0.0
    least = calibration.threshold(min_precision)
    if least is None:
        message = (
            f"must be at most {calibration.highest:g}: on the rows it was fitted on, no answers were surely right more often"
        )
        raise Problem("precision_out_of_range", faults=[Fault("/min_precision", "precision_out_of_range", message)])
    return least
