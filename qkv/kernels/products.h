// Rows of activations times packed weights: the arithmetic that every row count shares.
//
// Of a row, each 32 columns are quantised to 16 bits, x = scale * (256 high + low), in two planes of signed bytes. A
// product with unsigned weights is then, for each such block, two exact integer sums; what is rounded is their
// combination with the block's scales and min in single precision, always in the order of the columns:
//
//     acc = fma(scale * (256 sum(high u) + sum(low u) - ZERO sum(high, low)), weight scale, acc)
//     acc = fma(sum(x), min, acc)
//
// Integers may be added in any order, by AMX tiles, by VPDPBUSD or by plain loops, so a row has the same bits alone,
// in a batch and in a prompt, which no order of floating-point sums in tiles would give. Measured on SmolLM2's 4-bit
// file, error of a row's logits relative to its largest, median and worst: 1e-4 and 4e-4. With 8 bits, the usual
// choice, it is 2e-2 and 7e-2; with 16 bits but one scale a row 4e-4 and 2e-3, since single numbers in front of `down`
// are as large as all others together.
#pragma once

#include "blocks.h"

#if defined(__AMX_INT8__) && defined(__AVX512F__) && defined(__linux__)
#define QKV_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace qkv {

constexpr int ROW_TILE = 16;  // activations are allocated in multiples of it

// Rows of activations, `stride` numbers apart, and their blocks of 32.
struct Rows {
    int stride = 0;  // a multiple of 32
    float* x = nullptr;
    int8_t *high = nullptr, *low = nullptr;
    float *scales = nullptr, *sums = nullptr;                // one a block
    int32_t *integers32 = nullptr, *integers16 = nullptr;  // sums of 256 high + low: of 32 columns, of 16

    float* row(int r) const { return x + size_t(r) * stride; }
    size_t block(int r) const { return size_t(r) * (stride / 32); }
};

// Fills in the planes of one row from its floats; the sums of 16 only if they are wanted. What is not finite makes the
// row's products NaN.
inline void quantise(const Rows& rows, int r, int columns, bool sixteens) {
    typedef int8_t Bytes __attribute__((vector_size(16)));
    const Lanes magic = spread(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const float steps = 127 * 256 + 127;      // so that `high` stays within a signed byte
    for (int b = 0; b < columns / 32; b++) {
        const size_t at = size_t(r) * rows.stride + b * 32, block = rows.block(r) + b;
        const Lanes x[2] = {load_lanes(rows.x + at), load_lanes(rows.x + at + LANES)};
        const Lanes sizes[2] = {magnitude(x[0]), magnitude(x[1])};
        const float largest = maximum(greater(sizes[0], sizes[1]));
        const bool finite = all((sizes[0] < INFINITY) & (sizes[1] < INFINITY));
        const float inverse = largest > 0 ? std::min(steps / largest, 1e38f) : 0;
        Ints integers[2];
        for (int part = 0; part < 2; part++) {
            Ints whole = __builtin_convertvector((x[part] * inverse + magic) - magic, Ints);
            Ints lower = whole << 24 >> 24;
            store(rows.low + at + part * LANES, __builtin_convertvector(lower, Bytes));
            store(rows.high + at + part * LANES, __builtin_convertvector((whole - lower) >> 8, Bytes));
            integers[part] = whole;
        }
        const float scale = finite ? largest / steps : NAN;
        rows.scales[block] = scale;
        rows.integers32[block] = sum(integers[0] + integers[1]);
        rows.sums[block] = scale * float(rows.integers32[block]);
        for (int part = 0; sixteens && part < 2; part++) rows.integers16[block * 2 + part] = sum(integers[part]);
    }
}

template <class T>
inline const int32_t* integers(T, const Rows& rows, int r) {
    return T::COLUMNS == 32 ? rows.integers32 + rows.block(r) : rows.integers16 + rows.block(r) * 2;
}

// acc + sums of four products: unsigned bytes of `weights` times the four signed ones at `four`, in each lane.
inline Ints dot(Ints acc, Ints weights, const int8_t* four) {
    const int32_t quad = load<int32_t>(four);
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)weights, _mm512_set1_epi32(quad));
#elif defined(__AVX2__)  // in 16 bits, the even and the odd bytes: VPMADDUBSW would saturate
    const __m256i all = _mm256_set1_epi32(quad);
    const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(all, 8), 8), odd = _mm256_srai_epi16(all, 8);
    __m256i w[2], sums[2];
    std::memcpy(w, &weights, 64), std::memcpy(sums, &acc, 64);
    for (int i = 0; i < 2; i++) {
        sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(_mm256_and_si256(w[i], _mm256_set1_epi16(255)), even));
        sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(_mm256_srli_epi16(w[i], 8), odd));
    }
    std::memcpy(&acc, sums, 64);
    return acc;
