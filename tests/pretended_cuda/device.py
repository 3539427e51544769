"""A CUDA device that is none: tensors that say so, hold their values on the CPU, and compute there.

Where a tensor lies is then as on a GPU: operations that get tensors of both sides are refused as torch refuses them,
NumPy and addresses are out of reach, and what would make the host wait for the device, or copy to it, is noted in
:data:`NOTED`. Autograd and autocast are those of CUDA. Kernels of this project run as their CPU variants or twins.

To be imported before torch, with the environment variable ``PRETENDED_CUDA`` naming the compiled ``device.cpp``. As a
program: ``device.py NOTES COMMAND [arguments ...]`` runs a command of sleepfm_fast and writes what was noted to a file.
"""
# ruff: noqa: E402 - torch looks for devices when it is imported

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import json
import os
import sys
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ctypes.CDLL(os.environ["PRETENDED_CUDA"], ctypes.RTLD_GLOBAL)

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
PACKAGE = Path(str(importlib.util.find_spec("sleepfm_fast").origin)).parent

NOTED: dict[str, int] = {}
"""``"what file:line"`` -> how often, the line being that of sleepfm_fast. What is ``wait`` (the host waits until the
device has done all that it was asked), ``upload`` (a copy to it that waits as well) or ``upload without waiting``."""

