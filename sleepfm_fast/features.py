"""Command: clip store -> hand-made features of every clip, which probe and few_shot read in place of embeddings."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import tyro

from sleepfm_fast import __version__
from sleepfm_fast.cli import command
from sleepfm_fast.cli.command import plain, say
from sleepfm_fast.cli.given_paths import TakesPaths
from sleepfm_fast.cli.misplaced import Place, reads, writes
from sleepfm_fast.cli.option_effects import Effect, only_without, refuse_without_effect
from sleepfm_fast.cli.option_ranges import refuse_negative_workers
from sleepfm_fast.cli.path_kinds import Kind
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.plurals import agreeing, counted, first_of
from sleepfm_fast.reporting.following import after_embeddings

if TYPE_CHECKING:
    from sleepfm_fast.clips import ClipStore
    from sleepfm_fast.embeddings import Embeddings
    from sleepfm_fast.execution.parallel import Engine

__all__ = ["Config", "main"]

BLOCK = 4096  # clips in memory at a time
MOSTLY_PERCENT = 50.0  # of a night's clips
SHOWN = 8  # channels that a notice names


@dataclasses.dataclass(frozen=True)
class Config(TakesPaths):
    """Measure what a sleep researcher would: band powers, heart rate and its variability, breathing, saturation.

    Every channel of the montage is measured according to its kind, at its native rate, in the units given in the
    features' names; docs/baselines.md lists them. A feature that cannot be measured in a clip is left empty; a probe
    fills it with the median of its training clips and marks it. Each recording is measured by itself. After a kill or
    an interruption, the same command continues where it stopped and writes the same bytes. If the same command has
    already finished FEATURES, it says so and exits with status 0.
    """

    store: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="STORE")]
    """Clip store written by preprocess."""
    features: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FEATURES")]
    """Folder to write; give it to probe and few_shot as EMBEDDINGS."""

    split_like: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Split subjects as this run of train did, so that its embeddings and these features share test subjects."""
    validation_share: float = 0.1
    """Expected share of subjects used for validation."""
    test_share: float = 0.2
    """Expected share of subjects kept for testing."""
    split_salt: str = "sleepfm_fast"
    """Text hashed with each subject's name; another text gives another split."""
    workers: int = 0
    """Recordings measured at a time; 0 for one per core that this process may use."""
    backend: Literal["loky", "threading"] = "loky"
    """Processes (loky) or threads (threading)."""
    overwrite: bool = False
    """Replace an existing FEATURES folder once the new one is complete."""

    EFFECTS: ClassVar[tuple[Effect, ...]] = (
        only_without("validation_share", "split_like"),
        only_without("test_share", "split_like"),
        only_without("split_salt", "split_like"),
    )

    def places(self) -> list[Place]:
        """What its positionals take."""
        return [
            reads("STORE", self.store, Kind.STORE),
            writes("FEATURES", self.features, Kind.FEATURES, Kind.EMBEDDINGS),
        ]


def check(config: Config) -> None:
    """Refuse values that cannot work, by name."""
    refuse_without_effect(config)
    shares = (config.validation_share, config.test_share)
    if not all(math.isfinite(s) and s >= 0 for s in shares) or sum(shares) >= 1:
        raise SleepfmError(
            f"--validation-share {config.validation_share:g} and --test-share {config.test_share:g} leave no subjects "
            "for training; expected two shares of 0 or more that sum to less than 1."
        )
    refuse_negative_workers(config.workers)


def in_order(store: ClipStore, engine: Engine, n_done: int) -> Iterator[dict[str, npt.NDArray[np.float32]]]:
    """Features of the recordings behind ``n_done`` clips, in the store's order whichever is finished first."""
    from sleepfm_fast.baselines.recording_features import measure_stored, opened
    from sleepfm_fast.execution.parallel import Progress, WorkersLost, in_parallel

    recordings = [i for i, entry in enumerate(store.recordings) if entry.n_clips and entry.first_clip >= n_done]
    progress = Progress("nights", len(recordings))
    waiting: dict[int, dict[str, npt.NDArray[np.float32]]] = {}
    following = iter(recordings)
    wanted = next(following, None)
    try:
        for recording, columns in in_parallel(
            measure_stored, [(str(store.path.resolve()), store.digest, i) for i in recordings], engine
        ):
            progress.step()
            waiting[recording] = columns
            while wanted in waiting:
                yield waiting.pop(wanted)
                wanted = next(following, None)
    except WorkersLost:
        raise SleepfmError(
            "a worker process died, most likely because memory ran out. Lower --workers; the same command "
            "continues from there."
        ) from None
    finally:
        progress.close()
        opened.cache_clear()  # the store that this process has opened, if the work was done here: its files stay open


def holes(features: Embeddings, store: ClipStore) -> tuple[dict[str, float], list[tuple[str, str, float]]]:
    """Find what could not be measured.

    Returns
    -------
    dict of str to float
        Share of each modality's numbers [%].
    list of (str, str, float)
        Recording, channel, and the share of the recording's clips [%] in which a channel that it has gives nothing,
        where that is more than half of them.
    """
    from sleepfm_fast.baselines.recording_features import channel_columns

    empty = dict.fromkeys(features.modalities, 0)
    mostly = []
    columns = channel_columns(store.montage)
    for recording, entry in enumerate(store.recordings):
        silent = np.zeros((len(columns), entry.n_clips), np.bool_)
        for start in range(0, entry.n_clips, BLOCK):
            stop = min(start + BLOCK, entry.n_clips)
            clips = np.arange(entry.first_clip + start, entry.first_clip + stop)
            x = np.isnan(features.copy(clips, features.modalities))
            for m, name in enumerate(features.modalities):
                empty[name] += int(x[:, m, : features.widths[name]].sum())
            for row, (_, modality, own, _) in enumerate(columns):
                silent[row, start:stop] = x[:, features.modalities.index(modality), own].all(axis=1)
        for (slot, _, _, name), share in zip(columns, 100 * silent.mean(axis=1) if entry.n_clips else (), strict=False):
            if share > MOSTLY_PERCENT and store.channels.present[recording, slot]:
                mostly.append((entry.id, name, float(share)))
    n = len(features)
    return {m: round(100 * k / (n * features.widths[m]), 2) for m, k in empty.items()}, mostly


