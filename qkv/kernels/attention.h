// Attention over pages: each row looks at its own keys in chunks of one page, with a running maximum and sum.
//
// "Online normalizer calculation for softmax" (1805.02867) over the blocks of PagedAttention (2309.06180). A chunk is
// always the page at absolute positions 32 c to 32 c + 31, so a row's sums have one order however its sequence was
// cut. Keys lie transposed, sixteen to a register, so that neither scores nor mixtures are summed across lanes; up to
// eight rows (heads that share keys, neighbouring queries) share each load. A key or value of a head is kept as 16-bit
// integers with one scale, in the memory of half precision but with a tenth of its error. What is not finite never
// enters a page, since a masked weight of 0 must remove whatever lies there.
#pragma once

#include "lanes.h"

namespace qkv {

constexpr int PAGE = 32;
constexpr int MOST_LOOKS = 8;

// The keys and values of one head in one page: keys [PAGE / 16][width][16] and their scales, values [PAGE][width] and
// theirs. `width` is head_dim rounded up to a multiple of 16.
struct Kept {
    int16_t* keys;
    int16_t* values;
    float* key_scales;
    float* value_scales;
};

// The pool: [page][layer][head].
struct Pages {
    uint8_t* data = nullptr;
    int layers = 0, heads = 0, width = 0;

    size_t head_bytes() const { return size_t(PAGE) * 2 * (width * sizeof(int16_t) + sizeof(float)); }
    size_t page_bytes() const { return head_bytes() * layers * heads; }
    Kept at(int page, int layer, int head) const {
        uint8_t* begin = data + page * page_bytes() + (size_t(layer) * heads + head) * head_bytes();
        auto* keys = (int16_t*)begin;
        auto* scales = (float*)(keys + 2 * PAGE * width);
        return {keys, keys + PAGE * width, scales, scales + PAGE};
    }
};

// Calls put(d, sixteen integers) for x (width numbers); returns their scale. All are 0 if one is not finite.
template <class Put>
inline float narrow(const float* x, int width, Put put) {
    typedef int16_t Shorts __attribute__((vector_size(32)));
    const Lanes magic = spread(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    Lanes most = {};
    Ints finite = ~Ints{};
    for (int d = 0; d < width; d += LANES) {
        const Lanes size = magnitude(load_lanes(x + d));
        most = greater(size, most), finite &= size < INFINITY;
    }
    const float steps = 32767, largest = all(finite) ? maximum(most) : 0;
    const float inverse = largest > 0 ? std::min(steps / largest, 1e38f) : 0;
    for (int d = 0; d < width; d += LANES) {
        Lanes scaled = (load_lanes(x + d) * inverse + magic) - magic;
        if (largest == 0) scaled = Lanes{};
        put(d, __builtin_convertvector(__builtin_convertvector(scaled, Ints), Shorts));
    }
    return largest / steps;
}

// `key` and `value` (width numbers, padded with zeros) become row `slot` of a page.
inline void remember(const Kept& kept, int width, int slot, const float* key, const float* value) {
    int16_t* keys = kept.keys + slot / LANES * width * LANES + slot % LANES;
    int16_t* values = kept.values + slot * width;
    kept.key_scales[slot] = narrow(key, width, [&](int d, auto shorts) {
        for (int i = 0; i < LANES; i++) keys[(d + i) * LANES] = shorts[i];
    });
    kept.value_scales[slot] = narrow(value, width, [&](int d, auto shorts) { store(values + d, shorts); });
}

// One query of one head: looks at keys max(0, position - window + 1) to position.
struct Look {
    const float* query;  // (width), scaled
    float* out;          // (head_dim)
    int position;
    float slope;  // ALiBi; 0 without
};

// Adds `rows` values of a page, columns `at` to at + 16 N, to what R looks have mixed so far; returns 16 N.
template <int R, int N>
inline int mix(const Kept& kept, int width, int rows, int at, const float (*weight)[PAGE], float* room) {
    Lanes mixed[R][N];
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) mixed[r][n] = load_lanes(room + r * width + at + n * LANES);
    for (int j = 0; j < rows; j++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) {
            const Lanes value = load_lanes(kept.values + j * width + at + n * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) mixed[r][n] = fma(spread(weight[r][j]), value, mixed[r][n]);
        }
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) store(room + r * width + at + n * LANES, mixed[r][n]);
    return N * LANES;
}

