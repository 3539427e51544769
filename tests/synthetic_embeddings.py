"""Embeddings folders with a known right answer, for the tests of the writer, probe and retrieve."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sleepfm_fast.embeddings import Description
from sleepfm_fast.evaluation.embedding_writer import EmbeddingWriter

MODALITIES = ("respiratory", "brain", "ecg")


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def columns_of(subject, split, *, stage=None, sdb=None):
    """One recording a subject; clips numbered within it."""
    subject = np.asarray(subject)
    n = len(subject)
    clip = np.zeros(n, np.int32)
    for s in np.unique(subject):
        clip[subject == s] = np.arange((subject == s).sum())
    return {
        "recording": subject.astype(np.int32),
        "clip": clip,
        "onset_s": clip * 30.0,
        "stage": np.full(n, -1, np.int8) if stage is None else np.asarray(stage, np.int8),
        "sdb": np.full(n, -1, np.int8) if sdb is None else np.asarray(sdb, np.int8),
        "subject": subject.astype(np.int32),
        "split": np.asarray(split, np.int8),
    }


def description_of(n_subjects, **changes):
    fields = {
        "subjects": tuple(f"s{i:03d}" for i in range(n_subjects)),
        "recordings": tuple(f"s{i:03d}_night1" for i in range(n_subjects)),
        "ages": tuple(40.0 + i if i % 2 else None for i in range(n_subjects)),
        "sexes": tuple("F" if i % 2 else "M" for i in range(n_subjects)),
        "run": "runs/x",
        "store": "store",
        "split_rule": "sha256 of the subject, 70/10/20",
        "presets": {"encoder": "tiny", "filters": "seed"},
    }
    return Description(**{**fields, **changes})


def write_folder(path: Path, vectors, columns, *, mask=None, modalities=MODALITIES, batch=64, **description) -> Path:
    n, _, dim = vectors.shape
    n_subjects = int(columns["subject"].max()) + 1
    with EmbeddingWriter(path, n, modalities, dim) as writer:
        for i in range(0, n, batch):
            writer.append(vectors[i : i + batch], None if mask is None else mask[i : i + batch])
        return writer.finish(columns, description_of(n_subjects, **description))
