"""The instructions of csrc/cpu/tiles.h, Intel's AMX, and the C++ that stands for them where a processor lacks them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
COMPILER = os.environ.get("CXX", "c++").split()
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wno-sign-conversion", "-Werror"]
IN_SOFTWARE = ["-DSLEEPFM_TILES_IN_SOFTWARE"]
SANITIZER = ["-fsanitize=address", "-fno-omit-frame-pointer", "-no-pie"]  # a PIE may lie where its heap begins
PRODUCT = np.dtype([("shape", "<i4", 3), *((name, "<u4", (16, 16)) for name in ("c", "a", "b", "result"))])
# Of the results of an Intel Xeon (Sapphire Rapids, model 167), seed 1.
RESULTS_OF_A_PROCESSOR = "be0090d18efb7b8ee9fbc01ed122e642f99f77ee6173b7b9d0894d6a70c25e13"

# Mistakes that a processor refuses too, with an illegal instruction or a protection fault.
REFUSED = {
    "rows_of_shapes": "tile 4 with 17 rows of 64 bytes",
    "bytes_of_shapes": "tile 4 with 16 rows of 68 bytes",
    "half_a_shape": "tile 4 with 0 rows of 64 bytes",
    "ninth_tile": "shapes with other than eight tiles of palette 1, from row 0",
    "no_shapes": "tile 0 has no shape",
    "released": "tile 0 has no shape",
    "tile_without_shape": "tile 3 has no shape",
    "summed_index": "tile 1 has 12 words in a row, and its product's other factor 16 rows",
    "rows_of_sums": "tile 0 gets a product of 16 rows in its 8",
    "columns_of_sums": "tile 0 gets a product with rows of 64 bytes in its 32",
    "half_a_word": "tile 1 of a product has rows of 62 bytes, no whole number of words",
}
REFUSED_IN_SOFTWARE = {
    "overlapping_rows": "tile 0 is stored in rows of 64 bytes, 60 bytes apart",
    "kept_tiles": "a thread ends with tiles in use",
}
SEEN_BY_THE_SANITIZER = {"read_beyond_rows": "READ", "stride_of_load": "READ", "write_beyond_rows": "WRITE"}

pytestmark = pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason="needs a C++ compiler")


def compiled(program: Path, *options: str) -> Path:
    sources = [ROOT / "tests" / "tiles.cpp", ROOT / "csrc" / "cpu" / "cpu_features.cpp"]
    command = [*COMPILER, "-std=c++17", "-O2", f"-I{ROOT / 'csrc'}", *WARNINGS, *options, *sources, "-o", program]
    subprocess.run(command, check=True)
    return program


@pytest.fixture(scope="module")
def software(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("software") / "tiles", *IN_SOFTWARE)


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    options = ["-DSLEEPFM_WITH_AVX512_BF16", "-DSLEEPFM_WITH_AMX"]
    try:
        program = compiled(tmp_path_factory.mktemp("processor") / "tiles", *options)
    except subprocess.CalledProcessError:
        pytest.skip("the compiler or this processor knows no tiles")
    if subprocess.run([program, "none"], check=False).returncode == 2:
        pytest.skip("this processor or system has no tiles")
    return program


def products(program: Path, seed: int) -> np.ndarray:
    found = np.frombuffer(subprocess.run([program, "products", str(seed)], check=True, stdout=-1).stdout, PRODUCT)
    assert len(found) == 12288
    return found


def results(found: np.ndarray) -> np.ndarray:
    """Bits of what was written, those of every NaN the same: the payload is the C++ compiler's choice."""
    n_rows, _, n_columns = found["shape"].T[..., None, None]
    bits = found["result"][(np.arange(16)[:, None] < n_rows) & (np.arange(16) < n_columns)]
    return np.where(np.isnan(bits.view(np.float32)), np.uint32(0x7FC00000), bits)


def test_software_computes_the_bits_of_a_processor(software):
    bits = results(products(software, 1))
    values = bits.view(np.float32)
    least = np.float32(2.0**-126)
    for seen in (np.isnan(values), np.isinf(values), abs(values) == least, (values == 0) & np.signbit(values)):
        assert 100 < seen.sum() < values.size / 2
    assert not ((abs(values) < least) & (values != 0)).any()
    assert hashlib.sha256(bits.tobytes()).hexdigest() == RESULTS_OF_A_PROCESSOR


@pytest.mark.parametrize("seed", range(1, 3))
def test_the_processor_computes_the_bits_of_software(processor, software, seed):
    ours, theirs = products(software, seed), products(processor, seed)
    for name in ("shape", "c", "a", "b"):
        assert np.array_equal(ours[name], theirs[name])
    assert np.array_equal(results(ours), results(theirs))


def test_products_are_those_of_the_definition(software):
    found = products(software, 1)
    for product in found[1::3]:
        n_rows, _, n_columns = product["shape"]
        assert np.array_equal(product["result"][n_rows:], product["c"][n_rows:])
        assert np.array_equal(product["result"][:, n_columns:], product["c"][:, n_columns:])
    for product in found[0::3]:
        n_rows, n_words, n_columns = product["shape"]
        a, b = (product[name].view(np.uint16).astype(np.uint32) << 16 for name in ("a", "b"))
        a = a.view(np.float32).astype(np.float64)[:n_rows, : 2 * n_words]
        b = b.view(np.float32).astype(np.float64).reshape(16, 16, 2)[:n_words, :n_columns]
        b = b.transpose(0, 2, 1).reshape(2 * n_words, n_columns)
        c = product["c"].view(np.float32).astype(np.float64)[:n_rows, :n_columns]
        truth, size = c + 2 * a @ b, abs(c) + 2 * abs(a) @ abs(b)
        error = abs(product["result"].view(np.float32)[:n_rows, :n_columns] - truth)
        assert (error <= size * 2.0**-21).all()


@pytest.mark.parametrize("mistake", [*REFUSED, *REFUSED_IN_SOFTWARE])
def test_software_refuses_a_mistake(software, mistake):
    done = subprocess.run([software, mistake], capture_output=True, text=True, check=False)
    assert done.returncode == -6
    assert done.stderr == f"tiles: {({**REFUSED, **REFUSED_IN_SOFTWARE})[mistake]}.\n"


def test_software_refuses_no_more(software):
    subprocess.run([software, "none"], check=True)


@pytest.mark.parametrize("mistake", REFUSED)
def test_the_processor_refuses_a_mistake(processor, mistake):
    assert subprocess.run([processor, mistake], check=False).returncode in (-4, -11)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    program = tmp_path_factory.mktemp("sanitized") / "tiles"
    try:
        return compiled(program, *IN_SOFTWARE, *SANITIZER)
    except subprocess.CalledProcessError:
        pytest.skip("the compiler has no address sanitizer")


@pytest.mark.parametrize("mistake", ["none", *SEEN_BY_THE_SANITIZER])
def test_the_address_sanitizer_sees_what_tiles_read_and_write(sanitized, mistake):
    done = subprocess.run([sanitized, mistake], capture_output=True, text=True, check=False)
    if mistake == "none":
        assert done.returncode == 0, done.stderr
        return
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
    assert f"{SEEN_BY_THE_SANITIZER[mistake]} of size" in done.stderr
