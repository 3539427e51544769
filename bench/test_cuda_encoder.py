"""The published encoder on a GPU, one modality: what embed and train run there, and what a user of PyTorch could.

Without a GPU ``--quick`` runs the arms that are not compiled on the CPU, so that they work on the day there is one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import cuda_events
import pytest
import torch
from encoder_rivals import (
    CHANNELS_LAST,
    FOLDED,
    N_CHANNELS,
    PLAIN,
    embedder,
    folded,
    networks,
    step_of,
    two_dimensional,
)
from torch import Tensor, nn

from sleepfm_fast import inference
from sleepfm_fast.batches import Batch
from sleepfm_fast.encoder import PRESETS, SleepModel
from sleepfm_fast.model.fused_training import fuse_encoder

CUDA = torch.cuda.is_available()
pytestmark = [
    # torch.compile's own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
N_EMBEDDED, N_TRAINED = 512, 256
# Clips a second on an H200 of one of three encoders, as here. Three were to embed 60,000 and train on 15,000 at the
# least, a prediction made before there were kernels. What the fused blocks make of it is computed for embedding
# and for training (docs/kernels/encoder-blocks-cuda.md).
FLOOR_EMBEDDED, FLOOR_TRAINED = 3 * 60_000, 3 * 15_000
COMPUTED_EMBEDDED = 3 * 118_000
COMPUTED_TRAINED = 3 * 13_300
BFLOAT16 = ", bfloat16"
Arms = dict[str, Callable[[], Tensor]]


def clips(n_clips: int) -> Tensor:
    return torch.randn(n_clips, N_CHANNELS, 7680, generator=torch.Generator().manual_seed(1)).to(cuda_events.device())


def working(makers: dict[str, Callable[[], Callable[[], Tensor]]]) -> tuple[Arms, dict[str, str]]:
    """Build and call every arm; a rival that fails is a finding, ours must not."""
    arms: Arms = {}
    failed: dict[str, str] = {}
    for arm, make in makers.items():
        try:
            call = make()
            assert bool(call().isfinite().all()), "its result is not finite"
        except Exception as error:
            if arm in ("ours", "ours" + BFLOAT16):
                raise
            failed[arm] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            continue
        arms[arm] = call
    return arms, failed


def compare(
    versus: Any, name: str, makers: Any, agree: Any, n_clips: int, floor: float, computed: float | None = None
) -> None:
    arms, failed = working(makers)
    result = versus(
        f"CUDA: {name}, published encoder, {n_clips} clips of {N_CHANNELS} channels",
        arms,
        agree=agree,
        rounds=4,
        measure=cuda_events.measure,
        more={
            **({"floor_s": n_clips / floor} if CUDA and "H200" in torch.cuda.get_device_name() else {}),
            **({"predicted_s": n_clips / computed} if computed else {}),
            "peak_device_mib": {arm: cuda_events.peak_mib(call) for arm, call in arms.items()},
            "failed": failed,
            "device": str(cuda_events.device()),
        },
    )
    for arm, seconds in result.seconds.items():
        print(f"{arm}: {n_clips / min(seconds):.4g} clips/s" if seconds else arm)
    expected = f"{computed:,} computed with fused blocks, " if computed else ""
    print(f"an H200: {expected}{floor:,} clips/s at the least")


# ---- embedding ------------------------------------------------------------------------------------------------------


def embedding_arms(x: Tensor, compiled: bool) -> dict[str, Callable[[], Callable[[], Tensor]]]:
    plain = networks(timed=False, training=False)[PLAIN][0].to(x.device).eval()
    model = SleepModel({"respiratory": N_CHANNELS}, PRESETS["seed"])
    model.encoders["respiratory"].load_state_dict(plain.state_dict())
    model.to(x.device)
    batch = Batch({"respiratory": x}, {"respiratory": torch.ones(len(x), N_CHANNELS, dtype=torch.bool)})

    def ours(precision: str, compile_it: bool = False, fused_blocks: bool = False) -> Callable[[], Tensor]:
        embed = inference.embedder(
            model,
            precision,  # type: ignore[arg-type]
            compiled=compile_it,
            folded=True,
            fused_blocks=fused_blocks,
        )

        def run() -> Tensor:
            with torch.inference_mode():
                return embed(batch)[0][0]

        return run

    flat = two_dimensional(folded(plain)).to(x.device)
    if not compiled:
        fused = {
            "ours, fused blocks" + BFLOAT16: lambda: ours("bfloat16", fused_blocks=True),
            "ours, fused blocks, captured" + BFLOAT16: lambda: cuda_events.captured(
                ours("bfloat16", fused_blocks=True)
            ),
        }
        return {
            "ours": lambda: ours("float32"),
            "ours" + BFLOAT16: lambda: ours("bfloat16"),
            **(fused if CUDA else {}),
            PLAIN: lambda: embedder(plain, False, x),
            PLAIN + BFLOAT16: lambda: embedder(plain, True, x),
            FOLDED + BFLOAT16: lambda: embedder(flat, True, x),
        }
    return {
        "ours" + BFLOAT16: lambda: ours("bfloat16"),
        "ours, compiled" + BFLOAT16: lambda: ours("bfloat16", True),
        "ours, captured" + BFLOAT16: lambda: cuda_events.captured(ours("bfloat16")),
        "ours, fused blocks, compiled" + BFLOAT16: lambda: ours("bfloat16", True, fused_blocks=True),
        "torch.compile" + BFLOAT16: lambda: embedder(compiled_copy(plain), True, x),
        FOLDED + ", torch.compile" + BFLOAT16: lambda: embedder(compiled_copy(flat), True, x),
    }


def compiled_copy(network: nn.Module) -> nn.Module:
    return torch.compile(copy.deepcopy(network), dynamic=False)  # type: ignore[return-value]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_embedding_cuda(versus, quick, compiled):
    if not CUDA and (compiled or not quick):
        pytest.skip("no CUDA device")

    def agree(results):
        exact = results.get(PLAIN, results["ours" + BFLOAT16])
        for arm, y in results.items():
            error = float((y - exact).norm() / exact.norm())
            # Convolutions multiply with 10 bits in TF32 and with 8 in bfloat16, forty times in a row.
            assert error < (0.35 if BFLOAT16 in arm else 0.02), f"{arm}: {error:.2g}"

    n_clips = N_EMBEDDED if CUDA else 2
    arms = embedding_arms(clips(n_clips), compiled)
    words = "embedding, compiled" if compiled else "embedding"
    compare(versus, words, arms, agree, n_clips, FLOOR_EMBEDDED, COMPUTED_EMBEDDED)


# ---- a training step ------------------------------------------------------------------------------------------------


def training_arms(x: Tensor, compiled: bool) -> dict[str, Callable[[], Callable[[], Tensor]]]:
    arms = networks(timed=False)
    model = SleepModel({"respiratory": N_CHANNELS}, PRESETS["seed"])
    encoder = model.encoders["respiratory"]
    encoder.load_state_dict(arms[PLAIN][0].state_dict())
    plain, flat = arms[PLAIN][0], arms[CHANNELS_LAST][0]
    for network in (encoder, plain, flat):
        network.to(x.device)

    def ours(bfloat16: bool) -> Callable[[], Tensor]:
        return step_of(copy.deepcopy(encoder), bfloat16, x)

    def fused() -> Callable[[], Tensor]:
        network = copy.deepcopy(encoder)
        fuse_encoder(network)
        return step_of(network, True, x)

    if not compiled:
        return {
            "ours": lambda: ours(False),
            "ours" + BFLOAT16: lambda: ours(True),
            **({"ours, fused blocks" + BFLOAT16: fused} if CUDA else {}),
            PLAIN: lambda: step_of(plain, False, x),
            CHANNELS_LAST + BFLOAT16: lambda: step_of(flat, True, x),
        }
    return {
        "ours" + BFLOAT16: lambda: ours(True),
        "ours, compiled" + BFLOAT16: lambda: step_of(compiled_copy(encoder), True, x),
        "ours, captured" + BFLOAT16: lambda: cuda_events.captured(ours(True)),
        "ours, fused blocks, captured" + BFLOAT16: lambda: cuda_events.captured(fused()),
        CHANNELS_LAST + ", torch.compile" + BFLOAT16: lambda: step_of(compiled_copy(flat), True, x),
    }


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_training_step_cuda(versus, quick, compiled):
    if not CUDA and (compiled or not quick):
        pytest.skip("no CUDA device")

    def agree(results):  # every arm draws its own dropout, and has made a step or two
        exact = float(results["ours" + BFLOAT16])
        for arm, loss in results.items():
            assert float(loss) == pytest.approx(exact, rel=0.5), arm

    n_clips = N_TRAINED if CUDA else 2
    words = "training step, compiled" if compiled else "training step"
    arms = training_arms(clips(n_clips), compiled)
    compare(versus, words, arms, agree, n_clips, FLOOR_TRAINED, COMPUTED_TRAINED)