# Operations whose result the host needs, or whose shape it needs.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"}
COPIES = {"_to_copy", "copy_"}
INDEXINGS = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class DeviceTensor(Tensor):
    """``values`` are on the CPU; all that torch asks about it, and all that it gives, is on the device."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> DeviceTensor:
        assert type(values) is Tensor
        made: DeviceTensor = Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device=CUDA,
        )
        made.values = values
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, op: Any, _: Any, arguments: Any = (), options: Any = None) -> Any:
        return run(op, arguments, options or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copy: Tensor = DeviceTensor(self.values.detach().clone())
            is_parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(copy, self.requires_grad) if is_parameter else copy
        return memo[id(self)]

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or self.device)

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy.")

    __array__ = numpy

    def data_ptr(self) -> int:
        raise RuntimeError("the address of a tensor of the pretended device was asked for.")

    def record_stream(self, _: Any) -> None:
        pass


def values_of(tensor: Any) -> Any:
    """The tensor on the CPU that stands behind one of the device; anything else as it is."""
    return tensor.values if isinstance(tensor, DeviceTensor) else tensor


def run(op: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Compute on the CPU, refusing and noting what a device would."""
    name = op._schema.name.removeprefix("aten::")
    if name == "to":  # whole where autograd is off; else torch has made copies of it
        return op.decompose(*arguments, **options)
    if name == "sleepfm_fast::mbconv_evaluate_packed":  # its kernel has tests of its own, and no CPU variant
        x, _, _, _, n_out, stride, _ = arguments
        return x.new_zeros((x.shape[0], (x.shape[1] - 1) // stride + 1, n_out))
    tensors = [tensor for tensor in tree_leaves((arguments, options)) if isinstance(tensor, Tensor)]
    here = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    asked = torch.device(options["device"]) if options.get("device") is not None else None
    if there and name not in COPIES:
        if name in INDEXINGS and isinstance(arguments[0], DeviceTensor):
            here = [tensor for tensor in here if tensor.is_floating_point()]  # torch copies indices to the device
        if any(tensor.dim() for tensor in here):
            shapes = ", ".join(f"{tuple(t.shape)} {t.dtype} on {t.device}" for t in tensors)
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found {shapes}.")
    note(name, arguments, options, asked, bool(there))
    options = {key: value for key, value in options.items() if key not in ("pin_memory", "non_blocking")}
    if asked is not None and asked.type == "cuda":
        options["device"] = torch.device("cpu")
    result = op(*tree_map(values_of, arguments), **tree_map(values_of, options))
    on_device = bool(there) if asked is None else asked.type == "cuda"
    if name == "copy_":
        on_device = isinstance(arguments[0], DeviceTensor)
    known = {id(tensor.values): tensor for tensor in there}

    def given(value: Any) -> Any:
        if not isinstance(value, Tensor) or not on_device:
            return value
        return known[id(value)] if id(value) in known else DeviceTensor(value)

    return tree_map(given, result)


def note(name: str, arguments: tuple[Any, ...], options: dict[str, Any], asked: Any, there: bool) -> None:
    """Write down where the host waits, and what it copies to the device."""
    what = "wait" if there and name in WAITS else ""
    if there and name in INDEXINGS:
        indices = [index for index in tree_leaves(arguments[1]) if isinstance(index, Tensor)]
        if any(index.dtype in (torch.bool, torch.uint8) or not isinstance(index, DeviceTensor) for index in indices):
            what = "wait"  # how many are there; or the indices are copied
    elif name in COPIES:
        source = arguments[1] if name == "copy_" else arguments[0]
        to_device = isinstance(arguments[0], DeviceTensor) if asked is None else asked.type == "cuda"
        if isinstance(source, DeviceTensor) and not to_device:
            what = "wait"
        elif not isinstance(source, DeviceTensor) and to_device:
            without = options.get("non_blocking") or (name == "copy_" and len(arguments) > 2 and arguments[2])
            what = "upload without waiting" if without else "upload"
    if what:
        # Not by the folder's name, which a clone of the repository has too.
        ours = [frame for frame in traceback.extract_stack() if Path(frame.filename).is_relative_to(PACKAGE)]
        place = f"{Path(ours[-1].filename).relative_to(PACKAGE)}:{ours[-1].lineno}" if ours else "elsewhere"
        NOTED[f"{what} {place}"] = NOTED.get(f"{what} {place}", 0) + 1


class PretendedCuda(TorchDispatchMode):
    """Within it, ``device="cuda"`` gives tensors of the device. It holds for the thread that enters it."""

    def __torch_dispatch__(self, op: Any, _: Any, arguments: Any = (), options: Any = None) -> Any:
        return run(op, arguments, options or {})


class Stream:
    """The device's only one."""

    device, cuda_stream = CUDA, 0

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def nothing(self, *_: Any) -> None:
        pass

    wait_stream = wait_event = synchronize = record = wait = nothing


@contextlib.contextmanager
def in_stream(_: Stream) -> Iterator[None]:
    """Threads of their own make their batches in a stream of their own."""
    with PretendedCuda():
        yield


def tensor_of(data: Any, *arguments: Any, device: Any = None, **options: Any) -> Tensor:
    """As torch.tensor, which makes tensors of a device where nobody can intercept it."""
    made = make_tensor(data, *arguments, **options)
    return made if device is None else made.to(device)


class NoGradients(torch.no_grad):
    """In place of inference mode, which does not let tensors of other classes have views."""

    def __init__(self, mode: bool = True) -> None:
        super().__init__()


make_tensor = torch.tensor
torch.tensor = tensor_of
torch.inference_mode = NoGradients
torch.__future__.set_overwrite_module_params_on_conversion(True)
Tensor.pin_memory = lambda tensor, *_: tensor
PROPERTIES = types.SimpleNamespace(multi_processor_count=132, name="pretended", major=9, minor=0)
for function, answer in {
    "is_available": True,
    "device_count": 1,
    "current_device": 0,
    "is_initialized": True,
    "_lazy_init": None,
    "set_device": None,
    "synchronize": None,
    "manual_seed": None,
    "manual_seed_all": None,
    "set_rng_state": None,
    "is_bf16_supported": True,
    "is_current_stream_capturing": False,
    "get_device_capability": (9, 0),
    "get_device_name": PROPERTIES.name,
    "get_device_properties": PROPERTIES,
    "current_stream": Stream(),
    "get_amp_supported_dtype": [torch.float16, torch.bfloat16, torch.float32],
}.items():
    setattr(torch.cuda, function, lambda *_, answer=answer, **__: answer)
torch.cuda.get_rng_state = lambda *_: torch.arange(16, dtype=torch.uint8)
torch.cuda.Stream = torch.cuda.Event = Stream
torch.cuda.stream = in_stream


def train_with_twin() -> None:
    """Let fused blocks train by the kernels' twin."""
    from sleepfm_fast import reference
    from sleepfm_fast.model import fused_training

    def twin(x: Tensor, *weights: Tensor, stride: int, eps: float) -> tuple[Tensor, Tensor]:
        assert x.device == CUDA
        assert x.dtype == torch.bfloat16
        wide = [weight.double() for weight in weights]
        y, statistics = reference.mbconv_train(x.double(), *wide, stride=stride, eps=eps, rounded=True)
        return y.to(x.dtype), statistics.detach()

    fused_training.mbconv_train = twin


if __name__ == "__main__":
    notes, command, *rest = sys.argv[1:]
    train_with_twin()
    with PretendedCuda():
        status = importlib.import_module(f"sleepfm_fast.{command}").cli(rest)
    Path(notes).write_text(json.dumps(NOTED), encoding="utf-8")
    sys.exit(status)
