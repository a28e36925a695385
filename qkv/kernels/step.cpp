// The library's functions: a model is opened, filled with weights, and steps: token ids in, logits out.
//
// NativeRunner (Python) has checked shapes, kinds, ids and tables before anything comes here.

#include "walk.h"

using namespace qkv;

extern "C" {

int32_t qkv_page() { return PAGE; }

int64_t qkv_page_bytes(int32_t layers, int32_t kv_heads, int32_t head_dim) {
    return int64_t(pages_of(layers, kv_heads, head_dim).page_bytes());
}

int64_t qkv_packed_bytes(int32_t kind, int32_t rows, int32_t columns) {
    return (int64_t(round_up(rows, LANES) / LANES) * group_bytes(kind, columns) + 63) / 64 * 64;
}

Model* qkv_open(const Plan* plan) try {
    return new Model(*plan);
} catch (const std::exception&) {  // no memory, no thread
    return nullptr;
}

// Whether the next step will run on so many threads; if the system has none left, all stays as it is.
int32_t qkv_threads(Model* model, int32_t threads) try {
    model->employ(threads);
    return 1;
} catch (const std::exception&) {
    return 0;
}

void qkv_close(Model* model) { delete model; }

// Layer -1 holds what belongs to no layer. The rows are packed; the caller may forget them.
void qkv_matrix(Model* model, int32_t layer, int32_t slot, int32_t kind, int32_t rows, int32_t columns,
                const uint8_t* data) {
    Matrix& matrix = layer < 0 ? model->matrices[slot] : model->layers[layer].matrices[slot];
    matrix.kind = kind, matrix.rows = rows, matrix.columns = columns;
    matrix.data = model->weights.data + model->packed;
    model->packed += qkv_packed_bytes(kind, rows, columns);
    model->quantised |= matrix.quantised(), model->sixteens |= kind == Q6_K;
    model->pool->run([&](Pool::Hand hand) {
        hand.share(matrix.groups(), [&](int group) { pack(matrix, data, group, group + 1); });
    });
}

void qkv_vector(Model* model, int32_t layer, int32_t slot, int32_t count, const float* data) {
    Vector& vector = layer < 0 ? model->vectors[slot] : model->layers[layer].vectors[slot];
    vector.assign(round_up(count, LANES), 0.0f);
    std::copy_n(data, count, vector.begin());
}

// Row r is token ids[r] at positions[r] of the sequence whose pages are tables[starts[r]] and on; rows of one sequence
// follow each other. Fills `logits` with a row of V for each r where wanted[r]. The numbers were checked in Python.
void qkv_step(Model* model, int32_t rows, const int32_t* ids, const int32_t* positions, const int32_t* tables,
              const int32_t* starts, const uint8_t* wanted, float* logits) {
    Batch& b = *model->batch;
    for (int first = 0; first < rows; first += SLICE) {
        b.rows = std::min(SLICE, rows - first), b.wanted = 0;
        b.ids = ids + first, b.positions = positions + first, b.logits = logits;
        b.runs.clear();
        for (int r = 0; r < b.rows; r++) {
            const int row = first + r;
            b.tables[r] = tables + starts[row];
            if (wanted[row]) b.wanted_rows[b.wanted++] = r;
            const bool follows = r && starts[row] == starts[row - 1] && positions[row] == positions[row - 1] + 1;
            // Short runs, so that they can be shared out.
            if (follows && b.runs.back().count < MOST_LOOKS) b.runs.back().count++;
            else b.runs.push_back({r, 1});
        }
        model->pool->run([&](Pool::Hand hand) { Walk{*model, b, hand}.run(); });
        logits += size_t(b.wanted) * model->plan.vocab;
    }
}

#ifdef QKV_PROFILE
void qkv_profile(Model* model, double* seconds) { std::copy_n(model->profile, PHASES, seconds); }
#endif

}  // extern "C"
