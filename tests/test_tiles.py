"""The instructions of csrc/cpu/tiles.h, Intel's AMX, and the C++ that stands for them where a processor lacks them."""

from __future__ import annotations

import hashlib
import os
import platform
import re
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
RESULTS_OF_A_PROCESSOR = "747eab734a7efe507fef8d1459af8a01e0038b3895b54e9cf98615354c2a21cb"

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
# Faults in csrc/cpu/mbconv_tiles.h: what stands there, what is put in its place, and what is then said.
PLANTED = {
    "stride of weights": ("load_tile<6>(w + k, n_words *", "load_tile<6>(w + k, (n_words + 1) *", "buffer-overflow"),
    "rows of weights": ("height = n_rows > ROWS ? TALL : ROWS", "height = TALL", "buffer-overflow"),
    "stride of a panel": ("load_tile<7>(b, stride)", "load_tile<7>(b, stride + 64)", "buffer-overflow|product of"),
    "words of a factor": ("shapes.set(7, n_words, 64)", "shapes.set(7, 16, 64)", "buffer-overflow"),
    "rows of sums": (
        "shapes.set(tile, height, 64)",
        "shapes.set(tile, ROWS, 64)",
        "a product of 16 rows in its 8",
    ),
    "samples": ("t < width; t += 2 * in_tile", "t <= width; t += 2 * in_tile", "buffer-overflow|accumulation of"),
    "sums of before": ("    clear_sums<FIRST, C>();\n", "", "product of"),
    "stride of sums": (
        "store_sums<0, C>(to, stride)",
        "store_sums<0, C>(to, stride / 2)",
        "tile 0 is stored in",
    ),
    "tiles kept": ("            release_tiles();\n", "", "a thread ends with tiles in use"),
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


def products(program: Path, seed: int, kind: str = "products") -> np.ndarray:
    done = subprocess.run([program, kind, str(seed)], check=True, stdout=subprocess.PIPE)
    found = np.frombuffer(done.stdout, PRODUCT)
    assert len(found) == {"products": 3, "digits": 1}[kind] * 4096
    return found


def written(found: np.ndarray) -> np.ndarray:
    n_rows, _, n_columns = found["shape"].T[..., None, None]
    return (np.arange(16)[:, None] < n_rows) & (np.arange(16) < n_columns)


def results(found: np.ndarray) -> np.ndarray:
    """Bits of what was written, those of every NaN the same: the payload is the C++ compiler's choice."""
    bits = found["result"][written(found)]
    return np.where(np.isnan(bits.view(np.float32)), np.uint32(0x7FC00000), bits)


def test_software_computes_the_bits_of_a_processor(software):
    bits = results(products(software, 1))
    values = bits.view(np.float32)
    least = np.float32(2.0**-126)
    for seen in (np.isnan(values), np.isinf(values), abs(values) == least, (values == 0) & np.signbit(values)):
        assert 100 < seen.sum() < values.size / 2
    assert not ((abs(values) < least) & (values != 0)).any()
    assert hashlib.sha256(bits.tobytes()).hexdigest() == RESULTS_OF_A_PROCESSOR


@pytest.mark.parametrize("kind", ["products", "digits"])
@pytest.mark.parametrize("seed", range(1, 3))
def test_the_processor_computes_the_bits_of_software(processor, software, seed, kind):
    ours, theirs = products(software, seed, kind), products(processor, seed, kind)
    for name in ("shape", "c", "a", "b"):
        assert np.array_equal(ours[name], theirs[name])
    if kind == "products":
        assert np.array_equal(results(ours), results(theirs))
    else:
        assert np.array_equal(ours["result"], theirs["result"])


def factors_of(product: np.ndarray, dtype: type, in_word: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a [rows, summed index] and b [summed index, columns] of a product."""
    n_rows, n_words, n_columns = product["shape"]
    a, b = (product[name].view(dtype) for name in ("a", "b"))
    b = b.reshape(16, 16, in_word)[:n_words, :n_columns].transpose(0, 2, 1).reshape(in_word * n_words, n_columns)
    return a[:n_rows, : in_word * n_words], b


@pytest.mark.parametrize("kind", ["products", "digits"])
def test_products_are_those_of_the_definition(software, kind):
    found = products(software, 1, kind)
    assert np.array_equal(found["result"][~written(found)], found["c"][~written(found)])
    for product in found[:: 3 if kind == "products" else 1]:
        n_rows, _, n_columns = product["shape"]
        c, result = product["c"][:n_rows, :n_columns], product["result"][:n_rows, :n_columns]
        if kind == "products":
            a, b = ((x.astype(np.uint32) << 16).view(np.float32) for x in factors_of(product, np.uint16, 2))
            a, b, c = (x.astype(np.float64) for x in (a, b, c.view(np.float32)))
            size = abs(c) + 2 * abs(a) @ abs(b)
            assert (abs(result.view(np.float32) - (c + 2 * a @ b)) <= size * 2.0**-21).all()
        else:
            a, b = (x.astype(np.int64) for x in factors_of(product, np.int8, 4))
            assert np.array_equal(result, (c + 2 * a @ b).astype(np.uint32))  # overflow goes on at the other end


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


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the kernels on tiles are written for x86-64")
@pytest.mark.parametrize("fault", [None, *PLANTED])
def test_a_fault_in_the_products_of_tiles_is_seen(tmp_path, sanitized, fault):
    assert sanitized.exists()  # the compiler has the sanitizer
    kernels = (ROOT / "csrc" / "cpu" / "mbconv_tiles.h").read_text()
    there, instead, said = PLANTED[fault] if fault else ("", "", "")
    assert fault is None or kernels.count(there) == 1, f"mbconv_tiles.h has no longer what this fault replaces: {there}"
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "mbconv_tiles.h").write_text(kernels.replace(there, instead) if fault else kernels)
    options = ["-std=c++17", "-O0", "-w", "-march=x86-64-v3", f"-I{tmp_path}", f"-I{ROOT / 'csrc'}"]
    sources = [ROOT / "tests" / "tile_products.cpp", "-o", tmp_path / "products"]
    subprocess.run([*COMPILER, *options, *IN_SOFTWARE, *SANITIZER, *sources], check=True)
    done = subprocess.run([tmp_path / "products"], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (fault is None), done.stderr
    assert re.search(said, done.stderr), done.stderr
