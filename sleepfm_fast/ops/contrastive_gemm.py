"""The contrastive loss on CUDA for large N: the library's matrix products, tile by tile, with kernels between them.

torch multiplies a tile of similarities. In forward, one kernel reads the tile once for everything that its rows and
columns need. In backward, another turns it into the gradient of the similarities, the factor of two more products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from sleepfm_fast import _C
from sleepfm_fast.ops.contrastive_results import allocate_forward
from sleepfm_fast.ops.process_settings import float32_sums
from sleepfm_fast.ops.registry import DTYPE_CODES
from sleepfm_fast.reference.contrastive_loss import Mode, problems

__all__ = ["FIELDS", "STEPS", "Launcher", "backward", "forward", "tile_edge"]

# The largest edge of a tile of similarities: 256 MB in float32, and 128 MB (256 MB in "highest") for its gradient. The
# products for the operands' gradients need that many rows to occupy a large device; tiles that stay in the second-level
# cache would leave much of it idle (docs/kernels/contrastive-loss-cuda.md).
TILE_EDGE = 8192
STRIP, SEGMENT, FINISH_THREADS = 128, 256, 256  # gemm_* in csrc/cuda/contrastive_epilogue.h
REST_SCALE = 2.0**-11  # undoes gemm_rest_scale

# GemmStep and the members of ContrastiveGemm in csrc/cuda/contrastive_epilogue.h, in their order.
STEPS = (
    *("operands", "statistics", "merge", "finish", "total"),
    *("weights", "gradient", "accumulate", "finish_gradient"),
)
FIELDS = (
    *("x", "dtype", "n_modalities", "n_samples", "n_dim", "stride_modality", "stride_sample", "log_temperature"),
    *("mask", "mask_stride_modality", "mask_stride_sample", "pairwise", "both_directions", "begin", "end"),
    *("problem", "i", "j", "split", "width", "a", "b", "own", "valid", "own_product"),
    *("tile", "stride", "row", "column", "n_rows", "n_columns", "row_shift", "column_shift"),
    *("row_partials", "column_partials", "rows", "columns"),
    *("partial_losses", "partial_correct", "partial_valid", "loss", "losses", "correct", "ranks", "n_valid", "state"),
    *("gradient_loss", "row_largest", "row_weight", "column_largest", "column_weight", "own_scaled", "unscale"),
    *("slopes", "n_slopes", "slope_of_columns", "gradient_high", "gradient_low", "gradient_a", "gradient_b"),
    *("gradient_unit", "gradient_x", "gradient_log_temperature"),
)


PLACE = {name: place for place, name in enumerate(FIELDS)}

Fields = dict[str, Tensor | int]
Bound = Callable[[str, Fields], None]


class Launcher(Protocol):
    """Runs the kernels.

    ``bind`` takes the members of ContrastiveGemm by name, a tensor for its address; members that are not given are 0.
    What it returns is called with one of ``STEPS`` and the members that change from then on.
    """

    def bind(self, fields: Fields) -> Bound: ...  # noqa: D102


class _Device:
    def __init__(self, device: torch.device) -> None:
        self.device = torch.cuda.current_device() if device.index is None else device.index
        self.stream = torch.cuda.current_stream(device).cuda_stream

    def bind(self, fields: Fields) -> Bound:
        def address(value: Tensor | int) -> int:
            return value.data_ptr() if isinstance(value, Tensor) else value

        members = [address(fields.get(name, 0)) for name in FIELDS]

        def launch(step: str, changed: Fields) -> None:
            for name, value in changed.items():
                members[PLACE[name]] = address(value)
            _C.contrastive_gemm(STEPS.index(step), members, self.device, self.stream)

        return launch


# ---- products --------------------------------------------------------------------------------------------------------


def gives_float32(multiply: Callable[..., Tensor], device: torch.device, *, added: bool) -> bool:
    """Try whether ``multiply`` writes (``added``: adds) products of float16 to float32, of one row as of several."""
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    factor = torch.ones(8, 8, dtype=torch.float16, device=device)
    for n_rows in (8, 1):
        out = torch.ones(n_rows, 8, dtype=torch.float32, device=device)
        try:
            multiply(*([out] if added else []), factor[:n_rows], factor, out_dtype=torch.float32, out=out)
        except (RuntimeError, TypeError):
            return False
        if not capturing and not bool((out == (9.0 if added else 8.0)).all()):  # waits for the device, once
            return False
    return True


@cache
def _mixed_products(device: torch.device) -> tuple[bool, bool]:
    """Whether torch on this device writes float16 products to float32 (torch 2.8), and adds them to float32 (2.10)."""
    if device.type != "cuda":
        return False, False
    return gives_float32(torch.mm, device, added=False), gives_float32(torch.addmm, device, added=True)


def multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Write the product a b of float16 factors to the float32 ``out``; where torch cannot, of float32 copies."""
    if _mixed_products(a.device)[0]:
        torch.mm(a, b, out_dtype=torch.float32, out=out)
    else:
        torch.mm(a.float(), b.float(), out=out)


