"""The filters of a preset as the tables that `sleepfm_fast.ops.filter_resample` runs."""

from __future__ import annotations

import hashlib
import json
import math
import numbers
import threading
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.filtering import fir, period_blocks
from sleepfm_fast.filtering.filter_design import PAD, PRESETS, FilterDesign, design_filter, padded
from sleepfm_fast.montage.slots import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

__all__ = ["KINDS", "NOTCHES_HZ", "PRESETS", "FilterBank", "FilterDesign"]

NOTCHES_HZ = (50, 60)
FILTER_COLUMNS = 25  # members of FilterRow in csrc/params.h
MOST_STEPS = 1 << 36  # of `up` and `down`: all rates of EDF fit, and a night's samples times either are below 2^63

_BLOCKS_BELOW = 0.9  # blocks are used below this share of the cost of groups: a smaller gain is not worth them

FloatArray = npt.NDArray[np.float64]


class FilterBank:
    """The filters of one preset and output rate, each designed when it is first asked for.

    Parameters
    ----------
    preset
        ``seed``: resample only, flat to 0.95 of the lower Nyquist frequency. ``none``: the same, flat to 0.9 (half
        the arithmetic). ``clinical``: order-4 Butterworth low-pass at the new Nyquist frequency when the rate goes
        down (by more than 2 %), forwards and backwards, then linear interpolation. ``aasm``: EEG and EOG 0.3-35, EMG
        10-100, ECG 0.3-70, respiration 0.1-15 Hz, snore up to the Nyquist frequency. In every preset the kind
        ``step`` is interpolated linearly (up) or averaged with triangular weights (down) and never overshoots.
    fs_out_hz
        Output rate, Hz.
    notch_hz
        50, 60 or None: remove that mains frequency and its multiples where the pass band holds them (``aasm`` only).

    Raises
    ------
    SleepfmError
        For an unknown preset, an impossible rate or notch.

    Notes
    -----
    Threads may share a bank.

    Band edges are the ends of the flat band, as in MNE-Python: a low-pass is down 6 dB at 1.125 times its edge and at
    least 80 dB from 1.25 times its edge on; a high-pass is down 6 dB at half its edge, and its gain at 0 Hz is 0.
    """

    def __init__(self, preset: str, fs_out_hz: float | Fraction = 256, notch_hz: int | None = None) -> None:
        if preset not in PRESETS:
            raise SleepfmError(f"the filter preset is '{preset}'; choose one of: {', '.join(PRESETS)}.")
        self.preset = preset
        self.fs_out_hz = _rate(fs_out_hz, "output rate")
        if notch_hz is not None and notch_hz not in NOTCHES_HZ:
            raise SleepfmError(f"notch_hz is {notch_hz}; expected 50, 60 or None (the mains frequency to remove).")
        if notch_hz is not None and preset != "aasm":
            raise SleepfmError(f"notch_hz is {notch_hz}, but the preset '{preset}' has no notch; only 'aasm' has one.")
        self.notch_hz = notch_hz
        self._index: dict[tuple[str, Fraction], int] = {}
        self._designs: list[FilterDesign] = []
        self._contexts: list[int] = []
        # Rows and taps of all filters, replaced as a whole, so that other threads never see half a filter.
        self._tables: tuple[tuple[list[int], ...], tuple[npt.NDArray[np.float32], ...]] = ((), ())
        # The taps of each filter without the regrouped copies of `_place_groups`: what `digest` covers.
        self._plain: list[npt.NDArray[np.float32]] = []
        self._n_taps = 0
        self._tensors: dict[tuple[str, int], tuple[torch.Tensor, torch.Tensor]] = {}  # by device and number of filters
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Return what is copied and pickled: neither the lock, which belongs to a process, nor tensors of devices."""
        return {**self.__dict__, "_lock": None, "_tensors": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a copy."""
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of filters designed so far."""
        return len(self._designs)

    @property
    def normalise(self) -> str:
        """Normalisation that belongs to the preset: ``zscore`` for ``clinical`` and ``aasm``, else ``none``."""
        return "zscore" if self.preset in ("clinical", "aasm") else "none"

    def index(self, kind: str, fs_hz: float | Fraction) -> int:
        """Return the number of the filter for a channel kind at a native rate; designs it on first use.

        Parameters
        ----------
        kind
            One of `KINDS`.
        fs_hz
            Native rate, Hz, exact (an integer or a ``Fraction``: samples per record over record length); of a float,
            the decimal number that Python prints.

        Raises
        ------
        SleepfmError
            For an unknown kind, a rate that is not positive, or a rate that would need an absurd filter.
        """
        if kind not in KINDS:
            raise SleepfmError(f"the channel kind is '{kind}'; choose one of: {', '.join(KINDS)}.")
        key = (kind, _rate(fs_hz, "native rate"))
        ratio = self.fs_out_hz / key[1]
        if max(ratio.numerator, ratio.denominator) >= MOST_STEPS:
            raise SleepfmError(
                f"a '{kind}' channel has a rate of {float(fs_hz):g} Hz, whose ratio to the output rate of "
                f"{float(self.fs_out_hz):g} Hz is one of numbers above 2^36. Check the rate, and give it as a "
                "fraction, samples over seconds."
            )
        if key not in self._index:
            with self._lock:
                if key not in self._index:  # another thread may have been faster
                    design = design_filter(self.preset, kind, key[1], self.fs_out_hz, self.notch_hz)
                    self._append(design)
                    self._index[key] = len(self._designs) - 1
        return self._index[key]

    def design(self, f: int) -> FilterDesign:
        """Return the float64 design behind filter ``f``."""
        return self._designs[f]

    def up(self, f: int) -> int:
        """Return ``L`` of the rate ``L / M`` = output rate / native rate of filter ``f``."""
        return self._designs[f].up

    def down(self, f: int) -> int:
        """Return ``M`` of the rate ``L / M`` = output rate / native rate of filter ``f``."""
        return self._designs[f].down

    def context(self, f: int) -> int:
        """Return the native samples that filter ``f`` needs on each side of a clip."""
        return self._contexts[f]

    def tensors(self, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tables on ``device``, cached: filters int64 [F, 25] and taps float32 [n].

        The columns of ``filters`` are those of ``FilterRow`` in csrc/params.h.
        """
        import torch

        fake = torch._C._TorchDispatchModeKey.FAKE
        rows, taps = self._tables  # read once: both are of the same filters
        key = str(device), len(rows)
        # torch.export and make_fx give tensors without values in place of ours, which must not stay for others.
        is_fake = not torch.compiler.is_dynamo_compiling() and torch._C._get_dispatch_mode(fake) is not None
        found = None if is_fake else self._tensors.get(key)
        if found is None:
            filters = torch.tensor(rows, dtype=torch.int64, device="cpu").reshape(len(rows), FILTER_COLUMNS)
            found = filters.to(device), torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *taps])).to(device)
            if not is_fake:
                self._tensors[key] = found
        return found

    def describe(self, f: int) -> dict[str, Any]:
        """Return plain facts of filter ``f`` for reports and provenance (JSON types only)."""
        design = self._designs[f]
        return {
            "kind": design.kind,
            "fs_hz": str(design.fs_hz),
            "up": design.up,
            "down": design.down,
            "phases": design.phases,
            "taps_per_output": design.main_table[0].shape[1],
            "decimation": design.decimation,
            "context_samples": design.context,
            "pass_hz": list(design.pass_hz),
            "stop_hz": list(design.stop_hz),
            "notches_hz": list(design.notches_hz),
            "issues": list(design.issues),
        }

    def digest(self) -> str:
        """Return a SHA-256 of the preset, the rates and the filters designed so far, whatever the order of design."""
        digest = hashlib.sha256()
        head = [self.preset, str(self.fs_out_hz), self.notch_hz]
        digest.update(json.dumps(head).encode())
        for key in sorted(self._index):
            f = self._index[key]
            digest.update(json.dumps(self.describe(f), sort_keys=True).encode())
            digest.update(self._plain[f].tobytes())
        return digest.hexdigest()

    def _append(self, design: FilterDesign) -> None:
        start = self._n_taps
        parts: list[npt.NDArray[np.float32]] = []

        def place(table: FloatArray) -> tuple[int, int]:
            rows = np.atleast_2d(table)
            wide = np.zeros((rows.shape[0], padded(rows.shape[1])), dtype=np.float32)
            wide[:, : rows.shape[1]] = rows
            offset = start + sum(part.size for part in parts)
            parts.append(wide.reshape(-1))
            return offset, wide.shape[1]

        table, left = design.main_table
        main_offset, main_stride = place(table)
        row = [design.up, design.down, design.phases, main_offset, table.shape[1], main_stride, left, design.dc]
        row += [int(design.step), design.decimation]
        if design.decimation:
            decimator_offset, _ = place(design.decimator)
            low_offset, _ = place(design.low)
            inter, inter_left = design.interpolator_table
            # Transposed to [taps, D]: the kernels compute the D samples between two decimated ones as lanes of vectors.
            inter_offset, inter_stride = place(np.ascontiguousarray(inter.T))
            row += [decimator_offset, (len(design.decimator) - 1) // 2, low_offset, (len(design.low) - 1) // 2]
            row += [inter_offset, inter.shape[1], inter_left, inter_stride]
        else:
            row += [0] * 8
        self._plain.append(np.concatenate(parts))
        row += self._place_groups(design, place)
        taps = np.concatenate(parts)
        self._n_taps += taps.size
        self._designs.append(design)
        self._contexts.append(design.context)
        rows, tables = self._tables
        self._tables = ((*rows, row), (*tables, taps))
        self._tensors = {}

    @staticmethod
    def _place_groups(design: FilterDesign, place: Callable[[FloatArray], tuple[int, int]]) -> list[int]:
        """Place the tables that compute many outputs at a time; return their 7 columns of ``FilterRow``."""
        table, _ = design.main_table
        row, cost = [0, 0, 0], table.shape[1] + 128.0
        # Sixteen outputs that lie far apart share few samples. One output at a time is then cheaper, although its
        # horizontal sum costs as much as some 128 taps.
        reach = (PAD - 1) * design.down / design.up
        if design.phases == design.up and reach <= max(128, table.shape[1]):
            groups, repeats = fir.grouped(table, design.down, PAD)
            row, cost = [repeats, place(groups.reshape(-1, PAD))[0], groups.shape[1]], float(groups.shape[1])
        low_offset = 0
        if design.decimation:
            groups, _ = fir.grouped(design.low[None, :], 1, PAD)
            low_offset, _ = place(groups[0])
        blocks = [0, 0, 0]
        main, up, down = design.main, design.up, design.down
        repeats = period_blocks.choose_repeats(len(main), up, down) if design.phases == up else 0
        if repeats and period_blocks.block_cost(len(main), up, down, repeats) < _BLOCKS_BELOW * cost:
            offset, _ = place(period_blocks.block_table(main, up, down, repeats).reshape(-1, PAD))
            blocks = [repeats, offset, period_blocks.reach_of(len(main), up, down, repeats)]
        return [*row, low_offset, *blocks]


def _rate(fs_hz: float | Fraction, what: str) -> Fraction:
    if isinstance(fs_hz, bool) or not isinstance(fs_hz, numbers.Real):
        raise SleepfmError(f"the {what} is {fs_hz!r}; expected a number of Hz.")
    if isinstance(fs_hz, numbers.Rational):
        rate = Fraction(int(fs_hz.numerator), int(fs_hz.denominator))
    elif math.isfinite(fs_hz):
        rate = Fraction(repr(float(fs_hz)))  # the decimal number that was typed, not its binary neighbour
    else:
        rate = Fraction(0)
    if rate <= 0:
        raise SleepfmError(f"the {what} is {fs_hz} Hz; expected a positive number.")
    return rate
