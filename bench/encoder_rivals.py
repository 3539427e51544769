"""The published encoder as a user of PyTorch could run it: as it is, compiled, or in 2-D, channels last.

For evaluation also with its batch norms folded into the convolutions, as ours does it, and so in two engines made for
it, ONNX Runtime and OpenVINO, where they are installed.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sleepfm_fast.encoder import PRESETS, EfficientNet1d
from sleepfm_fast.reference.encoder import PublishedEncoder

N_CHANNELS = 7
PLAIN = "PyTorch, operation by operation"
COMPILED = "torch.compile"
CHANNELS_LAST = "PyTorch, 2-D channels last"
CHANNELS_LAST_COMPILED = "torch.compile, 2-D channels last"
FOLDED = "PyTorch, 2-D channels last, batch norms folded"
FOLDED_COMPILED = "torch.compile, 2-D channels last, batch norms folded"
ONNX_RUNTIME = "ONNX Runtime, 2-D, batch norms folded"
OPENVINO = "OpenVINO, 2-D, batch norms folded"
IN_FLOAT32 = "ours, float32"

# Each arm's memory above what the network, the clips and (training) one step's gradients and momenta take.
PEAK_SETUP = """
import sys
sys.path.insert(0, "bench")
import torch
from encoder_rivals import embedder, networks, trainer
network = networks(timed=False)[{arm!r}][0]
run = {make}(network, {bfloat16}, torch.randn(32, 7, 7680))
"""


def random_clips(n_clips: int) -> Tensor:
    """Clips of one modality, the same at every call."""
    return torch.randn(n_clips, N_CHANNELS, 7680, generator=torch.Generator().manual_seed(1))


def peaks(make: str, bfloat16: bool = False) -> dict[str, tuple[str, str]]:
    """Set-up and body of the processes that measure the memory of ``embedder`` or ``trainer``; see memory.py."""
    return {arm: (PEAK_SETUP.format(arm=arm, make=make, bfloat16=bfloat16), "run()") for arm in ("ours", PLAIN)}


def two_dimensional(network: nn.Module) -> nn.Module:
    """Return a copy whose 1-D layers are 2-D layers of height 1; its input and output stay as they are."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv1d):
                layer: nn.Module = nn.Conv2d(
                    child.in_channels,
                    child.out_channels,
                    (1, child.kernel_size[0]),
                    stride=(1, child.stride[0]),
                    padding=(0, int(child.padding[0])),
                    groups=child.groups,
                )
                layer.load_state_dict(
                    {"weight": child.weight.detach()[:, :, None], "bias": child.bias.detach()}  # type: ignore[union-attr]
                )
            elif isinstance(child, nn.BatchNorm1d):
                layer = nn.BatchNorm2d(child.num_features)
                layer.load_state_dict(child.state_dict())
            elif isinstance(child, nn.MaxPool1d):
                layer = nn.MaxPool2d((1, 3), stride=1, padding=(0, 1))
            else:
                continue
            setattr(module, name, layer)

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network.to(memory_format=torch.channels_last)

        def forward(self, x: Tensor) -> Tensor:
            n = self.network
            x = n.b0(n.stage1(x[:, :, None].contiguous(memory_format=torch.channels_last)))
            for name in n.names:
                x = getattr(n, name)(x)
                if name in ("stage3", "stage6"):
                    x = n.pool(x)
            return n.fc(n.drop(torch.relu(n.stage9(x).mean(dim=(2, 3)))))  # type: ignore[no-any-return]

    return Wrapped()


def folded(network: nn.Module) -> nn.Module:
    """Return a copy in evaluation whose batch norms are part of the convolutions before them."""
    network = copy.deepcopy(network).eval()

    def fold(place: nn.Module, conv: str, owner: nn.Module, norm: str) -> None:
        setattr(place, conv, fuse_conv_bn_eval(getattr(place, conv), getattr(owner, norm)))
        setattr(owner, norm, nn.Identity())

    fold(network, "stage1", network, "b0")
    for stage in (getattr(network, name) for name in network.names):  # type: ignore[union-attr]
        for block in stage.stack:
            fold(block, "conv1", block, "b0")
            fold(block, "conv2", block, "b1")
        fold(stage.stack[-1], "conv3", stage, "bn")
    return network


def frozen(network: nn.Module) -> nn.Module:
    """Compile a copy of a network for evaluation, its folded weights arranged once, as constants."""
    return torch.compile(two_dimensional(folded(network)), options={"freezing": True})  # type: ignore[return-value]


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself; elsewhere torch emulates it, slower than float32."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in text or "amx_bf16" in text