def multiply_add(a: Tensor, b: Tensor, out: Tensor, scale: float = 1.0) -> None:
    """Add ``scale`` a b to ``out``; types as in :func:`multiply`."""
    mixed, added = _mixed_products(a.device)
    if added:
        torch.addmm(out, a, b, out_dtype=torch.float32, alpha=scale, out=out)
    elif mixed:
        out.add_(torch.mm(a, b, out_dtype=torch.float32), alpha=scale)
    else:
        torch.addmm(out, a.float(), b.float(), alpha=scale, out=out)


# ---- tiles -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """Rows [row, row + n_rows) against columns [column, column + n_columns)."""

    row: int
    n_rows: int
    column: int
    n_columns: int


def tile_edge(n_samples: int) -> int:
    """Edge of the tiles, a multiple of 8: as few tiles as TILE_EDGE allows, of about equal size."""
    n_tiles = max(1, math.ceil(n_samples / TILE_EDGE))
    return 8 * math.ceil(n_samples / n_tiles / 8)


def tiles(n_samples: int, begin: int, end: int, edge: int) -> list[Tile]:
    """Tiles of rows [begin, end) against all columns, those on the diagonal first, whose columns are their rows."""
    rows = [(start, min(edge, end - start)) for start in range(begin, end, edge)]
    first = [Tile(row, n, row, n) for row, n in rows]
    rest = []
    for row, n in rows:
        for low, high in ((0, row), (row + n, n_samples)):
            rest += [Tile(row, n, column, min(edge, high - column)) for column in range(low, high, edge)]
    return first + rest


class _Problems:
    """Goes through the problems: the operands of the current one, and a tile of their product."""

    def __init__(
        self,
        launcher: Launcher,
        x: Tensor,
        log_temperature: Tensor,
        mask: Tensor | None,
        mode: str,
        directions: str,
        precision: str,
        begin: int,
        end: int,
    ) -> None:
        x = x if x.stride(2) == 1 else x.contiguous()
        M, N, D = x.shape
        self.launcher, self.mode, self.n_samples, self.begin, self.end = launcher, mode, N, begin, end
        self.n_modalities = M
        self.split = precision == "highest"
        self.width = 8 * math.ceil(D / 8)  # whole 16 bytes of float16, for aligned access
        self.edge = tile_edge(N)
        depth = self.width * (3 if self.split else 1)
        self.a = x.new_empty((N, depth), dtype=torch.float16)
        self.b = torch.empty_like(self.a)
        self.own = x.new_empty(N, dtype=torch.float64)
        self.valid = x.new_empty(N, dtype=torch.uint8)
        self.tile = x.new_empty((self.edge, self.edge), dtype=torch.float32)
        self.shift = x.new_empty(N, dtype=torch.float32) if self.split else None
        self.fields: Fields = {
            "x": x,
            "dtype": DTYPE_CODES[x.dtype],
            "n_modalities": M,
            "n_samples": N,
            "n_dim": D,
            "stride_modality": x.stride(0),
            "stride_sample": x.stride(1),
            "log_temperature": log_temperature,
            "mask": 0 if mask is None else mask,
            "mask_stride_modality": 0 if mask is None else mask.stride(0),
            "mask_stride_sample": 0 if mask is None else mask.stride(1),
            "pairwise": int(mode == "pairwise"),
            "both_directions": int(directions == "both"),
            "begin": begin,
            "end": end,
            "split": int(self.split),
            "width": self.width,
            "a": self.a,
            "b": self.b,
            "own": self.own,
            "valid": self.valid,
            "tile": self.tile,
            "stride": self.edge,
        }

    def bind(self, **fields: Tensor | int) -> None:
        """Set all other members; launches only change some."""
        self.fields.update(fields)  # keeps the tensors alive as long as the launches
        self.bound = self.launcher.bind(self.fields)

    def launch(self, step: str, **changed: Tensor | int) -> None:
        self.bound(step, changed)

    def each(self) -> Iterator[int]:
        """Yield each problem's number, when its operands have been made."""
        mode: Mode = "pairwise" if self.mode == "pairwise" else "leave_one_out"
        for p, (i, j) in enumerate(problems(self.n_modalities, mode)):
            self.launch("operands", problem=p, i=i, j=i if j is None else j)
            if self.shift is not None:
                self.centre(self.shift)
            yield p

    def centre(self, shift: Tensor) -> None:
        """Subtract the mean from b's rows, and write what each row of a then lacks in its similarities to ``shift``.

        See :class:`Centred` for the reason: similarities would come out short, while the own cosines, which the loss
        compares with them, come from float32 rows and do not.
        """
        w = self.width
        centred = self.centred(of_b=True)
        assert centred.low is not None
        assert centred.mean is not None
        self.b[:, :w] = centred.high
        self.b[:, w : 2 * w] = centred.low
        self.b[:, 2 * w :] = centred.high
        self.mean_of_b = centred.mean
        high, low = self.parts(of_b=False)
        assert low is not None
        torch.mv(high.float().add_(low), centred.mean, out=shift)

    def sides(self) -> list[bool]:
        """For each sweep, whether b (True) or a (False) gives the tiles' rows; for all samples one sweep does both."""
        return [False] if (self.begin, self.end) == (0, self.n_samples) else [False, True]

    def products(self, swapped: bool) -> Iterator[dict[str, Any]]:
        """Multiply one tile after the other, and yield the members that say where it lies."""
        rows, columns = (self.b, self.a) if swapped else (self.a, self.b)
        for t in tiles(self.n_samples, self.begin, self.end, self.edge):
            out = self.tile[: t.n_rows, : t.n_columns]
            multiply(rows[t.row : t.row + t.n_rows], columns[t.column : t.column + t.n_columns].T, out)
            shift = 0 if self.shift is None else self.shift
            shifts = {"row_shift": 0 if swapped else shift, "column_shift": shift if swapped else 0}
            yield {"row": t.row, "n_rows": t.n_rows, "column": t.column, "n_columns": t.n_columns, **shifts}

    def parts(self, of_b: bool) -> tuple[Tensor, Tensor | None]:
        """High and, if operands are split, low part of an operand, [N, width] each."""
        operand, w = (self.b if of_b else self.a), self.width
        if not self.split:
            return operand, None
        return operand[:, 2 * w :], operand[:, w : 2 * w] if of_b else operand[:, :w]

    def centred(self, of_b: bool) -> Centred:
        """Operand whose rows a tile's gradient is multiplied with; if operands are split, its rows less their mean."""
        high, low = self.parts(of_b)
        if low is None:
            return Centred(high, None, None)
        whole = high.float().add_(low)
        mean = whole.mean(0)
        high = whole.sub_(mean).half()
        return Centred(high, whole.sub_(high).half(), mean)


