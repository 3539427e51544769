// Every CPU op on several threads, at sizes around the edges of its blocks, for the thread sanitizer; and the results
// of several threads are the bits of one. CONTRIBUTING.md says how to build and run it. Arguments: threads, repeats.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "cpu/contrastive.h"
#include "cpu/cpu_features.h"
#include "cpu/filter_resample.h"
#include "cpu/mbconv.h"
#include "cpu/narrow.h"
#include "params.h"

namespace {

using sleepfm::DType;
using Index = std::int64_t;
using Floats = std::vector<float>;

// Memory aligned to a cache line, all of it zero.
class Workspace {
  public:
    explicit Workspace(Index n_bytes)
        : memory_(::operator new(static_cast<std::size_t>(n_bytes) + 1, std::align_val_t{64})) {
        std::memset(memory_, 0, static_cast<std::size_t>(n_bytes) + 1);
    }
    ~Workspace() { ::operator delete(memory_, std::align_val_t{64}); }
    Workspace(Workspace const&) = delete;
    Workspace& operator=(Workspace const&) = delete;
    void* data() const { return memory_; }

  private:
    void* memory_;
};

std::uint64_t state = 1;

// Uniform in [-1, 1).
template <typename T = float>
std::vector<T> random_values(Index n, T offset = T{0}) {
    std::vector<T> values(static_cast<std::size_t>(n));
    for (T& value : values) {
        state = state * 6364136223846793005U + 1442695040888963407U;
        value = static_cast<T>(static_cast<double>(state >> 40) / 8388608.0 - 1.0) + offset;
    }
    return values;
}

// What an op wrote, one array after the other.
class Results {
  public:
    template <typename T>
    void add(std::vector<T> const& values) {
        auto const* const bytes = reinterpret_cast<char const*>(values.data());
        bytes_.insert(bytes_.end(), bytes, bytes + values.size() * sizeof(T));
    }
    bool operator==(Results const& other) const { return bytes_ == other.bytes_; }