def set_running_statistics(network: nn.Module, forward: Callable[[], object]) -> None:
    """Give a fresh network the running statistics of one forward pass in training.

    Its own, 0 and 1, do not fit its activations: in evaluation the embedding would be almost the same for every clip,
    whatever an arm did wrong.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d)]
    for norm in norms:
        norm.momentum = 1.0
    network.train()
    with torch.no_grad():
        forward()
    for norm in norms:
        norm.momentum = 0.1


def networks(
    *, timed: bool, dropout: float = 0.5, training: bool = True, bfloat16: bool = False
) -> dict[str, tuple[nn.Module, bool]]:
    """Arms with the same weights, ours first, and whether they run under bfloat16 autocast: all of them, or none.

    With ``bfloat16``, ours in float32 is an arm too. Where nothing is timed, torch.compile is left out, as it takes
    minutes.
    """
    torch.manual_seed(0)
    plain = PublishedEncoder(N_CHANNELS, dropout=0.0)
    set_running_statistics(plain, lambda: plain(torch.randn(2, N_CHANNELS, 7680)))
    ours = EfficientNet1d(N_CHANNELS, PRESETS["seed"])
    ours.load_state_dict(plain.state_dict())
    for module in (*plain.modules(), *ours.modules()):
        if isinstance(module, nn.Dropout):
            module.p = dropout
    arms: dict[str, nn.Module] = {"ours": ours, PLAIN: plain, CHANNELS_LAST: two_dimensional(plain)}
    if not training:
        arms[FOLDED] = two_dimensional(folded(plain))
    if timed:
        arms[COMPILED] = torch.compile(copy.deepcopy(plain))  # type: ignore[assignment]
        if training:
            arms[CHANNELS_LAST_COMPILED] = torch.compile(two_dimensional(plain))  # type: ignore[assignment]
        else:
            arms[FOLDED_COMPILED] = frozen(plain)
    found = {arm: (network, bfloat16) for arm, network in arms.items()}
    return found | ({IN_FLOAT32: (copy.deepcopy(ours), False)} if bfloat16 else {})


def engines(plain: nn.Module, x: Tensor, *, bfloat16: bool = False) -> dict[str, Callable[[], Tensor]]:
    """Embed x in the engines that are installed, with as many threads as torch has.

    They take the folded network in 2-D, as ONNX; in 1-D they are slower. ONNX Runtime has no bfloat16 on a CPU.
    """
    found: dict[str, Callable[[], Tensor]] = {}
    wanted = ["openvino"] if bfloat16 else ["onnxruntime", "openvino"]
    installed = [name for name in wanted if importlib.util.find_spec(name)]
    if not installed or not importlib.util.find_spec("onnx"):  # with which torch writes the file
        return found
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter about itself
        torch.onnx.export(two_dimensional(folded(plain)), (x,), file, dynamo=False, input_names=["x"])
    given = x.numpy()
    if "onnxruntime" in installed:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Or the threads of one modality's session go on turning while the next one works.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
        found[ONNX_RUNTIME] = lambda: torch.from_numpy(session.run(None, {"x": given})[0])
    if "openvino" in installed:
        import openvino

        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        hints["INFERENCE_PRECISION_HINT"] = "bf16" if bfloat16 else "f32"
        core = openvino.Core()
        request = core.compile_model(core.read_model(file.getvalue()), "CPU", hints).create_infer_request()
        found[OPENVINO] = lambda: torch.from_numpy(request.infer({0: given}, share_inputs=True)[0].copy())
    return found


def embedder(network: nn.Module, bfloat16: bool, x: Tensor) -> Callable[[], Tensor]:
    """Embed x in evaluation."""
    network.eval()

    def run() -> Tensor:
        with torch.inference_mode(), torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
            return network(x).float()  # type: ignore[no-any-return]

    return run


def step_of(network: nn.Module, bfloat16: bool, x: Tensor) -> Callable[[], Tensor]:
    """One step of SGD with momentum; returns the loss before it, for which nothing waits."""
    network.train()
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def run() -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
            embeddings = network(x)
        loss = embeddings.float().square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return loss.detach()

    return run


def trainer(network: nn.Module, bfloat16: bool, x: Tensor) -> Callable[[], float]:
    """One step; returns the loss as a number."""
    step = step_of(network, bfloat16, x)
    return lambda: float(step())
