// The products of csrc/cpu/mbconv_tiles.h on memory without a byte to spare, for the address sanitizer and with tiles
// in software (test_tiles.py): packed weights times a panel, and a panel times a transposed one. Ends with a sentence
// where a result is not that of float64.
#define SLEEPFM_ISA amx
#define SLEEPFM_LANES 16
#define SLEEPFM_TILES
#include "cpu/mbconv_pack.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <vector>

namespace {

using sleepfm::BFloat16;
using namespace sleepfm::amx;

std::uint64_t state = 1;

float random_value() {
    state = state * 6364136223846793005U + 1442695040888963407U;
    return static_cast<float>(static_cast<double>(state >> 40) / 8388608.0 - 1.0);
}

double rounded_value(float x) {
    BFloat16 y;
    sleepfm::narrow(x, y);
    return static_cast<double>(sleepfm::widen(y));
}

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};

// NaN in every type, which no result may be made of.
template <typename T>
std::unique_ptr<T[], Free> taken(Index n) {
    auto const n_bytes = static_cast<std::size_t>(n) * sizeof(T);
    void* const memory = std::malloc(n_bytes);
    std::memset(memory, 0xff, n_bytes);
    return std::unique_ptr<T[], Free>(static_cast<T*>(memory));
}

std::vector<float> random_values(Index n) {
    std::vector<float> values(static_cast<std::size_t>(n));
    for (float& value : values) {
        value = random_value();
    }
    return values;
}

float at(std::vector<float> const& values, Index i) {
    return values[static_cast<std::size_t>(i)];
}

void check(char const* what, double got, double expected, Index n_rows, Index n_k, Index n_columns) {
    if (!(std::fabs(got - expected) <= 1e-4)) {
        std::fprintf(stderr, "%s of %d rows, %d summed, %d columns: %g, not %g\n", what, static_cast<int>(n_rows),
                     static_cast<int>(n_k), static_cast<int>(n_columns), got, expected);
        std::exit(1);
    }
}

// Columns of a panel, whole vectors, and a panel of n_k rows with x [n_k][n] in it.
Index places(Index n) {
    return round_up(n, LANES);
}

void product_of(Index n_rows, Index n_k, Index n) {
    Index const n_words = words_of<Pair>(n_k), n_blocks = (n_rows + ROWS - 1) / ROWS;
    auto const w = random_values(n_rows * n_k), x = random_values(n_k * n);
    // Blocks of one or two times ROWS rows: those of a channel block that stands alone are not padded to TALL.
    auto const packed = taken<Pair>((n_rows <= ROWS ? ROWS : round_up(n_rows, TALL)) * n_words);
    for (Index block = 0; block < n_blocks; ++block) {
        pack_block(w.data(), n_rows, n_k, block, packed.get());
    }
    Strips const strips(n);
    auto const panel = taken<Pair>(places(n) * n_words);
    fill_panel(strips, n_k, panel.get(),
               [&](Index k, Index t, Index left) { return load_first(x.data() + k * n + t, left); });
    std::vector<int> seen(static_cast<std::size_t>(n_rows * n));
    product(strips, n_rows, n_k, packed.get(), panel.get(), [&](Index row, Index t, Vector v, Index left) {
        for (Index i = 0; i < least(left, LANES); ++i) {
            double sum = 0;
            for (Index k = 0; k < n_k; ++k) {
                sum += rounded_value(at(w, row * n_k + k)) * rounded_value(at(x, k * n + t + i));
            }
            check("product", static_cast<double>(v[i]), sum, n_rows, n_k, n);
            ++seen[static_cast<std::size_t>(row * n + t + i)];
        }
    });
    for (int const times : seen) {
        check("times that a product was handed over", times, 1, n_rows, n_k, n);
    }
}

// Twice: fresh, then added to.
void accumulation_of(Index n_rows, Index n_k, Index n) {
    Index const ld = odd_vectors(n);
    auto const a = random_values(n_rows * n_k), b = random_values(n * n_k);
    Strips const strips(n_k), columns(n);
    auto const panel = taken<BFloat16>(places(n_k) * n_rows);
    auto const words = taken<Pair>(places(n_k) / 2 * ld);
    auto const out = taken<float>(n_rows * ld);
    for (Index strip = 0; strip < strips.n_strips; ++strip) {
        Index const first = strips.first(strip), width = strips.width(strip);
        for (Index row = 0; row < n_rows; ++row) {
            for (Index t = 0; t < width; ++t) {
                sleepfm::narrow(first + t < n_k ? at(a, row * n_k + first + t) : 0.0F,
                                panel[static_cast<std::size_t>(first * n_rows + row * width + t)]);
            }
        }
    }
    for (Index t = 0; t < places(n_k); ++t) {
        for (Index j = 0; j < ld; ++j) {
            Pair& pair = words[static_cast<std::size_t>(t / 2 * ld + j)];
            sleepfm::narrow(j < n && t < n_k ? at(b, j * n_k + t) : 0.0F, t % 2 == 0 ? pair.first : pair.second);
        }
    }
    for (int times = 1; times <= 2; ++times) {
        accumulate(strips, n_rows, panel.get(), words.get(), n, ld, times == 1, out.get());
        for (Index row = 0; row < n_rows; ++row) {
            for (Index j = 0; j < n; ++j) {
                double sum = 0;
                for (Index t = 0; t < n_k; ++t) {
                    sum += rounded_value(at(a, row * n_k + t)) * rounded_value(at(b, j * n_k + t));
                }
                check("accumulation", static_cast<double>(out[static_cast<std::size_t>(row * ld + j)]), times * sum,
                      n_rows, n_k, n);
            }
        }
    }
}

}  // namespace

int main() {
    Tiles const tiles;
    for (Index const n_rows : {1, 8, 9, 16, 24, 40}) {
        for (Index const n_k : {1, 2, 9, 31, 32, 54, 96, 134}) {
            for (Index const n : {1, 16, 33, 64, 100}) {
                product_of(n_rows, n_k, n);
                if (n_rows % ROWS == 0) {
                    accumulation_of(n_rows, n_k, n);
                }
            }
        }
    }
    return 0;
}
