// A slice of rows through all layers.
//
// All threads run the same straight line (`Walk::run`), phase by phase (pool.h): the output columns of a product, the rows
// of a norm, the heads of an attention. A thread may come late to a phase that is over, and then touches nothing of it:
// all that is read or written is so within a `share`. With a single row, what costs less than a phase (norms,
// quantising) is done by every thread for itself, before its first piece.
#pragma once

#include "model.h"

namespace qkv {

// One thread's walk through one slice.
struct Walk {
    Model& m;
    Batch& b;
    Pool::Hand hand;
    const Plan& p = m.plan;
    Desk& desk = b.desks[hand.thread];
    int rows = b.rows;

    // A phase: f(i) for 0 .. count - 1, shared out; `first` before this thread's first. Its time is spent on `phase`.
    template <class First, class F>
    void share([[maybe_unused]] Phase phase, int count, First first, F f) {
        hand.share(count, first, f);
#ifdef QKV_PROFILE
        if (hand.thread == 0) {
            const double before = m.since;
            m.since = now();
            m.profile[phase] += m.since - before;
        }
#endif
    }
    template <class F>
    void share(Phase phase, int count, F f) {
        share(phase, count, [] {}, f);
    }

    float* x_row(int r) { return b.x + size_t(r) * b.normed.stride; }

    // A norm of x(r), ready for products: a function that gives the rows. It is a phase unless there is one row, which
    // each thread makes for itself when it asks.
    template <class X>
    auto normalised(X x, const Vector& weight, const Vector& bias) {
        auto one = [this, x, &weight, &bias](const Rows& to, int r) {
            norm(x(r), p.dim, p.rms, p.norm_eps, weight, bias, to.row(r));
            if (m.quantised) quantise(to, r, p.dim, m.sixteens);
        };
        if (rows > 1) share(PREPARE, rows, [&](int r) { one(b.normed, r); });
        return [this, one] {
            if (rows > 1) return b.normed;
            one(desk.wide, 0);
            return desk.wide;
        };
    }

    // The same of rows as they are.
    auto prepared(const Rows& from, int columns) {
        if (rows > 1 && m.quantised)
            share(PREPARE, rows, [&](int r) { quantise(from, r, columns, m.sixteens); });
        return [this, from, columns] {
            if (rows > 1 || !m.quantised) return from;
            Rows own = desk.wide;
            own.x = from.x;
            quantise(own, 0, columns, m.sixteens);
            return own;
        };
    }

    // f(group, in) for all 16 columns of products of what `input` gives.
    template <class Input, class F>
    void products(Phase phase, int groups, Input input, F f) {
        Rows in;
        share(phase, groups, [&] { in = input(); }, [&](int group) { f(group, in); });
    }

    void multiply(const Matrix& matrix, int group, const Rows& in, float* tile) {
        product(matrix, group, in, rows, m.amx, desk.bytes, tile);
    }

    // Each of a tile's rows, with its bias: f(row, first column, how many, 16 numbers).
    template <class F>
    void each_row(const Matrix& matrix, int group, const float* tile, const Vector& bias, F f) {
        const int column = group * LANES, count = std::min(LANES, matrix.rows - column);
        const Lanes plus = bias.empty() ? Lanes{} : load_lanes(&bias[column]);
        for (int r = 0; r < rows; r++) f(r, column, count, load_lanes(tile + r * LANES) + plus);
    }

    static void put(float* to, int count, Lanes v) { std::memcpy(to, &v, count * sizeof(float)); }

    void embed() {
        const int half = p.rotary_dim / 2;
        share(EMBED, rows, [&](int r) {
            float* x = x_row(r);
            unpack_row(m.matrices[TOKEN], b.ids[r], x);
            for (int i = 0; i < p.dim; i++) x[i] *= p.embed_scale;
            if (m.matrices[POSITION].data) {
                unpack_row(m.matrices[POSITION], b.positions[r], desk.wide.x);
                for (int i = 0; i < p.dim; i++) x[i] += desk.wide.x[i];
            }
            if (!m.vectors[EMBED_NORM].empty())
                norm(x, p.dim, p.rms, p.norm_eps, m.vectors[EMBED_NORM], m.vectors[EMBED_NORM_BIAS], x);
            for (int i = 0; i < (m.rates.empty() ? 0 : half); i++) {
                const float angle = float(b.positions[r]) * m.rates[i];
                b.cosines[r * half + i] = std::cos(angle), b.sines[r * half + i] = std::sin(angle);
            }
        });
    }

