from typing import Any

def build_info() -> dict[str, Any]: ...

# ---- filter_resample -------------------------------------------------------------------------------------------------
def filter_resample(
    raw: int,
    n_raw: int,
    raw_bytes: int,
    table: int,
    calibration: int,
    n_clips: int,
    n_channels: int,
    filters: int,
    n_filters: int,
    taps: int,
    n_taps: int,
    out: int,
    out_dtype: int,
    n_out: int,
    normalise: int,
    n_threads: int,
    device: int,
    stream: int,
) -> None: ...
def filter_resample_launch(
    n_clips: int, n_channels: int, n_out: int, statistics: bool, shared_limit_bytes: int
) -> dict[str, int]: ...

# ---- contrastive_loss ------------------------------------------------------------------------------------------------
# Addresses are Tensor.data_ptr(), 0 for none; argument by argument the structs of csrc/params.h.
def contrastive_forward(
    x: int,
    dtype: int,
    shape: tuple[int, int, int],
    x_strides: tuple[int, int],
    log_temperature: int,
    mask: int,
    mask_strides: tuple[int, int],
    pairwise: bool,
    both_directions: bool,
    n_threads: int,
    workspace: int,
    loss: int,
    losses: int,
    correct: int,
    ranks: int,
    n_valid: int,
    state: int,
    range_: tuple[int, int],
    kept: int,
    /,
) -> None: ...
def contrastive_backward(
    x: int,
    dtype: int,
    shape: tuple[int, int, int],
    x_strides: tuple[int, int],
    log_temperature: int,
    mask: int,
    mask_strides: tuple[int, int],
    pairwise: bool,
    both_directions: bool,
    n_threads: int,
    workspace: int,
    gradient_loss: int,
    n_valid: int,
    state: int,
    gradient_x: int,
    gradient_log_temperature: int,
    range_: tuple[int, int],
    kept: int,
    /,
) -> None: ...
def contrastive_joint(
    x: int,
    dtype: int,
    shape: tuple[int, ...],
    x_strides: tuple[int, ...],
    log_temperature: int,
    mask: int,
    mask_strides: tuple[int, ...],
    pairwise: bool,
    both_directions: bool,
    n_threads: int,
    results: tuple[int, int, int, int, int, int],
    upstream: float,
    gradient_x: int,
    gradient_log_temperature: int,
    /,
) -> None: ...
def contrastive_bytes(
    n_modalities: int,
    n_samples: int,
    n_dim: int,
    pairwise: bool,
    is_double: bool,
    backward: bool,
    kept: bool,
    n_threads: int,
    /,
) -> tuple[int, int]: ...
def contrastive_cuda_workspace_bytes(
    shape: tuple[int, int, int], pairwise: bool, backward: bool, where: tuple[bool, int, int, int, int], /
) -> int: ...
def contrastive_cuda_forward(
    x: int,
    dtype: int,
    shape: tuple[int, int, int],
    x_strides: tuple[int, int],
    log_temperature: int,
    mask: int,
    mask_strides: tuple[int, int],
    pairwise: bool,
    both_directions: bool,
    where: tuple[bool, int, int, int, int],
    workspace: int,
    loss: int,
    losses: int,
    correct: int,
    ranks: int,
    n_valid: int,
    state: int,
    /,
) -> None: ...
def contrastive_cuda_backward(
    x: int,
    dtype: int,
    shape: tuple[int, int, int],
    x_strides: tuple[int, int],
    log_temperature: int,
    mask: int,
    mask_strides: tuple[int, int],
    pairwise: bool,
    both_directions: bool,
    where: tuple[bool, int, int, int, int],
    workspace: int,
    gradient_loss: int,
    n_valid: int,
    state: int,
    gradient_x: int,
    gradient_log_temperature: int,
    /,
) -> None: ...
def contrastive_exponential(x: int, y: int, n: int, is_double: bool, /) -> None: ...
def contrastive_small_workspace_bytes(
    n_modalities: int, n_samples: int, n_dim: int, pairwise: bool, gradient: bool, /
) -> int: ...
def contrastive_small(
    x: int,
    dtype: int,
    shape: tuple[int, int, int],
    x_strides: tuple[int, int],
    log_temperature: int,
    mask: int,
    mask_strides: tuple[int, int],
    pairwise: bool,
    both_directions: bool,
    workspace: int,
    begin_and_end: tuple[int, int],
    given_state: bool,
    results: tuple[int, ...],
    gradient_loss: int,
    gradient_x: int,
    gradient_dtype: int,
    gradient_log_temperature: int,
    barrier: int,
    device: int,
    stream: int,
    /,
) -> None: ...
def contrastive_gemm(step: int, members: list[int], device: int, stream: int, /) -> None: ...

# ---- retrieval ranks -------------------------------------------------------------------------------------------------
# Addresses as in the structs PairRanks and RankRows of csrc/params.h; rows and columns: x, mean, factor, step, length,
# loss, shift, low, high, own, ahead. out: factor, step, length, residue, inner.
def pair_ranks(
    rows: tuple[int, ...],
    columns: tuple[int, ...],
    shape: tuple[int, int, int],
    first: tuple[int, int],
    new_rows: bool,
    n_threads: int,
    workspace: int,
    /,
) -> None: ...
def measure_rank_rows(
    x: int, means: tuple[int, int], shape: tuple[int, int], out: tuple[int, ...], n_threads: int, /
) -> None: ...
def pair_ranks_bytes(n_rows: int, n_columns: int, n_dim: int, n_threads: int, /) -> int: ...
def own_inner_products(a: int, b: int, own: int, n_rows: int, n_dim: int, /) -> None: ...

