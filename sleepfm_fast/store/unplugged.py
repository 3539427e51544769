"""Which clips of a respiratory channel were recorded by a sensor that was plugged in.

When a split night goes on under CPAP, the cannula is unplugged, often for more than half of the recording. Its channel
then holds the amplifier's noise, mostly not one value, and a median over all clips would be that noise. Electrodes are
another matter: one that came off is louder than one that holds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["plugged_in"]

QUIET = 0.02
"""Of the amplitude that a tenth of the clips exceed. Breathing between sighs and shallow breaths spans a factor of ten;
a clip that an apnoea fills may be passed over too, which moves a median less than leaving the noise in."""


def plugged_in(amplitude: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Tell clips that hold a signal from those that hold the noise of an unplugged sensor.

    Parameters
    ----------
    amplitude : float64 [n]
        Of every clip of a recording, or of some spread evenly through it; NaN where it is not known.

    Returns
    -------
    bool [n]
        False where the amplitude is below a fiftieth of the 90th percentile, or not known.
    """
    known = np.isfinite(amplitude)
    if not known.any():
        return known
    loud = np.quantile(amplitude[known], 0.9)
    on: npt.NDArray[np.bool_] = known & (np.where(known, amplitude, 0.0) >= QUIET * loud)
    return on
