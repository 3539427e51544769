"""The contrastive loss over several processes against the op in one: loss, statistics, gradients, network under DDP."""

import copy
import json
import math
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from closeness import assert_close
from contrastive_cases import evaluate
from contrastive_ranks import (
    CASES,
    CONFIGS,
    LOG_TEMPERATURE,
    Network,
    clips,
    features,
    normalise,
    normalised_input,
    objective,
    problem,
    share,
)
from process_trees import run_together
from safetensors.torch import load_file
from two_ranks import environment

from sleepfm_fast import distributed, ops, reference
from sleepfm_fast.model.batch_norm import SynchronisedBatchNorm, synchronise_batch_norm
from sleepfm_fast.training.objective import backward

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """Folder with the results of every case and rank."""
    folder = tmp_path_factory.mktemp("ranks")
    commands = [[sys.executable, str(HERE / "contrastive_ranks.py"), str(folder), str(rank)] for rank in range(3)]
    run_together(commands, environment(), timeout_s=400, folder=folder)
    return folder


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_ranks_together_give_the_result_of_one_process(computed, number):
    case = CASES[number]
    ranks = [load_file(computed / f"{number}-{rank}.safetensors") for rank in range(len(case.counts))]
    for other in ranks[1:]:
        for name in ("loss", "losses", "correct", "n_valid"):
            assert torch.equal(other[name], ranks[0][name]), f"{name} differs between ranks"
    x, tau, mask = problem(case)
    options = {"mode": case.mode, "directions": case.directions, "mask": mask}
    whole = evaluate(ops.contrastive_loss, x, tau, **options)
    factor = 1 if case.gradient == "sum" else len(ranks)
    d_x = torch.cat([r["d_x"] for r in ranks], dim=1) / factor
    d_tau = sum(r["d_tau"] for r in ranks) / factor
    assert torch.equal(ranks[0]["n_valid"], whole.statistics.n_valid)
    assert d_x.dtype == x.dtype
    if case.dtype == "float64":
        torch.testing.assert_close(ranks[0]["loss"], whole.loss, rtol=1e-13, atol=1e-16)
        torch.testing.assert_close(d_x, whole.d_x, rtol=1e-11, atol=1e-15)
        torch.testing.assert_close(d_tau, whole.d_log_temperature, rtol=1e-11, atol=1e-15)
        torch.testing.assert_close(ranks[0]["losses"], whole.statistics.losses, rtol=1e-13, atol=1e-16)
        assert torch.equal(ranks[0]["correct"], whole.statistics.correct)
        assert torch.equal(torch.cat([r["ranks"] for r in ranks], dim=2), whole.statistics.ranks)
        return
    # As contrastive_cases.check_against_truth: a logit is uncertain by about s eps.
    truth = evaluate(reference.contrastive_loss, x.double(), tau.double(), **options)
    s = math.exp(LOG_TEMPERATURE)
    term = 8 * (1 + s) * torch.finfo(torch.float32).eps
    assert_close(ranks[0]["loss"], whole.loss, truth.loss, term * truth.loss, "loss")
    assert_close(ranks[0]["losses"], whole.statistics.losses, truth.statistics.losses, term * truth.loss, "losses")
    assert_close(
        d_tau, whole.d_log_temperature, truth.d_log_temperature, term * (truth.d_log_temperature.abs() + 1), "slope"
    )
    # Rounded to x's type after the multiplication by the number of ranks, and here once more.
    rounding = truth.d_x.abs() * torch.finfo(x.dtype).eps
    length = x.double().nan_to_num(1.0).norm(dim=-1, keepdim=True)
    n_valid = int(truth.statistics.n_valid.sum())
    scale = truth.d_x.abs().amax(-1, keepdim=True) + s / n_valid / length
    assert_close(d_x, whole.d_x, truth.d_x, term * scale + rounding, "gradient")


