// Retrieval ranks.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <tuple>

#include "addresses.h"
#include "bindings.h"
#include "cpu/contrastive.h"
#include "params.h"

namespace py = pybind11;

namespace sleepfm::bindings {

namespace {

// The pointers of RankOperand: x, mean, factor, step, length, loss, shift, low, high, own, ahead.
using RankAddresses = std::array<Address, 11>;

sleepfm::RankOperand rank_operand(RankAddresses const& at, std::int64_t n, std::int64_t first) {
    sleepfm::RankOperand operand{};
    operand.n = n;
    operand.first = first;
    operand.x = pointer<float const>(at[0]);
    operand.mean = pointer<float const>(at[1]);
    operand.factor = pointer<float const>(at[2]);
    operand.step = pointer<float const>(at[3]);
    operand.length = pointer<float const>(at[4]);
    operand.loss = pointer<float const>(at[5]);
    operand.shift = pointer<float const>(at[6]);
    operand.low = pointer<float const>(at[7]);
    operand.high = pointer<float const>(at[8]);
    operand.own = pointer<double const>(at[9]);
    operand.ahead = pointer<std::int64_t>(at[10]);
    return operand;
}

void pair_ranks(RankAddresses const& rows, RankAddresses const& columns, MatrixShape shape, SampleRange first,
                bool new_rows, int n_threads, Address workspace) {
    auto const& [n_rows, n_columns, n_dim] = shape;
    sleepfm::pair_ranks({rank_operand(rows, n_rows, std::get<0>(first)),
                         rank_operand(columns, n_columns, std::get<1>(first)), n_dim, new_rows, n_threads,
                         pointer<void>(workspace)});
}

// means: of the modality and of the other one. shape: rows, dimensions. out: factor, step, length, residue, inner.
void measure_rank_rows(Address x, std::tuple<Address, Address> means, std::tuple<std::int64_t, std::int64_t> shape,
                       std::array<Address, 5> const& out, int n_threads) {
    sleepfm::RankRows call{};
    call.x = pointer<float const>(x);
    call.mean = pointer<float const>(std::get<0>(means));
    call.other_mean = pointer<float const>(std::get<1>(means));
    std::tie(call.n_rows, call.n_dim) = shape;
    call.factor = pointer<float>(out[0]);
    call.step = pointer<double>(out[1]);
    call.length = pointer<double>(out[2]);
    call.residue = pointer<double>(out[3]);
    call.inner = pointer<double>(out[4]);
    call.n_threads = n_threads;
    sleepfm::measure_rank_rows(call);
}

void own_inner_products(Address a, Address b, Address own, std::int64_t n_rows, std::int64_t n_dim) {
    sleepfm::own_inner_products(pointer<float const>(a), pointer<float const>(b), pointer<double>(own), n_rows, n_dim);
}

}  // namespace

void bind_ranks(py::module_& module) {
    using NoGil = py::call_guard<py::gil_scoped_release>;
    module.def("pair_ranks", &pair_ranks, NoGil());
    module.def("pair_ranks_bytes", &sleepfm::pair_ranks_bytes);
    module.def("measure_rank_rows", &measure_rank_rows, NoGil());
    module.def("own_inner_products", &own_inner_products, NoGil());
}

}  // namespace sleepfm::bindings
