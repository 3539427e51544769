"""Cached embeddings: the gradient of a batch that is embedded in parts."""

import copy

import pytest
import torch
from contrastive_ranks import CONFIGS, clips, objective

from sleepfm_fast import ops
from sleepfm_fast.batches import Batch
from sleepfm_fast.training.objective import backward, not_finite, split
from sleepfm_fast.training.world import World


def gradients(module):
    return {name: p.grad for name, p in module.named_parameters()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if value is None:
            assert ours[name] is None
        else:
            torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-13, msg=name)


@pytest.mark.parametrize("n_parts", [2, 3, 5])
@pytest.mark.parametrize("design", CONFIGS)
def test_parts_give_the_gradient_of_the_batch_where_batch_norm_is_fixed(design, n_parts):
    one, parts = objective(design), objective(design)
    one.eval()
    parts.eval()
    whole = backward(one, one, clips())
    cached = backward(parts, parts, clips(), n_parts=n_parts)
    torch.testing.assert_close(cached.loss, whole.loss, rtol=1e-13, atol=0)
    torch.testing.assert_close(cached.embeddings, whole.embeddings, rtol=1e-12, atol=1e-14)
    assert torch.equal(cached.statistics.ranks, whole.statistics.ranks)
    assert_same(gradients(parts), gradients(one))


@pytest.mark.parametrize("design", CONFIGS)
def test_parts_in_training_are_one_graph_with_statistics_by_part(design, monkeypatch):
    dropping = CONFIGS[design].__class__(**{**CONFIGS[design].__dict__, "dropout": 0.5})
    monkeypatch.setitem(CONFIGS, design, dropping)
    one, cached = objective(design), objective(design)
    batch = Batch({k: v[:5] for k, v in clips().x.items()}, {k: v[:5] for k, v in clips().present.items()})
    torch.manual_seed(1)
    pairs = [one.model(part.x, part.present) for part in split(batch, 2)]
    embeddings, mask = (torch.cat(column, dim=1) for column in zip(*pairs, strict=True))
    loss, _ = ops.contrastive_loss(embeddings, one.model.log_temperature, mask=mask)
    loss.backward()
    torch.manual_seed(1)
    outcome = backward(cached, cached, batch, n_parts=2)
    torch.testing.assert_close(outcome.loss, loss.detach(), rtol=1e-13, atol=0)
    assert_same(gradients(cached), gradients(one))
    assert_same(dict(cached.named_buffers()), dict(one.named_buffers()))  # updated once a part, not twice


def test_parts_cover_the_batch_in_order():
    batch = clips()
    parts = split(batch, 5)
    assert sorted(len(part.x["a"]) for part in parts) == [2, 2, 2, 3, 3]
    assert torch.equal(torch.cat([part.x["b"] for part in parts]), batch.x["b"])


def test_what_was_not_finite_is_named():
    whole = objective("strided").eval()
    batch = clips()
    names = tuple(whole.model.modalities)
    fine = backward(copy.deepcopy(whole), whole, batch)
    assert not_finite(batch, fine, names, World()) == ""
    batch.x["b"][0, 1, 7] = torch.inf
    infinite = backward(whole, whole, batch)
    assert not_finite(batch, infinite, names, World()) == "the input of b"
    batch.present["b"][0, 1] = False  # then it is not read
    assert backward(whole, whole, batch).loss.isfinite()
    with torch.no_grad():
        whole.model.encoders["a"].fc.bias.fill_(torch.nan)
    broken = backward(whole, whole, batch)
    assert not_finite(batch, broken, names, World()) == "the embeddings of a"