@pytest.mark.parametrize(
    "number", [k for k, c in enumerate(CASES) if c.dtype == "float64" and c.gradient == "mean"],
    ids=[c.name for c in CASES if c.dtype == "float64" and c.gradient == "mean"],
)  # fmt: skip
def test_a_network_under_ddp_gets_the_gradient_of_one_process(computed, number):
    case = CASES[number]
    network = Network(ops.contrastive_loss)
    mask = problem(case)[2]
    network(features(sum(case.counts)), mode=case.mode, directions=case.directions, mask=mask).backward()
    for rank in range(len(case.counts)):
        found = load_file(computed / f"{number}-{rank}.safetensors")
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(found[f"network/{name}"], parameter.grad, rtol=1e-10, atol=1e-14, msg=name)


def test_arguments_that_differ_between_ranks_are_refused_on_all(computed):
    every = [(computed / f"refused-{rank}").read_text().splitlines() for rank in range(3)]
    for sentences in every:
        assert len(sentences) == 6
        for sentence, word in zip(sentences, ("dtype", "dimensions", "mask", "mode", "counts", "counts"), strict=True):
            assert word in sentence
    assert every[0][:4] == every[1][:4] == every[2][:4]


def test_derivatives_that_there_are_not_are_refused_with_what_works(computed):
    twin = "Use sleepfm_fast.reference.contrastive_loss on the embeddings of all ranks, which is made of "
    kinds = {
        **dict.fromkeys(("second", "hessian"), "has no second derivative. "),
        "forward_ad": "has no forward-mode derivative (torch.autograd.forward_ad). ",
        **dict.fromkeys(
            ("grad", "vmap", "jvp"),
            "does not work inside the transforms of torch.func (vmap, grad, vjp, jvp, hessian). ",
        ),
    }
    for rank in range(3):
        sentences = json.loads((computed / f"undifferentiable-{rank}").read_text())
        assert sentences.keys() == kinds.keys()
        for name, kind in kinds.items():
            assert sentences[name].startswith(f"distributed.contrastive_loss {kind}{twin}"), sentences[name]


def test_synchronised_batch_norm_is_that_of_all_samples_together(computed):
    ranks = [load_file(computed / f"norm-{rank}.safetensors") for rank in range(3)]
    whole = normalise(torch.nn.BatchNorm1d(5).double(), normalised_input())
    together = {
        name: torch.cat([r[name] for r in ranks]) if name in ("y", "d_x") else sum(r[name] for r in ranks)
        for name in ("y", "d_x", "d_weight", "d_bias")
    }
    for name, values in together.items():
        torch.testing.assert_close(values, whole[name], rtol=1e-10, atol=1e-9, msg=name)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(ranks[0][name], whole[name], rtol=1e-13, atol=0)
        assert all(torch.equal(r[name], ranks[0][name]) for r in ranks)