  private:
    std::vector<char> bytes_;
};

struct Contrastive {
    Index M, N, D;
    bool pairwise, kept, joint;
};

template <typename T>
Results contrastive(Contrastive const& c, int n_threads) {
    auto const x = random_values<T>(c.M * c.N * c.D);
    auto const log_temperature = T{1};
    std::vector<std::uint8_t> mask(static_cast<std::size_t>(c.M * c.N), 1);
    for (std::size_t i = 0; i < mask.size(); i += 7) {
        mask[i] = 0;
    }
    Index const P = c.pairwise ? c.M * (c.M - 1) / 2 : c.M;
    auto const sized = [](Index n) { return static_cast<std::size_t>(n); };
    std::vector<T> loss(1), losses(sized(2 * P)), gradient(x.size()), gradient_of_temperature(1);
    std::vector<Index> correct(sized(2 * P)), n_valid(sized(P));
    std::vector<std::int32_t> ranks(sized(2 * P * c.N));
    std::vector<double> kept_state(sized(P * sleepfm::CONTRASTIVE_STATE_ROWS * c.N));
    bool const is_double = sizeof(T) == 8;
    sleepfm::ContrastiveInput in{};
    in.x = x.data();
    in.dtype = is_double ? DType::f64 : DType::f32;
    in.stride_modality = c.N * c.D;
    in.stride_sample = c.D;
    in.n_modalities = c.M;
    in.n_samples = in.end = c.N;
    in.n_dim = c.D;
    in.log_temperature = &log_temperature;
    in.mask = mask.data();
    in.mask_stride_modality = c.N;
    in.mask_stride_sample = 1;
    in.pairwise = c.pairwise;
    in.both_directions = true;
    in.n_threads = n_threads;
    sleepfm::ContrastiveForward forward{in,           loss.data(),    losses.data(),    correct.data(),
                                        ranks.data(), n_valid.data(), kept_state.data()};
    if (c.joint) {
        sleepfm::contrastive_joint({forward, 1.0, gradient.data(), gradient_of_temperature.data()});
    } else {
        auto const size = [&](bool backward) {
            return sleepfm::contrastive_bytes(c.M, c.N, c.D, c.pairwise, is_double, backward, c.kept, n_threads);
        };
        Workspace const first(size(false).workspace), second(size(true).workspace), kept(size(false).kept);
        forward.input.kept = in.kept = c.kept ? kept.data() : nullptr;
        forward.input.workspace = first.data();
        sleepfm::contrastive_forward(forward);
        in.workspace = second.data();
        T const upstream{1};
        sleepfm::contrastive_backward(
            {in, &upstream, n_valid.data(), kept_state.data(), gradient.data(), gradient_of_temperature.data()});
    }
    Results all;
    all.add(loss);
    all.add(losses);
    all.add(correct);
    all.add(ranks);
    all.add(gradient);
    all.add(gradient_of_temperature);
    return all;
}

struct RankSide {
    Floats x, mean, other_mean, factor, step_of, length_of, loss, shift, low, high;
    std::vector<double> step, length, residue, inner, own;
    std::vector<Index> ahead;
    RankSide(Index n, Index n_dim, int n_threads)
        : x(random_values(n * n_dim)),
          mean(static_cast<std::size_t>(n_dim)),
          other_mean(mean),
          factor(static_cast<std::size_t>(n)),
          shift(factor),
          low(factor),
          high(factor),
          step(factor.size()),
          length(step),
          residue(step),
          inner(step),
          own(step),
          ahead(factor.size()) {
        sleepfm::measure_rank_rows({x.data(), mean.data(), other_mean.data(), n, n_dim, factor.data(), step.data(),
                                    length.data(), residue.data(), inner.data(), n_threads});
        for (std::size_t i = 0; i < factor.size(); ++i) {
            step_of.push_back(static_cast<float>(step[i]));
            length_of.push_back(static_cast<float>(length[i]) * 1.001F);
            loss.push_back(static_cast<float>(residue[i]) * 1.001F);
        }
    }
    // Limits so wide that many pairs are decided in double.
    void set_limits() {
        for (std::size_t i = 0; i < own.size(); ++i) {
            low[i] = static_cast<float>(own[i]) - 1.0F;
            high[i] = static_cast<float>(own[i]) + 1.0F;
        }
    }
    sleepfm::RankOperand operand() {
        return {x.data(),
                static_cast<Index>(own.size()),
                0,
                mean.data(),
                factor.data(),
                step_of.data(),
                length_of.data(),
                loss.data(),
                shift.data(),
                low.data(),
                high.data(),
                own.data(),
                ahead.data()};
    }
};

Results ranks(Index n, Index n_dim, int n_threads) {
    RankSide a(n, n_dim, n_threads), b(n, n_dim, n_threads);
    sleepfm::own_inner_products(a.x.data(), b.x.data(), a.own.data(), n, n_dim);
    b.own = a.own;
    a.set_limits();
    b.set_limits();
    Workspace const workspace(sleepfm::pair_ranks_bytes(n, n, n_dim, n_threads));
    sleepfm::pair_ranks({a.operand(), b.operand(), n_dim, true, n_threads, workspace.data()});
    sleepfm::pair_ranks({a.operand(), b.operand(), n_dim, false, n_threads, workspace.data()});
    Results all;
    all.add(a.ahead);
    all.add(b.ahead);
    all.add(a.residue);
    return all;
}

struct Block {
    Index B, n_in, width, n_out, T;
    int stride;
    bool residual, keep;
};

struct BlockWeights {
    Floats w1, b1, gamma0, beta0, wd, bd, gamma1, beta1, w3, b3, mean0, variance0, mean1, variance1;
    explicit BlockWeights(Block const& b)
        : w1(random_values(b.width * b.n_in)),
          b1(random_values(b.width)),
          gamma0(random_values(b.width)),
          beta0(random_values(b.width)),
          wd(random_values(3 * b.width)),
          bd(random_values(b.width)),
          gamma1(random_values(b.width)),
          beta1(random_values(b.width)),
          w3(random_values(b.n_out * b.width)),
          b3(random_values(b.n_out)),
          mean0(random_values(b.width)),
          variance0(random_values(b.width, 2.0F)),
          mean1(random_values(b.width)),
          variance1(random_values(b.width, 2.0F)) {}
    sleepfm::MBConvWeights pointers() const {
        return {w1.data(), b1.data(),     gamma0.data(), beta0.data(), wd.data(),
                bd.data(), gamma1.data(), beta1.data(),  w3.data(),    b3.data()};
    }
    sleepfm::MBConvEvaluate evaluate(Block const& b, int n_threads) const {
        sleepfm::MBConvEvaluate call{};
        call.shape = {b.B, b.n_in, b.width, b.n_out, b.T, b.stride, false, n_threads, nullptr};
        call.weights = pointers();
        call.residual = {b.residual, 0.0, 0};
        call.eps = 1e-5;
        call.mean0 = mean0.data();
        call.variance0 = variance0.data();
        call.mean1 = mean1.data();
        call.variance1 = variance1.data();
        return call;
    }
};

Results mbconv(Block const& b, bool bf16, int n_threads) {
    BlockWeights const w(b);
    Index const S = (b.T - 1) / b.stride + 1;
    Floats const x = random_values(b.B * b.n_in * b.T), dy = random_values(b.B * b.n_out * S);
    auto const floats = [](Index n) { return Floats(static_cast<std::size_t>(n)); };
    Floats c1 = floats(b.keep ? b.B * b.width * b.T : 0), c2 = floats(b.B * b.width * S), g1 = c2,
           y = floats(b.B * b.n_out * S), evaluated = y, dx = floats(b.B * b.n_in * b.T);
    Floats dw1 = w.w1, dgamma0 = w.b1, dbeta0 = w.b1, dwd = w.wd, dgamma1 = w.b1, dbeta1 = w.b1, dw3 = w.w3, db3 = w.b3;
    std::vector<double> statistics(static_cast<std::size_t>(4 * b.width)),
        moments(static_cast<std::size_t>((1 + b.n_in) * b.n_in));
    sleepfm::MBConvShape shape{b.B, b.n_in, b.width, b.n_out, b.T, b.stride, bf16, n_threads, nullptr};
    sleepfm::MBConvResidual const residual{b.residual, b.residual ? 0.25 : 0.0, 17};
    Workspace const forward(sleepfm::mbconv_workspace_bytes(shape, false)),
        backward(sleepfm::mbconv_workspace_bytes(shape, true)),
        evaluate(sleepfm::mbconv_evaluate_workspace_bytes(shape));
    float* const c1_or_none = b.keep ? c1.data() : nullptr;
    shape.workspace = forward.data();
    sleepfm::mbconv_forward({shape, w.pointers(), residual, 1e-5, x.data(), c1_or_none, c2.data(), statistics.data(),
                             moments.data(), y.data()});
    shape.workspace = backward.data();
    sleepfm::mbconv_backward({shape,      w.pointers(),   residual,          1e-5,           x.data(),
                              c1_or_none, c2.data(),      statistics.data(), moments.data(), dy.data(),
                              g1.data(),  dx.data(),      dw1.data(),        dgamma0.data(), dbeta0.data(),
                              dwd.data(), dgamma1.data(), dbeta1.data(),     dw3.data(),     db3.data()});
    auto call = w.evaluate(b, n_threads);
    call.shape.bf16 = bf16;
    call.shape.workspace = evaluate.data();
    call.x = x.data();
    call.y = evaluated.data();
    sleepfm::mbconv_evaluate(call);
    Results all;
    for (auto const* const each : {&y, &evaluated, &dx, &dw1, &dgamma0, &dbeta0, &dwd, &dgamma1, &dbeta1, &dw3, &db3}) {
        all.add(*each);
    }
    all.add(statistics);
    return all;
}

Results encoder(Index B, Index T, bool bf16, int n_threads) {
    std::vector<Block> const sizes{{B, 7, 13, 9, (T - 1) / 2 + 1, 2, false, false},
                                   {B, 9, 40, 9, ((T - 1) / 2) / 2 + 1, 1, true, false}};
    std::vector<BlockWeights> weights;
    for (Block const& size : sizes) {
        weights.emplace_back(size);
    }
    std::vector<sleepfm::EncoderBlock> blocks;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
        blocks.push_back({weights[i].evaluate(sizes[i], n_threads), {}, i == 0});
    }
    Floats const stem_w = random_values(7 * 5 * 3), bias = random_values(7), variance = random_values(7, 2.0F),
                 x = random_values(B * 5 * T);
    Floats y(static_cast<std::size_t>(B * 9));
    sleepfm::EncoderEvaluate call{};
    call.n_clips = B;
    call.n_in = 5;
    call.n_stem = 7;
    call.n_samples = T;
    call.bf16 = bf16;
    call.n_threads = n_threads;
    call.stem_w = stem_w.data();
    call.stem_bias = bias.data();
    call.stem_norm = {bias.data(), bias.data(), bias.data(), variance.data(), 1e-5};
    call.blocks = blocks.data();
    call.n_blocks = static_cast<Index>(blocks.size());
    call.x = x.data();
    call.y = y.data();
    Workspace const workspace(sleepfm::encoder_workspace_bytes(call));
    call.workspace = workspace.data();
    sleepfm::encoder_evaluate(call);
    Results all;
    all.add(y);
    return all;
}

