// What is computed number by number: activations and norms.
#pragma once

#include <vector>

#include "lanes.h"

namespace qkv {

using Vector = std::vector<float>;  // a bias, a norm's weights: empty, or padded with zeros to a multiple of 16

enum Activation { RELU, GELU, GELU_TANH, QUICK_GELU, SILU };  // library.py has the same order

inline Lanes erf_of(Lanes x) {  // Abramowitz and Stegun, 7.1.26: within 1.5e-7
    Lanes size = magnitude(x), t = 1.0f / fma(spread(0.3275911f), size, spread(1.0f));
    Lanes p = spread(1.061405429f);
    p = fma(p, t, spread(-1.453152027f));
    p = fma(p, t, spread(1.421413741f));
    p = fma(p, t, spread(-0.284496736f));
    p = fma(p, t, spread(0.254829592f));
    Lanes y = 1.0f - p * t * exponential(-size * size);
    return choose(x < 0, -y, y);
}

inline Lanes activate(int activation, Lanes x) {
    switch (activation) {
        case RELU: return greater(x, Lanes{});
        case GELU: return 0.5f * x * (1.0f + erf_of(x * 0.70710678f));
        case GELU_TANH: return 0.5f * x * (1.0f + tanh_of(0.79788456f * fma(x * x * x, spread(0.044715f), x)));
        case QUICK_GELU: return x / (1.0f + exponential(-1.702f * x));
        default: return x / (1.0f + exponential(-x));
    }
}

// out = norm(x) * weight + bias over `count` numbers; all are padded to a multiple of 16, what pads `out` becomes 0.
inline void norm(const float* x, int count, bool rms, float eps, const Vector& weight, const Vector& bias, float* out) {
    const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    float mean = 0;
    if (!rms) {
        Lanes all = {};
        for (int i = 0; i < count; i += LANES) all += load_lanes(x + i);
        mean = sum(all) / count;
    }
    Lanes squares = {};
    for (int i = 0; i < count; i += LANES) {
        Lanes off = choose(lane + i < count, load_lanes(x + i) - mean, Lanes{});
        squares = fma(off, off, squares);
    }
    const float inverse = 1 / std::sqrt(sum(squares) / count + eps);
    for (int i = 0; i < count; i += LANES) {
        Lanes y = (load_lanes(x + i) - mean) * inverse * load_lanes(&weight[i]);
        if (!bias.empty()) y += load_lanes(&bias[i]);
        store(out + i, choose(lane + i < count, y, Lanes{}));  // 0 times NaN would not be 0
    }
}

}  // namespace qkv