    // q, k and v of all rows.
    template <class Input>
    void project(const Layer& layer, Input input) {
        float* to[] = {b.q, b.k, b.v};
        const int first[] = {0, layer.matrices[Q].groups(), layer.matrices[Q].groups() + layer.matrices[K].groups()};
        products(PROJECT, first[V] + layer.matrices[V].groups(), input, [&](int i, const Rows& in) {
            const int which = i < first[K] ? Q : i < first[V] ? K : V;
            const Matrix& matrix = layer.matrices[which];
            multiply(matrix, i - first[which], in, desk.tile);
            each_row(matrix, i - first[which], desk.tile, layer.vectors[Q_BIAS + which],
                     [&](int r, int column, int count, Lanes v) {
                         put(to[which] + size_t(r) * matrix.rows + column, count, v);
                     });
        });
    }

    // RoFormer (2104.09864), eq. 34, in the half-split order.
    void rotate(float* head, int r) {
        const int half = p.rotary_dim / 2;
        const float *cosine = b.cosines + r * half, *sine = b.sines + r * half;
        for (int i = 0; i < half; i++) {
            const float left = head[i], right = head[i + half];
            head[i] = left * cosine[i] - right * sine[i];
            head[i + half] = right * cosine[i] + left * sine[i];
        }
    }

    void head_norm(float* head, const Vector& weight, const Vector& bias) {
        if (weight.empty()) return;
        std::copy_n(head, p.head_dim, desk.key);  // padded
        norm(desk.key, p.head_dim, p.rms, p.norm_eps, weight, bias, desk.value);
        std::copy_n(desk.value, p.head_dim, head);
    }

    // Queries are turned and scaled in place; keys and values go into their pages.
    void place(int index, const Layer& layer) {
        const int units = p.heads + p.kv_heads, head_dim = p.head_dim;
        share(PLACE, rows * units, [&](int i) {
            const int r = i / units, unit = i % units;
            if (unit < p.heads) {
                float* q = b.q + (size_t(r) * p.heads + unit) * head_dim;
                head_norm(q, layer.vectors[Q_NORM], layer.vectors[Q_NORM_BIAS]);
                if (!m.rates.empty()) rotate(q, r);
                for (int d = 0; d < head_dim; d++) q[d] *= p.scale;
                return;
            }
            const int head = unit - p.heads, position = b.positions[r];
            float* k = b.k + (size_t(r) * p.kv_heads + head) * head_dim;
            head_norm(k, layer.vectors[K_NORM], layer.vectors[K_NORM_BIAS]);
            if (!m.rates.empty()) rotate(k, r);
            std::copy_n(k, head_dim, desk.key);
            std::copy_n(b.v + (size_t(r) * p.kv_heads + head) * head_dim, head_dim, desk.value);
            const Kept kept = m.pages.at(b.tables[r][position / PAGE], index, head);
            remember(kept, m.pages.width, position % PAGE, desk.key, desk.value);
        });
    }

    // Rows of one run and the query heads of one key head share its pages, up to MOST_LOOKS at a time.
    void look(int index, const Layer& layer) {
        const int group = p.heads / p.kv_heads;
        // Heads that share keys go together, unless there are threads that would have nothing.
        const int shares = int(b.runs.size()) * p.kv_heads, wanted = (p.threads + shares - 1) / shares;
        const int piece = std::min((group + wanted - 1) / wanted, MOST_LOOKS), pieces = (group + piece - 1) / piece;
        const int units = p.kv_heads * pieces;
        share(LOOK, int(b.runs.size()) * units, [&](int i) {
            const auto run = b.runs[i / units];
            const int head = i % units / pieces, part = i % units % pieces * piece;
            const int heads = std::min(piece, group - part);
            for (int first = run.first; first < run.first + run.count;) {
                const int count = std::min(run.first + run.count - first, MOST_LOOKS / heads);
                Look looks[MOST_LOOKS];
                for (int n = 0; n < count * heads; n++) {
                    const int r = first + n / heads, query = head * group + part + n % heads;
                    const size_t at = size_t(query) * p.head_dim;
                    looks[n] = {b.q + size_t(r) * p.heads * p.head_dim + at, b.mixed.row(r) + at, b.positions[r],
                                m.slopes.empty() ? 0.0f : m.slopes[query]};
                }
                attend(count * heads, m.pages, b.tables[first], index, head, p.head_dim, layer.window, p.score_cap,
                       looks, desk.room);
                first += count;
            }
        });
    }