def mostly_empty_text(mostly: Sequence[tuple[str, str, float]]) -> str:
    """A sentence on channels that give nothing for most of a night."""
    n_nights = len({recording for recording, _, _ in mostly})
    shown = first_of([f"{recording} {channel} ({share:.0f} %)" for recording, channel, share in mostly], SHOWN)
    return (
        f"in {counted(n_nights, 'night')}, {counted(len(mostly), 'channel gives', 'channels give')} no features in "
        f"more than half of the clips, as when a sensor was off or the sampling rate is too low: {shown}. Those "
        "clips are empty; a probe fills and marks them. preprocess --inspect says what is wrong with a channel."
    )


def as_vectors(
    measures: Sequence[npt.NDArray[np.float32]], dim: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Features of a recording's clips, one array a modality, as a folder of embeddings holds them: vectors and mask."""
    block = np.full((len(measures[0]), len(measures), dim), np.nan, np.float32)
    mask = np.zeros(block.shape[:2], np.bool_)
    for m, values in enumerate(measures):
        block[:, m, : values.shape[1]] = values
        # As for an encoder: a recording has a modality where any of its channels shows anything.
        mask[:, m] = np.isfinite(values).any()
    return block, mask


def say_absent(store: ClipStore) -> None:
    """Name channels of the montage that no night has."""
    filled = np.asarray(store.channels.present).sum(axis=0)
    absent = [slot.name for slot, n in zip(store.slots, filled, strict=True) if not n]
    if absent:
        say(
            f"notice: no night of the store has {', '.join(absent)}: the features of "
            f"{agreeing(len(absent), 'this channel', 'these channels')} are empty, and a probe that was fitted on "
            "another cohort fills them with its medians. If nights have them under other names, give these to "
            f"preprocess, with --overrides: {json.dumps({'*': {'LABEL': {'alias': absent[0]}}})}"
        )


def main(config: Config) -> dict[str, Any]:
    """Measure all recordings; returns the results that end the command."""
    from sleepfm_fast.baselines.recording_features import feature_names
    from sleepfm_fast.clips import ClipStore
    from sleepfm_fast.embeddings import Embeddings
    from sleepfm_fast.evaluation.described_clips import described_clips
    from sleepfm_fast.evaluation.embedding_writer import EmbeddingWriter, is_finished
    from sleepfm_fast.execution.parallel import open_engine
    from sleepfm_fast.rundir import RunDirectory
    from sleepfm_fast.runs.origin import Seen, seen_by
    from sleepfm_fast.runs.run_config import refuse_damaged
    from sleepfm_fast.runs.splits import Split
    from sleepfm_fast.storage.definitions import ENTRY, definitions_of
    from sleepfm_fast.store.label_rules import say_label_rules

    check(config)
    started = time.monotonic()
    store = ClipStore(config.store)
    if not len(store):
        raise SleepfmError(f"the store {config.store} has no clips; add recordings of 30 s or more with preprocess.")
    say_label_rules(store.path)
    split, seen = Split(config.split_salt, config.validation_share, config.test_share), Seen()
    if config.split_like is not None:
        run = RunDirectory(config.split_like)
        saved = run.config()
        refuse_damaged(run.config_path, saved, {})
        split, seen = Split(**saved["split"]), seen_by(saved)
    run_named = "" if config.split_like is None else str(config.split_like)
    columns, description = described_clips(store, split, seen, run=run_named, presets={"features": plain(config)})
    names = feature_names(store.montage)
    dim = max(map(len, names.values()))
    key = {
        "command": "features",
        "version": __version__,
        ENTRY: definitions_of("features"),
        "store": store.digest,
        "names": names,
    }
    if config.overwrite or not is_finished(config.features, key, columns, description):
        with (
            open_engine(config.backend, config.workers) as engine,
            EmbeddingWriter(
                config.features, len(store), tuple(names), dim, features=names, overwrite=config.overwrite, key=key
            ) as writer,
        ):
            for measures in in_order(store, engine, writer.n_written):
                writer.append(*as_vectors(list(measures.values()), dim))
            writer.finish(columns, description)
    say_absent(store)
    empty_percent, mostly = holes(Embeddings(config.features), store)
    if mostly:
        say(f"notice: {mostly_empty_text(mostly)}")
    return {
        "features": str(config.features),
        "clips": len(store),
        "modalities": list(names),
        "widths": {name: len(own) for name, own in names.items()},
        "empty_percent": empty_percent,
        "nights_mostly_empty": dict(Counter(channel for _, channel, _ in mostly)),
        "overlap": description.overlap,
        "elapsed_s": round(time.monotonic() - started, 1),
    }


def cli(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    kept = "finished recordings are kept beside FEATURES; the same command continues from there"
    return command.run(Config, main, argv, interrupted=kept, following=after_embeddings)


if __name__ == "__main__":
    sys.exit(cli())