#else
    return acc + (weights & 255) * four[0] + (weights >> 8 & 255) * four[1] + (weights >> 16 & 255) * four[2] +
           (weights >> 24 & 255) * four[3];
#endif
}

template <class T>
inline void unpack(T, const uint8_t* tile, Ints weights[T::QUADS]) {
    tile += T::SCALES;
    if (T::BITS == 8) {
        for (int q = 0; q < T::QUADS; q++) weights[q] = load<Ints>(tile + q * 64);
    } else {
        for (int q = 0; q < T::QUADS / 2; q++) {
            Ints two = load<Ints>(tile + q * 64);
            weights[q] = two & 0x0f0f0f0f;
            weights[q + T::QUADS / 2] = two >> 4 & 0x0f0f0f0f;
        }
    }
}

// One block of one row into its accumulator: the only place where products are rounded.
template <class T>
inline Lanes combine(T, Ints high, Ints low, const uint8_t* tile, int32_t whole, float scale, float sum, Lanes acc) {
    auto* scales = (const typename T::Scale*)tile;
    Ints dots = (high << 8) + low;
    if (T::ZERO) dots -= T::ZERO * whole;
    acc = fma(to_float(dots) * scale, load_lanes(scales), acc);
    return T::MIN ? fma(spread(sum), load_lanes(scales + LANES), acc) : acc;
}

// A tile of the near and of the far future: the processor's own prefetching stops at every page's end.
template <class T>
inline void prefetch_ahead(T, const uint8_t* tile) {
    constexpr int NEAR = 1280, FAR = 6400;  // bytes; measured
    for (int line = 0; line < T::BYTES; line += 64) {
        __builtin_prefetch(tile + NEAR + line);
        __builtin_prefetch(tile + FAR + line, 0, 2);  // into the second-level cache
    }
}

// Products of R rows from `row` on with one group: out[R][16].
template <class T, int R>
inline void few_rows(T tile, const uint8_t* group, int tiles, const Rows& x, int row, float* out) {
    Lanes acc[R] = {};
    for (int b = 0; b < tiles; b++, group += T::BYTES) {
        prefetch_ahead(tile, group);
        Ints weights[T::QUADS];
        unpack(tile, group, weights);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const size_t at = size_t(row + r) * x.stride + b * T::COLUMNS;
            Ints high = {}, low = {};
#pragma GCC unroll 8
            for (int q = 0; q < T::QUADS; q++) {
                high = dot(high, weights[q], x.high + at + q * 4);
                low = dot(low, weights[q], x.low + at + q * 4);
            }
            const size_t block = x.block(row + r) + b * T::COLUMNS / 32;
            const int32_t whole = integers(tile, x, row + r)[b];
            acc[r] = combine(tile, high, low, group, whole, x.scales[block], x.sums[block], acc[r]);
        }
    }
    for (int r = 0; r < R; r++) store(out + r * LANES, acc[r]);
}

#ifdef QKV_AMX
// Tiles 0 to 3 hold sums of 16 rows x 16 outputs (two pairs, used in turn), 4 and 5 the planes, 6 the weights.
struct TileShapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 32, 32, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 8};
};

inline bool amx_allowed() {  // Linux hands the tile registers out on request
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
}

inline void amx_begin() {
    static const TileShapes shapes;
    asm volatile("" ::"r"(&shapes) : "memory");  // gcc believes that 8 of its bytes are read, and drops the others
    _tile_loadconfig(&shapes);
}

inline void amx_end() { _tile_release(); }

// The sums of one block into two tiles; their numbers are part of the instructions.
#define QKV_MULTIPLY(HIGH, LOW)                                \
    _tile_zero(HIGH);                                          \
    _tile_zero(LOW);                                           \
    _tile_loadd(6, bytes + b * T::QUADS * 64, 64);             \
    _tile_loadd(4, x.high + first + b * T::COLUMNS, x.stride); \
    _tile_loadd(5, x.low + first + b * T::COLUMNS, x.stride);  \
    _tile_dpbsud(HIGH, 4, 6);                                  \
    _tile_dpbsud(LOW, 5, 6)

