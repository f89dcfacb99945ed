"""What flows into the layers of a model, gathered from a few batches, for the encoder.

Collecting needs torch and the model; the statistics, their file and all that uses them need NumPy alone.
"""

from __future__ import annotations

from dcompress.calibration.moments import Moments
from dcompress.calibration.record import Calibration, CalibrationLike, as_calibration

__all__ = ["Calibration", "CalibrationLike", "Moments", "as_calibration"]
