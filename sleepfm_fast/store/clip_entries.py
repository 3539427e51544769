"""The types that an open clip store returns: its recordings, its channels, windows of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy.typing as npt

__all__ = ["ChannelColumns", "RecordingEntry", "Window"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class RecordingEntry:
    """One recording of a store.

    Attributes
    ----------
    id : str
        The stem of its files' names in ``recordings/``.
    subject : str
    source : str
        Path of the file it was made from.
    start : str or None
        Start of the recording, ISO 8601 local time.
    first_clip, n_clips : int
        Its rows among the store's clips.
    first_segment, n_segments : int
        Its rows among the store's segments.
    n_bytes : int
        Size of its ``.bin``.
    sha256 : str
        Digest of its ``.bin``.
    age : float or None
        Years of the subject when it was recorded.
    """

    id: str
    subject: str
    source: str
    start: str | None
    first_clip: int
    n_clips: int
    first_segment: int
    n_segments: int
    n_bytes: int
    sha256: str
    age: float | None = None


@dataclass(frozen=True)
class ChannelColumns:
    """The channels of a store; every array has the shape [n_recordings, n_slots].

    Attributes
    ----------
    present : bool
    fs_num, fs_den : int64
        The rate in hertz is ``fs_num / fs_den``, 0/1 where the channel is missing.
    gain, offset : float64
        Physical value = ``gain`` * integer + ``offset``.
    itemsize : int
        Bytes of a sample, 2 or 4; 0 where the channel is missing.
    unit : int
        Index into the store's ``units``.
    n_samples : int64
        Samples of all segments together.
    """

    present: Array
    fs_num: Array
    fs_den: Array
    gain: Array
    offset: Array
    itemsize: Array
    unit: Array
    n_samples: Array


class Window(NamedTuple):
    """Contiguous native samples around a clip, cut at the ends of their segment.

    ``samples`` (a read-only view, empty where the slot is missing) starts at sample ``start`` of the segment; the clip
    starts at ``first + phase / up`` samples, 0 <= phase < up; the segment has ``n_segment`` samples.
    """

    samples: Array
    start: int
    first: int
    phase: int
    n_segment: int
