"""Tests that are not marked cuda run on the CPU, on a machine with a GPU too, and so does what they start."""

from __future__ import annotations

import os

import gpu_visibility
import pytest
import torch
from gpu_visibility import VARIABLE, gpu_is_here, show_gpu

from sleepfm_fast.training.world import choose_device


@pytest.mark.parametrize("before", [None, "3"])
def test_a_gpu_is_hidden_and_shown_again(monkeypatch, before):
    monkeypatch.setattr(gpu_visibility, "_hidden", [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    if before is None:
        monkeypatch.delenv(VARIABLE, raising=False)
    else:
        monkeypatch.setenv(VARIABLE, before)
    for _ in range(2):
        show_gpu(False)
        assert choose_device("auto").type == "cpu"
        assert os.environ[VARIABLE] == ""
        assert gpu_is_here()
    for _ in range(2):
        show_gpu(True)
        assert choose_device("auto").type == "cuda"
        assert os.environ.get(VARIABLE) == before


def test_without_a_gpu_nothing_changes(monkeypatch):
    monkeypatch.setattr(gpu_visibility, "_hidden", [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(VARIABLE, "0")
    show_gpu(False)
    assert os.environ[VARIABLE] == "0"
    assert not gpu_is_here()
