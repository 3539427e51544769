// The gradient of a batch norm's input, once the sums of its output's gradient g over the batch are known.
#pragma once

#include <math.h>

#include "cpu/mbconv_product.h"

namespace sleepfm::SLEEPFM_ISA {

namespace {

// dc = a g + b (c - mean) + d, for one channel.
struct BatchNormGradient {
    float a, b, d, mean;
    Vector operator()(Vector g, Vector c) const { return a * g + (b * (c - mean) + d); }
    float operator()(float g, float c) const { return a * g + (b * (c - mean) + d); }
};

// sum: of g; product: of g times the normalised input; n: values of the channel.
inline BatchNormGradient gradient_of(double gamma, double mean, double variance, double eps, double sum, double product,
                                     double n) {
    double const inverse = 1.0 / sqrt(variance + eps);
    double const a = gamma * inverse;
    return {static_cast<float>(a), static_cast<float>(-a * inverse * product / n), static_cast<float>(-a * sum / n),
            static_cast<float>(mean)};
}

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
