// Weights as the products read them: sixteen output rows side by side.
//
// A published block holds 32 weights of one row. Packed, a tile holds the same 32 columns of 16 rows, so that a lane
// of a register is an output and nothing is ever summed across lanes:
//
//     scales [16]  (mins [16])  then the weights, as unsigned bytes or nibbles: for every four columns 16 x 4 bytes
//
// which is both what VPDPBUSD multiplies and what an AMX tile of 8 rows holds. Nibbles lie two to a byte: columns 0 to
// 15 in the low halves, 16 to 31 in the high ones. A weight is scale * (u - ZERO), or scale * u + min.
//
// Published kinds keep their exact values: Q4_0, Q4_1 and Q8_0 take the bytes they take in the file, Q4_K becomes a
// Q4_1 with scales in single precision (24 bytes a block for its 18), Q6_K becomes bytes with a scale for 16 (10 bits
// a weight for its 6.6). Rows are padded to a multiple of 16 with zeros.
#pragma once

#include <algorithm>
#include <vector>

#include "lanes.h"

namespace qkv {

enum KindCode { Q4_0, Q4_1, Q8_0, Q4_K, Q6_K, F32, F16, BF16 };  // library.py has the same order

struct Matrix {
    int kind = -1;  // none
    int rows = 0, columns = 0;
    uint8_t* data = nullptr;