@dataclass(frozen=True)
class Centred:
    """An operand as ``high + low + mean``: [N, width] twice, and [width].

    Tensor cores truncate where they add, so that a long sum of rows that have much in common, as the embeddings of an
    untrained encoder have, comes out too small. What the rows have in common, their mean, is therefore kept out of the
    tensor cores, and multiplied with the sums of the gradient's rows in float32.
    """

    high: Tensor
    low: Tensor | None
    mean: Tensor | None


# ---- the op ----------------------------------------------------------------------------------------------------------


def forward(
    x: Tensor,
    log_temperature: Tensor,
    mask: Tensor | None,
    mode: str,
    directions: str,
    precision: str,
    begin: int,
    end: int,
    *,
    launcher: Launcher | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Forward of the op on a CUDA device: loss, losses, correct, ranks, n_valid, state.

    ``launcher`` runs the kernels; by default they run on x's device, in its current stream. x has at least one sample.
    """
    launcher = _Device(x.device) if launcher is None else launcher
    with torch.autocast(x.device.type, enabled=False), float32_sums():
        call = _Problems(launcher, x, log_temperature, mask, mode, directions, precision, begin, end)
        N, edge = call.n_samples, call.edge
        results = loss, losses, correct, ranks, n_valid, state = allocate_forward(x, mode)
        P, blocks = len(n_valid), math.ceil(N / FINISH_THREADS)
        rows, columns = x.new_empty((2, 3, N), dtype=torch.float32)
        own_product = x.new_empty(N, dtype=torch.float32)
        call.bind(
            rows=rows,
            columns=columns,
            own_product=own_product,
            row_partials=x.new_empty(3 * math.ceil(edge / STRIP) * edge, dtype=torch.float32),
            column_partials=x.new_empty(3 * math.ceil(edge / SEGMENT) * edge, dtype=torch.float32),
            partial_losses=x.new_empty((P, 2, blocks), dtype=torch.float64),
            partial_correct=x.new_empty((P, 2, blocks), dtype=torch.int64),
            partial_valid=x.new_empty((P, blocks), dtype=torch.int64),
            loss=loss,
            losses=losses,
            correct=correct,
            ranks=ranks,
            n_valid=n_valid,
            state=state,
        )
        whole = len(call.sides()) == 1
        for _ in call.each():
            for swapped in call.sides():
                for place in call.products(swapped):
                    if place["row"] == place["column"]:
                        n = place["n_rows"]
                        at = slice(place["row"], place["row"] + n)
                        own_product[at].copy_(call.tile[:n, :n].diagonal())
                        if call.shift is not None:
                            own_product[at].add_(call.shift[at])
                    call.launch("statistics", **place)
                    call.launch("merge", rows=columns if swapped else rows, columns=columns if whole else 0)
            call.launch("finish", rows=rows, columns=columns)
        call.launch("total")
    return results


def backward(
    gradient_loss: Tensor,
    x: Tensor,
    log_temperature: Tensor,
    mask: Tensor | None,
    n_valid: Tensor,
    state: Tensor,
    mode: str,
    directions: str,
    precision: str,
    begin: int,
    end: int,
    *,
    launcher: Launcher | None = None,
) -> tuple[Tensor, Tensor]:
    """Backward of the op on a CUDA device: gradients of x and of log_temperature; ``launcher`` as in forward."""
    launcher = _Device(x.device) if launcher is None else launcher
    with torch.autocast(x.device.type, enabled=False), float32_sums():
        call = _Problems(launcher, x, log_temperature, mask, mode, directions, precision, begin, end)
        N, edge, width = call.n_samples, call.edge, call.width
        P = state.shape[0]
        gradient_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        slope = torch.empty_like(log_temperature)
        unit = gradient_x if x.dtype == torch.float32 else torch.empty_like(gradient_x, dtype=torch.float32)
        unit.zero_()
        names = ("row_largest", "row_weight", "column_largest", "column_weight")
        weights = dict(zip(names, x.new_empty((len(names), N), dtype=torch.float32), strict=True))
        other = dict(zip(names, [*list(weights.values())[2:], *list(weights.values())[:2]], strict=True))
        n_slopes = math.ceil(edge / STRIP) * math.ceil(edge / SEGMENT)
        high = x.new_empty((edge, edge), dtype=torch.float16)
        low = torch.empty_like(high) if call.split else None
        sum_a, sum_b = (x.new_empty((N, width), dtype=torch.float32) for _ in range(2))
        whole = len(call.sides()) == 1
        call.bind(
            state=state.contiguous(),
            n_valid=n_valid.contiguous(),
            own_scaled=x.new_empty(N, dtype=torch.float32),
            unscale=x.new_empty(P, dtype=torch.float64),
            slopes=x.new_empty((P, n_slopes), dtype=torch.float64),
            n_slopes=n_slopes,
            slope_of_columns=int(whole),
            gradient_high=high,
            gradient_low=0 if low is None else low,
            gradient_a=sum_a,
            gradient_b=sum_b,
            gradient_unit=unit,
            gradient_loss=gradient_loss,
            gradient_x=gradient_x,
            gradient_log_temperature=slope,
        )
        for _ in call.each():
            call.launch("weights", **weights)
            a = call.centred(of_b=False)
            b = Centred(*call.parts(of_b=True), call.mean_of_b) if call.split else call.centred(of_b=True)
            for swapped in call.sides():
                row_sum = sum_b if swapped else sum_a
                for place in call.products(swapped):
                    call.launch("gradient", **place, **(other if swapped else weights))
                    at_rows = slice(place["row"], place["row"] + place["n_rows"])
                    at_columns = slice(place["column"], place["column"] + place["n_columns"])
                    gradient = high[: place["n_rows"], : place["n_columns"]]
                    rest = None if low is None else low[: place["n_rows"], : place["n_columns"]]
                    first = place["row"] == place["column"]  # the first tile of these rows, and of these columns
                    _add_product(gradient, rest, a if swapped else b, at_columns, row_sum[at_rows], first)
                    if whole:
                        rest = None if rest is None else rest.T
                        _add_product(gradient.T, rest, a, at_rows, sum_b[at_columns], first)
            if begin < end:
                call.launch("accumulate")
        call.launch("finish_gradient")
    return gradient_x, slope


def _add_product(gradient: Tensor, rest: Tensor | None, operand: Centred, at: slice, out: Tensor, first: bool) -> None:
    """Write (``first``) or add to ``out`` the product of a tile's gradient with rows ``at`` of an operand."""
    if first:
        multiply(gradient, operand.high[at], out)
    else:
        multiply_add(gradient, operand.high[at], out)
    if rest is None or operand.low is None or operand.mean is None:
        return
    multiply_add(gradient, operand.low[at], out)
    multiply_add(rest, operand.high[at], out, REST_SCALE)
    sums = gradient.sum(1, dtype=torch.float32).add_(rest.sum(1, dtype=torch.float32), alpha=REST_SCALE)
    out.addr_(sums, operand.mean)
