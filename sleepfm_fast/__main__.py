"""``sleepfm-fast COMMAND``: the commands under one name; each is also ``python -m sleepfm_fast.COMMAND``."""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress

from sleepfm_fast import __version__
from sleepfm_fast.cli.command import finish

COMMANDS = {
    "simulate": "write a simulated cohort: EDF+ files with hypnograms and respiratory events, participants.csv",
    "preprocess": "recordings (EDF, BDF, WFDB) and their scoring -> clip store",
    "convert": "what other SleepFM code has prepared (.npy clips, HDF5 nights) -> clip store",
    "train": "clip store -> trained model; without arguments, the demo on a simulated cohort",
    "features": "clip store -> hand-made features, which probe and few_shot read in place of embeddings",
    "supervise": "clip store -> network trained end to end on labels, and its figures: the supervised baseline",
    "classify": "supervised run + clip store -> every clip's class, and the figures where there are labels",
    "import_checkpoint": "checkpoint of the authors' code (best.pt) -> run folder",
    "embed": "trained model + clip store -> embeddings",
    "transfer": "embeddings of two stores -> one folder, whose probe is fitted on the first and tested on the second",
    "probe": "embeddings -> sleep stage, sleep-disordered breathing, age group or sex by logistic regression",
    "predict": "a probe's result + embeddings of any nights -> every clip's class: tables and hypnograms (CSV, EDF+)",
    "few_shot": "embeddings -> the probe's figures against the number of training subjects",
    "compare": "two results (of classifiers or of retrieve) -> the difference of their figures, paired over subjects",
    "retrieve": "embeddings -> recall@k and median rank between modalities",
    "report": "run folders -> one HTML page with every figure, and its numbers as JSON",
    "reproduce": "the paper's tables and figures, from a store or a simulated cohort, by all of the above",
}


def main() -> int:
    """Forward to one command, list them, or say the version."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] == "--version":
        print(f"sleepfm_fast {__version__}")
        return finish(0)
    if not arguments or arguments[0] in ("-h", "--help"):
        with suppress(BrokenPipeError):  # as of `| head`
            print("usage: sleepfm-fast COMMAND ...\n       sleepfm-fast --version\n")
            print("\n".join(f"  {k:<17} {v}" for k, v in COMMANDS.items()))
        return finish(0 if arguments else 2)
    if arguments[0] not in COMMANDS:
        print(f"error: no command '{arguments[0]}'; choose one of: {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    status: int = importlib.import_module(f"sleepfm_fast.{arguments[0]}").cli(arguments[1:])
    return status


if __name__ == "__main__":
    sys.exit(main())