    int groups() const { return (rows + LANES - 1) / LANES; }
    bool quantised() const { return kind < F32; }
};

inline void put(Half& to, float x) { to = float_to_half(x); }
inline void put(float& to, float x) { to = x; }

template <int BITS_, int COLUMNS_, class Scale_, bool MIN_, int ZERO_>
struct Tile {
    static constexpr int BITS = BITS_, COLUMNS = COLUMNS_, ZERO = ZERO_;
    static constexpr bool MIN = MIN_;
    using Scale = Scale_;
    static constexpr int SCALES = LANES * sizeof(Scale) * (MIN ? 2 : 1);  // bytes before the weights
    static constexpr int BYTES = SCALES + LANES * COLUMNS * BITS / 8;
    static constexpr int QUADS = COLUMNS / 4;                        // registers of 16 outputs x 4 columns
    static constexpr int LINES = (BYTES - SCALES) / 64;  // of 64 bytes of weights
};

using TileQ4_0 = Tile<4, 32, Half, false, 8>;
using TileQ4_1 = Tile<4, 32, Half, true, 0>;
using TileQ8_0 = Tile<8, 32, Half, false, 128>;
using TileQ4_K = Tile<4, 32, float, true, 0>;
using TileQ6_K = Tile<8, 16, float, false, 32>;

// Calls f with the tile type (quantised kinds) or the element type (the others) as a value.
template <class F>
inline void with_tile(int kind, F f) {
    switch (kind) {
        case Q4_0: return f(TileQ4_0{});
        case Q4_1: return f(TileQ4_1{});
        case Q8_0: return f(TileQ8_0{});
        case Q4_K: return f(TileQ4_K{});
        case Q6_K: return f(TileQ6_K{});
    }
}

template <class F>
inline void with_element(int kind, F f) {
    switch (kind) {
        case F32: return f(float{});
        case F16: return f(Half{});
        case BF16: return f(BFloat{});
    }
}

// Bytes of one group of 16 rows.
inline size_t group_bytes(int kind, size_t columns) {
    size_t bytes = columns * LANES * (kind == F32 ? 4 : 2);
    with_tile(kind, [&](auto tile) { bytes = columns / tile.COLUMNS * tile.BYTES; });
    return bytes;
}

// Bytes of one row in the file; columns fit the kind (library.py checks).
inline size_t row_bytes(int kind, size_t columns) {
    switch (kind) {
        case Q4_0: return columns / 32 * 18;
        case Q4_1: return columns / 32 * 20;
        case Q8_0: return columns / 32 * 34;
        case Q4_K: return columns / 256 * 144;
        case Q6_K: return columns / 256 * 210;
        case F32: return columns * 4;
        default: return columns * 2;
    }
}

// The 32 (or, for Q6_K, 16) weights of one row from column `at` on, read from the published layouts; the bytes are
// those of one lane of a tile, which for the nibbles of Q4_0 and Q4_1 are the file's own.
struct Part {
    float scale, min;
    uint8_t bytes[32];  // unsigned weights, ZERO added; two nibbles each where there are 4 bits
};

inline float half_at(const uint8_t* p) { return half_to_float(load<Half>(p)); }

inline Part read_part(TileQ4_0, const uint8_t* row, int at) {
    const uint8_t* block = row + at / 32 * 18;
    Part part{half_at(block), 0, {}};
    std::memcpy(part.bytes, block + 2, 16);
    return part;
}

inline Part read_part(TileQ4_1, const uint8_t* row, int at) {
    const uint8_t* block = row + at / 32 * 20;
    Part part{half_at(block), half_at(block + 2), {}};
    std::memcpy(part.bytes, block + 4, 16);
    return part;
}

inline Part read_part(TileQ8_0, const uint8_t* row, int at) {
    const uint8_t* block = row + at / 32 * 34;
    Part part{half_at(block), 0, {}};
    for (int i = 0; i < 32; i++) part.bytes[i] = block[2 + i] ^ 0x80;
    return part;
}

// Blocks of 256: two halves, 12 bytes with eight scales and eight mins of 6 bits, then nibbles; the low ones of 32
// bytes are one part, the high ones the next.
inline Part read_part(TileQ4_K, const uint8_t* row, int at) {
    const uint8_t* block = row + at / 256 * 144;
    const uint8_t* six = block + 4;
    const int j = at % 256 / 32, shift = j % 2 * 4;
    const int scale = j < 4 ? six[j] & 63 : (six[j + 4] & 15) | (six[j - 4] >> 6) << 4;
    const int min = j < 4 ? six[j + 4] & 63 : six[j + 4] >> 4 | (six[j] >> 6) << 4;
    Part part{half_at(block) * scale, -half_at(block + 2) * min, {}};
    const uint8_t* nibbles = block + 16 + j / 2 * 32;
    for (int i = 0; i < 16; i++) part.bytes[i] = (nibbles[i] >> shift & 15) | (nibbles[i + 16] >> shift & 15) << 4;
    return part;
}

// Blocks of 256: 128 bytes with the low nibbles, 64 with two more bits, 16 scales (int8, one for 16 weights), a half.
inline Part read_part(TileQ6_K, const uint8_t* row, int at) {
    const uint8_t* block = row + at / 256 * 210;
    const int first = at % 256;
    Part part{half_at(block + 208) * (int8_t)block[192 + first / 16], 0, {}};
    for (int i = 0; i < 16; i++) {
        const int w = first + i, half = w / 128, quarter = w % 128 / 32, l = w % 32;
        const int low = block[half * 64 + quarter % 2 * 32 + l] >> (quarter / 2 * 4) & 15;
        const int high = block[128 + half * 32 + l] >> (quarter * 2) & 3;
        part.bytes[i] = low | high << 4;
    }
    return part;
}

template <class T>
inline void pack_tiles(T tile, const Matrix& to, const uint8_t* from, size_t from_row, int first, int last) {
    const int tiles = to.columns / T::COLUMNS;
    for (int group = first; group < last; group++) {
        uint8_t* out = to.data + size_t(group) * tiles * T::BYTES;
        std::memset(out, 0, size_t(tiles) * T::BYTES);
        for (int lane = 0; lane < LANES && group * LANES + lane < to.rows; lane++) {
            const uint8_t* row = from + (size_t(group) * LANES + lane) * from_row;
            for (int b = 0; b < tiles; b++) {
                const Part part = read_part(tile, row, b * T::COLUMNS);
                uint8_t* at = out + b * T::BYTES;
                auto* scales = (typename T::Scale*)at;
                put(scales[lane], part.scale);
                if (T::MIN) put(scales[LANES + lane], part.min);
                for (int q = 0; q < T::LINES; q++)
                    std::memcpy(at + T::SCALES + q * 64 + lane * 4, part.bytes + q * 4, 4);
            }
        }
    }
}

// Groups first to last - 1 of a matrix's rows, as in the file, become `to`, whose kind, sizes and memory are set.
inline void pack(const Matrix& to, const uint8_t* from, int first, int last) {
    const size_t from_row = row_bytes(to.kind, to.columns), element = to.kind == F32 ? 4 : 2;
    if (to.quantised()) {
        with_tile(to.kind, [&](auto tile) { pack_tiles(tile, to, from, from_row, first, last); });
        return;
    }
    const size_t size = group_bytes(to.kind, to.columns);
    std::memset(to.data + first * size, 0, (last - first) * size);
    for (int row = first * LANES; row < std::min(to.rows, last * LANES); row++) {
        uint8_t* out = to.data + row / LANES * size + row % LANES * element;
        for (int c = 0; c < to.columns; c++)
            std::memcpy(out + c * LANES * element, from + row * from_row + c * element, element);
    }
}

// One row back as floats: what a token's embedding is. `out` holds a multiple of 16 numbers.
inline void unpack_row(const Matrix& from, int row, float* out) {
    const uint8_t* group = from.data + row / LANES * group_bytes(from.kind, from.columns);
    const int lane = row % LANES;
    with_tile(from.kind, [&](auto tile) {
        using T = decltype(tile);
        for (int c = 0; c < from.columns; group += T::BYTES) {
            auto* scales = (const typename T::Scale*)group;
            const float scale = load_lanes(scales)[lane], min = T::MIN ? load_lanes(scales + LANES)[lane] : 0;
            for (int in = 0; in < T::COLUMNS; in++, c++) {
                const int byte = in % (T::LINES * 4);
                int weight = group[T::SCALES + byte / 4 * 64 + lane * 4 + byte % 4];
                if (T::BITS == 4) weight = weight >> (in / 16 * 4) & 15;
                out[c] = scale * float(weight - T::ZERO) + min;
            }
        }
    });
    with_element(from.kind, [&](auto element) {
        auto* columns = (const decltype(element)*)group;
        for (int c = 0; c < from.columns; c++) out[c] = load_lanes(columns + c * LANES)[lane];
    });
}

}  // namespace qkv