Results narrow(Index B, Index n_in, Index n_out, Index T, int n_threads) {
    Index const S = (T - 1) / 2 + 1;
    sleepfm::StemShape shape{B, n_in, n_out, T, n_threads, nullptr};
    Workspace const workspace(sleepfm::stem_workspace_bytes(shape));
    shape.workspace = workspace.data();
    Floats const x = random_values(B * n_in * T), w = random_values(n_out * n_in * 3), gamma = random_values(n_out),
                 dy = random_values(B * n_out * S);
    Floats c = dy, y = dy, pooled = dy, dx = dy, dw = w, dgamma = gamma, dbeta = gamma;
    std::vector<double> statistics(static_cast<std::size_t>(2 * n_out));
    sleepfm::stem_forward({shape, 1e-5, x.data(), w.data(), gamma.data(), gamma.data(), gamma.data(), c.data(),
                           statistics.data(), y.data()});
    sleepfm::stem_backward({shape, 1e-5, x.data(), c.data(), gamma.data(), dy.data(), statistics.data(), dw.data(),
                            dgamma.data(), dbeta.data()});
    sleepfm::max_pool_forward({B * n_out, S, n_threads, y.data(), nullptr, pooled.data()});
    sleepfm::max_pool_backward({B * n_out, S, n_threads, y.data(), dy.data(), dx.data()});
    sleepfm::BatchNormShape norm{B, n_out, S, n_threads, nullptr};
    Workspace const norm_workspace(sleepfm::batch_norm_workspace_bytes(norm));
    norm.workspace = norm_workspace.data();
    Floats normalised = dy, dpooled = dy, dgain = gamma, dshift = gamma;
    sleepfm::batch_norm_forward(
        {norm, 1e-5, pooled.data(), gamma.data(), gamma.data(), statistics.data(), normalised.data()});
    sleepfm::batch_norm_backward({norm, 1e-5, pooled.data(), gamma.data(), dy.data(), statistics.data(), dpooled.data(),
                                  dgain.data(), dshift.data()});
    Results all;
    for (auto const* const each : {&y, &dw, &dgamma, &dbeta, &pooled, &dx, &normalised, &dpooled, &dgain, &dshift}) {
        all.add(*each);
    }
    return all;
}

