from itertools import pairwise

import pytest
import torch

from sleepfm_fast.train import Config
from sleepfm_fast.training.schedule import learning_rate
from sleepfm_fast.training.settings import resolve


def test_step_schedule_equals_torch_steplr():
    config = resolve(Config(lr=0.01, step_epochs=2))
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    rival = torch.optim.lr_scheduler.StepLR(optimiser, step_size=2, gamma=0.1)
    for epoch in range(7):
        for batch in range(5):
            assert learning_rate(config, epoch * 5 + batch, 5, 35) == pytest.approx(rival.get_last_lr()[0], rel=1e-12)
            optimiser.step()
        rival.step()


@pytest.mark.parametrize("lr", [1.0, 0.003])
def test_cosine_warms_up_then_decays_to_nearly_nothing(lr):
    config = resolve(Config(lr=lr, schedule="cosine"))
    rates = [learning_rate(config, step, 10, 105) / lr for step in range(105)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(a >= b for a, b in pairwise(rates[4:]))
    assert rates[55] == pytest.approx(0.5), "half of the way down"
    assert rates[-1] < 1e-3


def test_cosine_of_one_step():
    assert learning_rate(resolve(Config(schedule="cosine")), 0, 1, 1) == pytest.approx(1e-3)
