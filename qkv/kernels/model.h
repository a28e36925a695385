// A decoder in memory: its numbers, its packed weights, its pages, and room for the rows that are computed at once.
#pragma once

#include <sys/mman.h>
#include <time.h>

#include <memory>
#include <new>

#include "attention.h"
#include "pointwise.h"
#include "pool.h"
#include "products.h"

namespace qkv {

constexpr int SLICE = 128;  // rows at a time: their activations stay in the second-level cache

enum MatrixSlot { Q, K, V, OUT, GATE, UP, DOWN, LAYER_MATRICES };
enum GlobalMatrix { TOKEN, POSITION, HEAD, GLOBAL_MATRICES };
enum VectorSlot {
    Q_BIAS, K_BIAS, V_BIAS, OUT_BIAS, GATE_BIAS, UP_BIAS, DOWN_BIAS,
    ATTENTION_NORM, ATTENTION_NORM_BIAS, FFN_NORM, FFN_NORM_BIAS,
    Q_NORM, Q_NORM_BIAS, K_NORM, K_NORM_BIAS,
    ATTENTION_POST_NORM, ATTENTION_POST_NORM_BIAS, FFN_POST_NORM, FFN_POST_NORM_BIAS, LAYER_VECTORS
};
enum GlobalVector { EMBED_NORM, EMBED_NORM_BIAS, FINAL_NORM, FINAL_NORM_BIAS, HEAD_BIAS, GLOBAL_VECTORS };

enum Phase { EMBED, PREPARE, PROJECT, PLACE, LOOK, OUTPUT, FFN_UP, FFN_DOWN, LOGITS, PHASES };

#ifdef QKV_PROFILE
inline double now() {
    timespec t;
    clock_gettime(QKV_PROFILE, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}
#endif

struct Plan {  // library.py has the same fields
    int32_t vocab, context, dim, layers, heads, kv_heads, head_dim, ffn_dim;
    int32_t rms, activation, gated, parallel, rotary_dim, pages, threads;
    float norm_eps, scale, embed_scale;
    float score_cap, logit_cap;  // 0: none
    const float* rates;      // rotary_dim / 2 angles a position, or null
    const float* slopes;     // ALiBi: one a head, or null
    const int32_t* windows;  // one a layer
    int64_t weight_bytes;    // of all packed matrices
};

// Zeroed memory that is only resident where it was touched, in large pages where the system has them.
struct Memory {
    uint8_t* data = nullptr;
    size_t size = 0;

    explicit Memory(size_t bytes) : size(std::max<size_t>(bytes, 1)) {
        void* got = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (got == MAP_FAILED) throw std::bad_alloc();
        data = (uint8_t*)got;
#ifdef MADV_HUGEPAGE
        madvise(data, size, MADV_HUGEPAGE);
#endif
    }
    ~Memory() { munmap(data, size); }
    Memory(const Memory&) = delete;
};

inline int round_up(int n, int to) { return (n + to - 1) / to * to; }

inline Pages pages_of(int layers, int kv_heads, int head_dim) {
    Pages pages;
    pages.layers = layers, pages.heads = kv_heads, pages.width = round_up(head_dim, LANES);
    return pages;
}

struct Layer {
    Matrix matrices[LAYER_MATRICES];
    Vector vectors[LAYER_VECTORS];
    int window;
};

struct Batch;

struct Model {
    Plan plan;
    Vector rates, slopes;
    std::vector<Layer> layers;
    Matrix matrices[GLOBAL_MATRICES];
    Vector vectors[GLOBAL_VECTORS];
    Pages pages;
    Memory weights, cache;
    size_t packed = 0;
    bool quantised = false, sixteens = false;  // whether some matrix is, or has scales for 16 weights
    bool amx = amx_allowed();
    std::unique_ptr<Pool> pool;
    std::unique_ptr<Batch> batch;
#ifdef QKV_PROFILE  // seconds of the first thread, by phase
    double profile[PHASES] = {}, since = 0;
#endif

    explicit Model(const Plan& p);

    // From the next step on, so many threads compute. Nobody may be computing now.
    void employ(int threads);
};

// Carves arrays out of one piece of memory.
struct Carver {
    uint8_t* base;
    size_t used = 0;

    template <class T>
    T* take(size_t count) {
        T* at = (T*)(base + used);
        used += (count * sizeof(T) + 63) / 64 * 64;
        return at;
    }
    Rows rows(int count, int columns) {
        Rows r;
        r.stride = round_up(columns, 32);
        const size_t all = size_t(count) * r.stride;
        r.x = take<float>(all);
        r.high = take<int8_t>(all), r.low = take<int8_t>(all);
        r.scales = take<float>(all / 32), r.sums = take<float>(all / 32);
        r.integers32 = take<int32_t>(all / 32), r.integers16 = take<int32_t>(all / 16);
        return r;
    }
};

// What a thread has for itself.
struct Desk {
    Rows wide;       // one row, of any width
    uint8_t* bytes;  // 16 rows of unpacked weights
    float *tile, *second;  // [SLICE][16] products
    float* room;           // attention's sums
    float *key, *value;    // one head, padded
};

// The activations of up to SLICE rows; everything is allocated with the model.
struct Batch {
    Rows normed, mixed, hidden;
    float *x, *aside;         // [SLICE][stride of dim]
    float *q, *k, *v;         // [SLICE][heads or kv_heads * head_dim]
    float *cosines, *sines;   // [SLICE][rotary_dim / 2]
    std::vector<Desk> desks;
    std::unique_ptr<Memory> memory;

    // Of the slice at hand:
    int rows = 0, wanted = 0;
    const int32_t *ids, *positions;
    const int32_t* tables[SLICE];
    int wanted_rows[SLICE];
    float* logits;
    struct Run {
        int first, count;
    };
    std::vector<Run> runs;  // neighbours in one sequence

    explicit Batch(const Plan& p) {
        const size_t size = lay_out(p, nullptr);
        memory = std::make_unique<Memory>(size);
        lay_out(p, memory->data);
        runs.reserve(SLICE);
    }

    size_t lay_out(const Plan& p, uint8_t* base) {
        Carver carver{base};
        const int q_width = p.heads * p.head_dim, kv_width = p.kv_heads * p.head_dim;
        const int widest = std::max({p.dim, q_width, p.ffn_dim});
        const int width = round_up(p.head_dim, LANES);
        normed = carver.rows(SLICE, p.dim);
        mixed = carver.rows(SLICE, q_width);
        hidden = carver.rows(SLICE, p.ffn_dim);
        x = carver.take<float>(size_t(SLICE) * normed.stride);
        aside = carver.take<float>(size_t(SLICE) * normed.stride);
        q = carver.take<float>(size_t(SLICE) * q_width);
        k = carver.take<float>(size_t(SLICE) * kv_width);
        v = carver.take<float>(size_t(SLICE) * kv_width);
        cosines = carver.take<float>(size_t(SLICE) * p.rotary_dim / 2);
        sines = carver.take<float>(size_t(SLICE) * p.rotary_dim / 2);
        desks.resize(p.threads);
        for (Desk& desk : desks) {
            desk.wide = carver.rows(1, widest);
            desk.bytes = carver.take<uint8_t>(size_t(round_up(widest, 32)) * LANES);
            desk.tile = carver.take<float>(SLICE * LANES), desk.second = carver.take<float>(SLICE * LANES);
            desk.room = carver.take<float>(MOST_LOOKS * width);
            desk.key = carver.take<float>(width), desk.value = carver.take<float>(width);
        }
        return carver.used;
    }
};

Model::Model(const Plan& p)
    : plan(p), layers(p.layers), pages(pages_of(p.layers, p.kv_heads, p.head_dim)), weights(p.weight_bytes),
      cache(pages.page_bytes() * p.pages) {
    pages.data = cache.data;
    if (p.rates) rates.assign(p.rates, p.rates + p.rotary_dim / 2);
    if (p.slopes) slopes.assign(p.slopes, p.slopes + p.heads);
    for (int i = 0; i < p.layers; i++) layers[i].window = p.windows[i];
    employ(p.threads);
}

inline void Model::employ(int threads) {
    Plan changed = plan;
    changed.threads = threads;
    auto room = std::make_unique<Batch>(changed);
    pool = std::make_unique<Pool>(threads);
    batch = std::move(room);
    plan = changed;
}

}  // namespace qkv
