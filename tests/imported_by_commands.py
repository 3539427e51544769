"""What commands import, and set up before they do anything, for the fork server of ``forked_commands``."""

from __future__ import annotations

import contextlib
from importlib import import_module

from numba.core.registry import cpu_target

IMPORTED = (
    "sleepfm_fast.training.contrastive",
    "sleepfm_fast.baselines.supervised_training",
    "sleepfm_fast.few_shot",
    "sleepfm_fast.retrieve",
    "sleepfm_fast.evaluation.candidates",
    "sleepfm_fast.evaluation.changed_store",
    "sleepfm_fast.evaluation.few_shot_points",
    "sleepfm_fast.evaluation.few_shot_summary",
    "sleepfm_fast.evaluation.found_clips",
    "sleepfm_fast.evaluation.kept_ranks",
    "sleepfm_fast.evaluation.logistic",
    "sleepfm_fast.evaluation.penalty",
    "sleepfm_fast.evaluation.retrieval_figures",
    "scipy.signal",
    "sklearn.linear_model",
    "torch._dynamo",
    "pytest",  # by the test that says what the process is to do
    "typeguard",  # by tyro, as are those below
    "tyro._backends._argparse_formatter",
    "tyro._backends._tyro_backend",
    "tyro._backends._tyro_help_formatting",
)
for name in IMPORTED:
    with contextlib.suppress(ImportError):  # then the command says so, or does without it
        import_module(name)

# A process that calls its first compiled function has numba list all functions that it knows: 0.4 s, and no threads.
cpu_target.typing_context.refresh()
cpu_target.target_context.refresh()