// R looks at one key/value head of one sequence, scores bent to `cap` unless it is 0; `room` holds R * width numbers.
template <int R>
inline void attend(const Pages& pages, const int32_t* table, int layer, int head, int head_dim, int window,
                   float cap, const Look* looks, float* room) {
    const int width = pages.width;
    float most[R];
    Lanes total[R] = {};
    int first = looks[0].position, last = first;
    for (int r = 0; r < R; r++) {
        most[r] = -INFINITY;
        first = std::min(first, looks[r].position), last = std::max(last, looks[r].position);
    }
    std::memset(room, 0, sizeof(float) * R * width);
    const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

    for (int chunk = std::max(0, first - window + 1) / PAGE; chunk <= last / PAGE; chunk++) {
        const Kept kept = pages.at(table[chunk], layer, head);
        const Kept next = pages.at(table[std::min(chunk + 1, last / PAGE)], layer, head);
        const Lanes key_scales[2] = {load_lanes(kept.key_scales), load_lanes(kept.key_scales + LANES)};
        const Lanes value_scales[2] = {load_lanes(kept.value_scales), load_lanes(kept.value_scales + LANES)};
        Lanes score[R][2] = {};
        for (int d = 0; d < head_dim; d++) {
            __builtin_prefetch(next.keys + d * PAGE), __builtin_prefetch(next.values + d * PAGE);
            Lanes left = load_lanes(kept.keys + d * LANES), right = load_lanes(kept.keys + (width + d) * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                Lanes q = spread(looks[r].query[d]);
                score[r][0] = fma(q, left, score[r][0]);
                score[r][1] = fma(q, right, score[r][1]);
            }
        }
        alignas(64) float weight[R][PAGE];
        for (int r = 0; r < R; r++) {
            const int position = looks[r].position;
            for (int side = 0; side < 2; side++) {
                Ints key = lane + (chunk * PAGE + side * LANES);
                const Lanes slope = looks[r].slope * to_float(key - position);
                Lanes biased = cap > 0 ? capped(score[r][side] * key_scales[side], cap) + slope
                                       : fma(score[r][side], key_scales[side], slope);
                Ints seen = (key <= position) & (key > position - window);
                score[r][side] = choose(seen, biased, spread(-INFINITY));
            }
            const float here = maximum(greater(score[r][0], score[r][1]));
            if (here > most[r]) {
                const Lanes shrink = exponential(spread(most[r] - here));
                total[r] *= shrink;
                for (int d = 0; d < width; d += LANES)
                    store(room + r * width + d, load_lanes(room + r * width + d) * shrink);
                most[r] = here;
            }
            const bool nothing = most[r] == -INFINITY;  // of this page and those before
            for (int side = 0; side < 2; side++) {
                Lanes w = nothing ? Lanes{} : exponential(score[r][side] - most[r]);
                total[r] += w;
                store(weight[r] + side * LANES, w * value_scales[side]);
            }
        }
        const int rows = std::min(PAGE, last - chunk * PAGE + 1);
        for (int d = 0; d < width;) {
            if (d + 4 * LANES <= width && R <= 4) d += mix<R, 4>(kept, width, rows, d, weight, room);
            else if (d + 2 * LANES <= width) d += mix<R, 2>(kept, width, rows, d, weight, room);
            else d += mix<R, 1>(kept, width, rows, d, weight, room);
        }
    }
    for (int r = 0; r < R; r++) {
        const float whole = sum(total[r]);
        for (int d = 0; d < head_dim; d++) looks[r].out[d] = room[r * width + d] / whole;
    }
}

inline void attend(int count, const Pages& pages, const int32_t* table, int layer, int head, int head_dim, int window,
                   float cap, const Look* looks, float* room) {
    switch (count) {
#define QKV_LOOKS(R) \
    case R: return attend<R>(pages, table, layer, head, head_dim, window, cap, looks, room)
        QKV_LOOKS(1);
        QKV_LOOKS(2);
        QKV_LOOKS(3);
        QKV_LOOKS(4);
        QKV_LOOKS(5);
        QKV_LOOKS(6);
        QKV_LOOKS(7);
        QKV_LOOKS(8);
#undef QKV_LOOKS
    }
}

}  // namespace qkv
