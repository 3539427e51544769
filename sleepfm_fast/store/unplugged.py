"""Which clips of a respiratory channel were recorded by a sensor that was plugged in.

When a split night continues under CPAP, the cannula is unplugged, often for more than half of the recording. Its
channel then holds the amplifier's noise rather than a constant, so that it does not count as flat, and a median over
all clips would measure that noise. This does not work for electrodes: one that came off is louder than one that holds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["plugged_in"]

QUIET = 0.02
"""A clip counts as plugged in from this share of the amplitude that a tenth of the clips exceed. Breathing spans a
factor of ten between shallow breaths and sighs. A clip that an apnoea fills may be passed over as well, which moves a
median less than the noise would."""


def plugged_in(amplitude: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Tell clips that hold a signal from those that hold the noise of an unplugged sensor.

    Parameters
    ----------
    amplitude : float64 [n]
        One for each clip of a recording, or of clips spread evenly through it; NaN where it is not known.

    Returns
    -------
    bool [n]
        False where the amplitude is below :data:`QUIET` times its 90th percentile, or not known.
    """
    known = np.isfinite(amplitude)
    if not known.any():
        return known
    loud = np.quantile(amplitude[known], 0.9)
    on: npt.NDArray[np.bool_] = known & (np.where(known, amplitude, 0.0) >= QUIET * loud)
    return on