// A plain filter of 16 taps at half the rate, rows of several clips and channels.
Results filter_resample(Index n_clips, Index n_channels, sleepfm::Normalise normalise, DType dtype, int n_threads) {
    Index const n_rows = n_clips * n_channels, length = 3000, n_out = 1200;
    std::vector<std::int16_t> raw(static_cast<std::size_t>(length * n_channels));
    for (std::size_t i = 0; i < raw.size(); ++i) {
        raw[i] = static_cast<std::int16_t>(i * 7919 % 20011);
    }
    std::vector<sleepfm::WindowRow> table;
    for (Index i = 0; i < n_rows; ++i) {
        table.push_back({i % n_channels * length, i % 5 == 4 ? 0 : length, 0, 17 + i, 0, 0});
    }
    Floats const calibration(static_cast<std::size_t>(4 * n_rows), 1.0F);
    Floats const taps(16, 0.0625F);
    sleepfm::FilterRow filter{};
    filter.up = filter.phases = 1;
    filter.down = 2;
    filter.main_taps = filter.main_stride = 16;
    filter.main_left = 8;
    filter.dc = 1;
    Floats out(static_cast<std::size_t>(n_rows * n_out));
    sleepfm::FilterResample call{};
    call.raw = raw.data();
    call.n_raw = static_cast<Index>(raw.size());
    call.raw_bytes = 2;
    call.table = table.data();
    call.calibration = calibration.data();
    call.n_clips = n_clips;
    call.n_channels = n_channels;
    call.filters = &filter;
    call.n_filters = 1;
    call.taps = taps.data();
    call.n_taps = static_cast<Index>(taps.size());
    call.out = out.data();
    call.out_dtype = dtype;
    call.n_out = n_out;
    call.normalise = normalise;
    sleepfm::filter_resample_cpu(call, n_threads);
    Results all;
    all.add(out);
    return all;
}