// Products of 16 rows. In one turn the tiles multiply block b, store the integers of b - 1, and those of b - 2 are
// combined: each of these takes longer than it would have to wait. The FIRST to pass through a group unpacks its
// weights into `bytes`, two blocks ahead.
template <class T, bool FIRST>
inline void sixteen_rows(T tile, const uint8_t* group, uint8_t* bytes, int tiles, const Rows& x, int row, float* out) {
    static_assert(T::COLUMNS == 32, "the tiles' shapes");
    alignas(64) int32_t sums[2][2][ROW_TILE][LANES];
    Lanes acc[ROW_TILE] = {};
    const size_t first = size_t(row) * x.stride;
    for (int b = FIRST ? -2 : 0; b < tiles + 2; b++) {
        if (FIRST && b + 2 < tiles) {
            prefetch_ahead(tile, group + (b + 2) * T::BYTES);
            unpack(tile, group + (b + 2) * T::BYTES, (Ints*)bytes + (b + 2) * T::QUADS);
            asm volatile("" ::: "memory");  // tile loads do not tell the compiler what they read
        }
        if (b < 0) continue;
        if (b % 2) {
            if (b < tiles) {
                QKV_MULTIPLY(2, 3);
            }
            _tile_stored(0, sums[0][0], 64);
            _tile_stored(1, sums[0][1], 64);
        } else {
            if (b < tiles) {
                QKV_MULTIPLY(0, 1);
            }
            _tile_stored(2, sums[1][0], 64);
            _tile_stored(3, sums[1][1], 64);
        }
        if (b < 2) continue;
        const auto* from = sums[b % 2];
        const uint8_t* at = group + (b - 2) * T::BYTES;
#pragma GCC unroll 16
        for (int r = 0; r < ROW_TILE; r++) {
            const size_t block = x.block(row + r) + b - 2;
            acc[r] = combine(tile, load<Ints>(from[0][r]), load<Ints>(from[1][r]), at, x.integers32[block],
                             x.scales[block], x.sums[block], acc[r]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROW_TILE; r++) store(out + r * LANES, acc[r]);
}
#undef QKV_MULTIPLY
#else
inline bool amx_allowed() { return false; }
inline void amx_begin() {}
inline void amx_end() {}
#endif

// Weights that are floats already: four interleaved sums a row hide the latency of one, and are added in one order.
template <class E, int R>
inline void few_float_rows(E, const uint8_t* group, int columns, const Rows& x, int row, float* out) {
    auto* weights = (const E*)group;
    Lanes acc[R][4] = {};
    int c = 0;
    for (; c + 4 <= columns; c += 4)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            __builtin_prefetch((const char*)(weights + (c + j) * LANES) + 2560);
            Lanes w = load_lanes(weights + (c + j) * LANES);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) acc[r][j] = fma(spread(x.row(row + r)[c + j]), w, acc[r][j]);
        }
    for (; c < columns; c++)
        for (int r = 0; r < R; r++)
            acc[r][0] = fma(spread(x.row(row + r)[c]), load_lanes(weights + c * LANES), acc[r][0]);
    for (int r = 0; r < R; r++) store(out + r * LANES, (acc[r][0] + acc[r][1]) + (acc[r][2] + acc[r][3]));
}

// Calls f<4>(row), then f<2>(row) and f<1>(row) for what is left.
template <class F>
inline void by_fours(int from, int rows, F f) {
    int r = from;
    for (; r + 4 <= rows; r += 4) f(std::integral_constant<int, 4>{}, r);
    for (; r + 2 <= rows; r += 2) f(std::integral_constant<int, 2>{}, r);
    for (; r < rows; r++) f(std::integral_constant<int, 1>{}, r);
}

constexpr int AMX_ROWS = 8;  // from so many rows on, tiles of 16 pay

// out[rows][16] = x times one group of 16 outputs. `bytes` is room for 16 * columns unpacked weights; `out` and `x`
// have room for rows rounded up to 16.
inline void product(const Matrix& m, int group, const Rows& x, int rows, bool amx, uint8_t* bytes, float* out) {
    const uint8_t* data = m.data + group * group_bytes(m.kind, m.columns);
    with_tile(m.kind, [&](auto tile) {
        using T = decltype(tile);
        const int tiles = m.columns / T::COLUMNS;
        int done = 0;
#ifdef QKV_AMX
        if constexpr (T::COLUMNS == 32) {
            if (amx && rows >= AMX_ROWS) {
                sixteen_rows<T, true>(tile, data, bytes, tiles, x, 0, out);
                for (done = ROW_TILE; rows - done >= AMX_ROWS; done += ROW_TILE)
                    sixteen_rows<T, false>(tile, data, bytes, tiles, x, done, out + done * LANES);
            }
        }
#endif
        by_fours(done, rows, [&](auto count, int r) {
            few_rows<T, count.value>(tile, data, tiles, x, r, out + r * LANES);
        });
    });
    with_element(m.kind, [&](auto element) {
        by_fours(0, rows, [&](auto count, int r) {
            few_float_rows<decltype(element), count.value>(element, data, m.columns, x, r, out + r * LANES);
        });
    });
}

}  // namespace qkv