    // What a layer gave, set aside whole: normed, then added to the residual.
    void add_normed(const Vector& weight, const Vector& bias) {
        share(PREPARE, rows, [&](int r) {
            float *x = x_row(r), *new_row = b.aside + size_t(r) * b.normed.stride;
            norm(new_row, p.dim, p.rms, p.norm_eps, weight, bias, new_row);
            for (int i = 0; i < p.dim; i++) x[i] += new_row[i];
        });
    }

    template <class Input>
    void attention_out(const Layer& layer, Input input) {
        const Matrix& out = layer.matrices[OUT];
        const bool post_norm = !layer.vectors[ATTENTION_POST_NORM].empty();
        float* to = p.parallel || post_norm ? b.aside : b.x;
        products(OUTPUT, out.groups(), input, [&](int group, const Rows& in) {
            multiply(out, group, in, desk.tile);
            each_row(out, group, desk.tile, layer.vectors[OUT_BIAS], [&](int r, int column, int count, Lanes v) {
                float* at = to + size_t(r) * b.normed.stride + column;
                put(at, count, post_norm ? v : load_lanes(x_row(r) + column) + v);
            });
        });
        if (post_norm) add_normed(layer.vectors[ATTENTION_POST_NORM], layer.vectors[ATTENTION_POST_NORM_BIAS]);
    }

    template <class Input>
    void feed_forward(const Layer& layer, Input input) {
        const Matrix& up = layer.matrices[UP];
        products(FFN_UP, up.groups(), input, [&](int group, const Rows& in) {
            multiply(up, group, in, desk.tile);
            if (p.gated) multiply(layer.matrices[GATE], group, in, desk.second);
            const Vector& gate_bias = layer.vectors[GATE_BIAS];
            const Lanes plus = gate_bias.empty() ? Lanes{} : load_lanes(&gate_bias[group * LANES]);
            each_row(up, group, desk.tile, layer.vectors[UP_BIAS], [&](int r, int column, int count, Lanes v) {
                Lanes y = p.gated ? activate(p.activation, load_lanes(desk.second + r * LANES) + plus) * v
                                  : activate(p.activation, v);
                put(b.hidden.row(r) + column, count, y);
            });
        });
        const Matrix& down = layer.matrices[DOWN];
        const bool post_norm = !layer.vectors[FFN_POST_NORM].empty();
        products(FFN_DOWN, down.groups(), prepared(b.hidden, p.ffn_dim), [&](int group, const Rows& in) {
            multiply(down, group, in, desk.tile);
            each_row(down, group, desk.tile, layer.vectors[DOWN_BIAS], [&](int r, int column, int count, Lanes v) {
                float* aside = b.aside + size_t(r) * b.normed.stride;
                const float* before = p.parallel ? aside : x_row(r);
                if (post_norm) put(aside + column, count, v);
                else put(x_row(r) + column, count, load_lanes(before + column) + v);
            });
        });
        if (post_norm) add_normed(layer.vectors[FFN_POST_NORM], layer.vectors[FFN_POST_NORM_BIAS]);
    }

    void head() {
        rows = b.wanted;
        if (rows == 0) return;
        auto input = normalised([this](int w) { return x_row(b.wanted_rows[w]); }, m.vectors[FINAL_NORM],
                                m.vectors[FINAL_NORM_BIAS]);
        const Matrix& matrix = m.matrices[HEAD].data ? m.matrices[HEAD] : m.matrices[TOKEN];
        products(LOGITS, matrix.groups(), input, [&](int group, const Rows& in) {
            multiply(matrix, group, in, desk.tile);
            each_row(matrix, group, desk.tile, m.vectors[HEAD_BIAS], [&](int w, int column, int count, Lanes v) {
                put(b.logits + size_t(w) * p.vocab + column, count, p.logit_cap > 0 ? capped(v, p.logit_cap) : v);
            });
        });
    }

    void run() {
#ifdef QKV_PROFILE
        if (hand.thread == 0) m.since = now();
#endif
        if (m.amx) amx_begin();
        embed();
        auto x = [this](int r) { return x_row(r); };
        for (int i = 0; i < p.layers; i++) {
            const Layer& layer = m.layers[i];
            project(layer, normalised(x, layer.vectors[ATTENTION_NORM], layer.vectors[ATTENTION_NORM_BIAS]));
            place(i, layer);
            look(i, layer);
            attention_out(layer, prepared(b.mixed, p.heads * p.head_dim));
            feed_forward(layer, normalised(x, layer.vectors[FFN_NORM], layer.vectors[FFN_NORM_BIAS]));
        }
        head();
        if (m.amx) amx_end();
    }
};

}  // namespace qkv