int failures = 0, calls = 0;

template <typename Op>
void run(std::string const& name, int n_threads, Op op) {
    std::uint64_t const seed = state;
    Results const several = op(n_threads);
    state = seed;
    Results const one = op(1);
    ++calls;
    if (!(several == one)) {
        ++failures;
        std::printf("%s: %d threads give other bits than one\n", name.c_str(), n_threads);
    }
}

void run_all(int n_threads) {
    for (bool const pairwise : {false, true}) {
        for (Contrastive const& c :
             {Contrastive{3, 257, 40, pairwise, false, false}, Contrastive{3, 257, 40, pairwise, true, false},
              Contrastive{4, 385, 17, pairwise, true, false}, Contrastive{3, 49, 512, pairwise, false, true},
              Contrastive{4, 64, 300, pairwise, false, true}}) {
            std::string const name = "contrastive " + std::to_string(c.N);
            run(name + " float", n_threads, [&](int n) { return contrastive<float>(c, n); });
            run(name + " double", n_threads, [&](int n) { return contrastive<double>(c, n); });
        }
    }
    for (Index const n : {191, 193, 385}) {
        run("ranks " + std::to_string(n), n_threads, [&](int threads) { return ranks(n, 65, threads); });
    }
    run("rank rows", n_threads, [&](int threads) {
        RankSide const side(8200, 512, threads);
        Results all;
        all.add(side.residue);
        all.add(side.factor);
        return all;
    });
    for (Block const& b : {Block{5, 6, 18, 6, 193, 1, true, true}, Block{5, 6, 18, 10, 386, 2, false, true},
                           Block{19, 9, 33, 9, 97, 1, true, false}, Block{3, 1, 5, 3, 7, 2, false, false}}) {
        run("mbconv " + std::to_string(b.T), n_threads, [&](int n) { return mbconv(b, false, n); });
        run("mbconv in bfloat16 " + std::to_string(b.T), n_threads, [&](int n) { return mbconv(b, true, n); });
    }
    for (Index const T : {31, 770}) {
        run("encoder " + std::to_string(T), n_threads, [&](int n) { return encoder(9, T, false, n); });
        run("encoder in bfloat16 " + std::to_string(T), n_threads, [&](int n) { return encoder(9, T, true, n); });
        run("stem, maximum and batch norm " + std::to_string(T), n_threads,
            [&](int n) { return narrow(7, 5, 9, T, n); });
    }
    for (auto const normalise : {sleepfm::Normalise::none, sleepfm::Normalise::zscore, sleepfm::Normalise::robust}) {
        for (DType const dtype : {DType::f32, DType::bf16}) {
            run("filter_resample", n_threads, [&](int n) { return filter_resample(4, 5, normalise, dtype, n); });
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    int const n_threads = argc > 1 ? std::atoi(argv[1]) : 4, repeats = argc > 2 ? std::atoi(argv[2]) : 1;
    for (int i = 0; i < repeats; ++i) {
        run_all(n_threads);
    }
    std::printf("%d ops on %d threads, instruction set %s: %d with other bits than on one thread\n", calls, n_threads,
                sleepfm::isa_name(sleepfm::best_isa()), failures);
    return failures == 0 ? 0 : 1;
}