# ---- mbconv ----------------------------------------------------------------------------------------------------------
# dims: clips, channels in, width, channels out, samples, stride. weights: the ten of MBConvWeights in csrc/params.h.
# bf16: what products multiply.
def mbconv_workspace_bytes(
    dims: tuple[int, int, int, int, int, int], bf16: bool, n_threads: int, backward: bool, /
) -> int: ...
def mbconv_forward(
    dims: tuple[int, int, int, int, int, int],
    bf16: bool,
    n_threads: int,
    workspace: int,
    weights: tuple[int, ...],
    residual: tuple[bool, float, int],
    eps: float,
    x: int,
    c1: int,
    c2: int,
    statistics: int,
    moments: int,
    y: int,
    /,
) -> None: ...
def mbconv_evaluate(
    dims: tuple[int, int, int, int, int, int],
    bf16: bool,
    n_threads: int,
    workspace: int,
    weights: tuple[int, ...],
    residual: tuple[bool, float, int],
    eps: float,
    mean0: int,
    variance0: int,
    mean1: int,
    variance1: int,
    x: int,
    y: int,
    /,
) -> None: ...
def mbconv_backward(
    dims: tuple[int, int, int, int, int, int],
    bf16: bool,
    n_threads: int,
    workspace: int,
    weights: tuple[int, ...],
    residual: tuple[bool, float, int],
    eps: float,
    x: int,
    c1: int,
    c2: int,
    statistics: int,
    moments: int,
    dy: int,
    g1: int,
    dx: int,
    gradients: tuple[int, ...],
    /,
) -> None: ...
def mbconv_evaluate_workspace_bytes(
    dims: tuple[int, int, int, int, int, int], bf16: bool, n_threads: int, /
) -> int: ...

# dims: clips, channels in, channels of the stem, samples. layout, a block: width, channels out, stride, residual,
# maximum, eps inside, eps after. addresses: x, y, six of the stem, eighteen of every block.
def encoder_workspace_bytes(
    dims: tuple[int, int, int, int],
    bf16: bool,
    n_threads: int,
    layout: list[tuple[int, int, int, bool, bool, float, float]],
    /,
) -> int: ...
def encoder_evaluate(
    dims: tuple[int, int, int, int],
    bf16: bool,
    n_threads: int,
    workspace: int,
    stem_eps: float,
    layout: list[tuple[int, int, int, bool, bool, float, float]],
    addresses: list[int],
    /,
) -> None: ...
def mbconv_evaluate_covers(n_in: int, width: int, n_out: int, stride: int, /) -> bool: ...
def mbconv_evaluate_cuda(
    dims: tuple[int, int, int, int, int, int],
    dtype: int,
    residual: bool,
    x: int,
    packed: int,
    bias: int,
    y: int,
    device: int,
    stream: int,
    /,
) -> None: ...

# What stands between a block's products in training. wide: clips, samples in, channels inside, stride, rows of partial
# sums; addresses: csrc/bindings/mbconv_train.cpp.
def mbconv_train_expansion_sums(
    n_rows: int, width: int, n_partials: int, eps: float, addresses: tuple[int, ...], device: int, stream: int, /
) -> None: ...
def mbconv_train_depthwise(
    wide: tuple[int, int, int, int, int], eps: float, addresses: tuple[int, ...], device: int, stream: int, /
) -> None: ...
def mbconv_train_activate(
    n_rows: int, width: int, n_blocks: int, addresses: tuple[int, ...], device: int, stream: int, /
) -> None: ...
def mbconv_train_gradient_sums(
    n_rows: int, width: int, n_partials: int, eps: float, addresses: tuple[int, ...], device: int, stream: int, /
) -> None: ...
def mbconv_train_depthwise_backward(
    wide: tuple[int, int, int, int, int], eps: float, addresses: tuple[int, ...], device: int, stream: int, /
) -> None: ...

# ---- narrow layers ---------------------------------------------------------------------------------------------------

def stem_workspace_bytes(dims: tuple[int, int, int, int], n_threads: int, /) -> int: ...
def stem_forward(
    dims: tuple[int, int, int, int],
    n_threads: int,
    workspace: int,
    eps: float,
    x: int,
    w: int,
    bias: int,
    gamma: int,
    beta: int,
    c: int,
    statistics: int,
    y: int,
    /,
) -> None: ...
def stem_backward(
    dims: tuple[int, int, int, int],
    n_threads: int,
    workspace: int,
    eps: float,
    x: int,
    c: int,
    gamma: int,
    dy: int,
    statistics: int,
    dw: int,
    dgamma: int,
    dbeta: int,
    /,
) -> None: ...
def batch_norm_workspace_bytes(dims: tuple[int, int, int], n_threads: int, /) -> int: ...
def batch_norm_forward(
    dims: tuple[int, int, int],
    n_threads: int,
    workspace: int,
    eps: float,
    x: int,
    gamma: int,
    beta: int,
    statistics: int,
    y: int,
    /,
) -> None: ...
def batch_norm_backward(
    dims: tuple[int, int, int],
    n_threads: int,
    workspace: int,
    eps: float,
    x: int,
    gamma: int,
    dy: int,
    statistics: int,
    dx: int,
    dgamma: int,
    dbeta: int,
    /,
) -> None: ...
def max_pool_forward(n_rows: int, n_samples: int, n_threads: int, x: int, y: int, /) -> None: ...
def max_pool_backward(n_rows: int, n_samples: int, n_threads: int, x: int, dy: int, dx: int, /) -> None: ...

# ---- pages -----------------------------------------------------------------------------------------------------------
class Pages:
    def __init__(self, n_bytes: int) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

def release_pages() -> int: ...