@pytest.fixture
def alone(monkeypatch):
    """A process group of this process only."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


LAYERS = {
    "plain": (lambda: torch.nn.BatchNorm1d(5), (4, 5, 7)),
    "no samples beside channels": (lambda: torch.nn.BatchNorm1d(5), (4, 5)),
    "images": (lambda: torch.nn.BatchNorm2d(5), (2, 5, 3, 4)),
    "eps": (lambda: torch.nn.BatchNorm1d(5, eps=0.5), (4, 5, 7)),
    "momentum": (lambda: torch.nn.BatchNorm1d(5, momentum=0.7), (4, 5, 7)),
    "cumulative": (lambda: torch.nn.BatchNorm1d(5, momentum=None), (4, 5, 7)),
    "not affine": (lambda: torch.nn.BatchNorm1d(5, affine=False), (4, 5, 7)),
    "not tracked": (lambda: torch.nn.BatchNorm1d(5, track_running_stats=False), (4, 5, 7)),
    "two values": (lambda: torch.nn.BatchNorm1d(5), (2, 5)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_synchronised_batch_norm_is_torchs_whatever_the_layer(alone, kind, dtype):
    build, shape = LAYERS[kind]
    torch.manual_seed(0)
    plain = torch.nn.Sequential(build(), torch.nn.Sequential(build())).to(
        torch.float32 if dtype == torch.bfloat16 else dtype
    )
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.normal_()
    ours = copy.deepcopy(plain)
    names = [name for name, _ in ours.named_modules()]
    group = dist.new_group()
    assert synchronise_batch_norm(ours, group) == 2
    assert synchronise_batch_norm(ours, group) == 0
    assert [name for name, _ in ours.named_modules()] == names
    assert all(layer.group is group for layer in (ours[0], ours[1][0]))
    assert ours[0].extra_repr() == plain[0].extra_repr()
    tolerance = {"rtol": 1e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    for step in range(3):
        results = []
        for model in (plain, ours):
            x = (3 + 2 * torch.randn(shape, generator=torch.Generator().manual_seed(step))).to(dtype).requires_grad_()
            model.zero_grad()
            y = model(x)
            (y * torch.arange(y.numel()).reshape(shape).cos()).sum().backward()
            results.append((y, x.grad, *(p.grad for p in model.parameters()), *model.buffers()))
        for a, b in zip(*results, strict=True):
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            if kind != "two values" or a is results[0][0]:  # there the gradient is the small rest of large terms
                torch.testing.assert_close(b, a, **tolerance)
    frozen = [model.eval()(torch.ones(shape, dtype=dtype)) for model in (plain, ours)]
    torch.testing.assert_close(frozen[1], frozen[0], **tolerance)


def test_synchronised_batch_norm_of_one_value_keeps_finite_statistics_and_refuses_what_has_no_channels(alone):
    norm = SynchronisedBatchNorm(3)
    norm(torch.ones(1, 3))
    assert norm.running_var.isfinite().all()
    with pytest.raises(ValueError, match=r"expected an input \[batch, channels, ...\], got shape \(3,\)"):
        norm(torch.ones(3))
    x = torch.randn(4, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
    norm.track_running_stats = False  # from now on, as in torch's: what was tracked stays
    tracked = norm.running_mean.clone()
    norm(torch.randn(5, 3))
    assert torch.equal(norm.running_mean, tracked)
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3)).eval()
    synchronise_batch_norm(model)
    assert not model[0].training


@pytest.mark.parametrize("design", CONFIGS)
def test_encoders_with_synchronised_batch_norm_get_the_gradient_of_one_process(computed, design):
    # The second rank has no clip of one modality.
    whole = objective(design)
    outcome = backward(whole, whole, clips())
    gradients = {f"gradient/{name}": p.grad for name, p in whole.model.named_parameters()}
    for rank in range(3):
        found = load_file(computed / f"{design}-{rank}.safetensors")
        torch.testing.assert_close(found["loss"], outcome.loss, rtol=1e-12, atol=0)
        for name, value in {**gradients, **whole.model.state_dict()}.items():
            # A bias before batch norm has the gradient 0, of which rounding is left.
            torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-12, msg=name)


def test_without_a_process_group_it_is_the_op():
    x, tau, mask = problem(CASES[1])
    ours = evaluate(distributed.contrastive_loss, x, tau, mask=mask, counts=[x.shape[1]])
    op = evaluate(ops.contrastive_loss, x, tau, mask=mask)
    assert torch.equal(ours.loss, op.loss)
    assert torch.equal(ours.d_x, op.d_x)
    with pytest.raises(ValueError, match="one process with 12 samples"):
        distributed.contrastive_loss(x, tau, counts=[6, 6])
    with pytest.raises(ValueError, match="choose 'mean' or 'sum'"):
        distributed.contrastive_loss(x, tau, gradient="average")


@pytest.mark.parametrize("sizes", [(2, 2), (3, 0, 1), (0, 0)])
def test_shares_cover_the_samples_once(sizes):
    case = CASES[0]._replace(counts=sizes)
    numbers = list(range(sum(sizes)))
    assert [k for rank in range(len(sizes)) for k in numbers[share(case, rank)]] == numbers
