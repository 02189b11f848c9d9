// One thread's work on attention: a few rows of one key head through some of its keys.
#pragma once

#include "attention_few.h"

namespace {

constexpr int64_t kRows = 96;  // of a task, at most

// What a thread needs: for a block of keys, and the sums of a task that is computed whole.
struct Arrays {
    Number *queries, *key_panel, *value_panel, *chances;
    float *scores, *mixed, *total;
    Arrays(Arena& arena, int64_t padded)
        : queries(arena.take<Number>(kRows * padded)),
          key_panel(arena.take<Number>(kKeys * padded)),
          value_panel(arena.take<Number>(kKeys * padded)),
          chances(arena.take<Number>(kRows * kKeys)), scores(arena.take<float>(kRows * kKeys)),
          mixed(arena.take<float>(kRows * padded)), total(arena.take<float>(kRows * padded)) {}
};

class Worker : Arrays {
public:
    using Arrays::total;
    Worker(const Attention& attention, const Arrays& arrays) : Arrays(arrays), p(attention) {}

    // Add what the task's rows see to `seen` and `total` [rows][padded].
    void run(const Task& task, Seen* seen, float* total) {
        gather_queries(task);
        const int64_t left = task.end - task.begin, first = left < kKeys ? left : kKeys;
        p.ahead(task, p.keys_of(task, task.begin), task.begin).step(2 * p.size * first);
        for (int64_t part = task.begin; part < task.end; part += kPart) {
            Seen here[kRows];
            const int64_t end = part + kPart < task.end ? part + kPart : task.end;
            for (int64_t begin = part; begin < end; begin += kKeys) {
                const int64_t count = end - begin < kKeys ? end - begin : kKeys;
                see_block(task, begin, count, begin == part, here);
            }
            for (int64_t r = 0; r < task.rows; r++)
                merge_seen(seen[r], total + r * p.padded, here[r], mixed + r * p.padded, p.padded);
        }
    }

private:
    void gather_queries(const Task& task) {
        for (int64_t r = 0; r < task.rows; r++) {
            const bf16* from = p.query(task, r);
            Number* to = queries + r * p.padded;
            for (int64_t i = 0; i < p.size; i++) to[i] = to_number(from[i]);
            for (int64_t i = p.size; i < p.padded; i++) to[i] = 0;
        }
    }

    // Add what the task's rows see of keys [begin, begin + count) to `seen` and `mixed`; `fresh`:
    // they hold nothing yet.
    void see_block(const Task& task, int64_t begin, int64_t count, bool fresh, Seen* seen) {
        const int64_t width = (count + kLanes - 1) / kLanes * kLanes;
        const HeadRows keys = p.keys_of(task, begin), values = p.values_of(task, begin);
        const bool is_whole = count == kKeys && p.size % (2 * kLanes) == 0;
        const bool few = task.rows <= kMaxFewRows && is_whole;
        const Ahead next_values = p.ahead(task, values, begin);
        const Ahead next_keys = p.ahead(task, p.keys_of(task, begin + kKeys), begin + kKeys);
        if (few) {
            score_few<kMaxFewRows>(task.rows, scores, queries, keys, next_values);
        } else {
            fill_key_panel(keys, count, width, next_values);
            sum_products(task.rows,
                         {scores, queries, p.padded, key_panel, width, p.padded / kDeep, false});
        }
        for (int64_t r = 0; r < task.rows; r++)
            soften(seen[r], {scores + r * width, chances + r * width, width},
                   p.visible(task, r, begin, count), fresh ? nullptr : mixed + r * p.padded);
        if (p.hides_non_finite(task, begin, count)) {
            mix_by_token(task, begin, count, width, fresh);
        } else if (few) {
            mix_few<kMaxFewRows>(task.rows, mixed, chances, values, !fresh, next_keys);
        } else {
            fill_value_panel(values, count, width, next_keys);
            sum_products(task.rows,
                         {mixed, chances, width, value_panel, p.padded, width / kDeep, !fresh});
        }
    }

    // The values mixed, with a panel for each token that holds only what the token sees.
    void mix_by_token(const Task& task, int64_t begin, int64_t count, int64_t width,
                      bool fresh) const {
        for (int64_t row = 0, rows; row < task.rows; row += rows) {
            rows = p.rows_of_token(task, row);
            const int64_t visible = p.visible(task, row, begin, count);
            fill_value_panel(p.values_of(task, begin), visible, width, {nullptr});
            sum_products(rows, {mixed + row * p.padded, chances + row * width, width, value_panel,
                                p.padded, width / kDeep, !fresh});
        }
    }

    struct ScoreRow {
        float* scores;
        Number* chances;
        int64_t width;
    };

    // One row of scores to probabilities that are not yet divided by their sum; zeros from
    // `visible` on. `before`: the values mixed so far, which a larger score than all before it
    // makes smaller, or null.
    void soften(Seen& seen, const ScoreRow& row, int64_t visible, float* before) const {
        float* score = row.scores;
        const int64_t used = (visible + kLanes - 1) / kLanes * kLanes;
        // what is not visible was not computed, it may be anything
        for (int64_t i = visible; i < used; i++) score[i] = -INFINITY;
        Floats top = broadcast(seen.largest), scale = broadcast(p.scale);
        for (int64_t i = 0; i < used; i += kLanes) {
            Floats x = multiply(load(score + i), scale);
            store(score + i, x);
            top = maximum(x, top);
        }
        const float most = largest(top);
        if (before && most > seen.largest && seen.sum > 0) {
            const float less = std::exp(seen.largest - most);
            seen.sum *= less;
            for (int64_t i = 0; i < p.padded; i += kLanes)
                store(before + i, multiply(load(before + i), broadcast(less)));
        }
        seen.largest = most;
        const Floats shift = broadcast(most == -INFINITY ? 0 : most);
        Floats total = zeros();
        int64_t i = 0;
        for (; i + 4 * kLanes <= used; i += 4 * kLanes)
            soften_some<4>(total, score + i, row.chances + i, shift);
        for (; i < used; i += kLanes) soften_some<1>(total, score + i, row.chances + i, shift);
        for (; i < row.width; i += kLanes) store_numbers(row.chances + i, zeros());
        seen.sum += sum(total);
    }

    template <int64_t N>
    static void soften_some(Floats& total, const float* score, Number* chance, Floats shift) {
        Floats x[N];
        UNROLL for (int64_t v = 0; v < N; v++) x[v] = subtract(load(score + v * kLanes), shift);
        exponentials(x);
        UNROLL for (int64_t v = 0; v < N; v++) {
            total = add(total, x[v]);
            store_numbers(chance + v * kLanes, x[v]);
        }
    }

    // The panel of a block of keys: their numbers are the inputs, the keys the outputs.
    void fill_key_panel(const HeadRows& keys, int64_t count, int64_t width, Ahead ahead) const {
        const int64_t size = p.size, padded = p.padded;
        for (int64_t key = 0; key < width; key += kLanes)
            for (int64_t i = 0; i < padded; i += 2 * kLanes) {
                Words r[kLanes];
                ahead.step(4 * kLanes * kLanes);
                const bf16* from = keys.from + key * keys.stride + i;
                transpose_keys(r, from, keys.stride, count - key, size - i);
                Number* to = key_panel + i * width + kDeep * key;
                const int64_t words = padded - i >= 2 * kLanes ? kLanes : (padded - i) / 2;
                UNROLL for (int64_t j = 0; j < kLanes; j++)
                    UNROLL for (int64_t h = 0; h < kHalves; h++)
                        if (j < words)
                            store_factor(to + (2 * j + h * kDeep) * width, factor_of(r[j], h));
            }
    }

    // The panel of a block of values: the keys are the inputs, the numbers the outputs.
    void fill_value_panel(const HeadRows& values, int64_t count, int64_t width, Ahead ahead) const {
        const int64_t stride = values.stride, size = p.size, padded = p.padded;
        for (int64_t key = 0; key < width; key += kDeep) {
            const bf16* row = values.from + key * stride;
            ahead.step(2 * kDeep * size);
            Number* to = value_panel + key * padded;
            const int64_t whole = key + kDeep <= count ? size / kLanes * kLanes : 0;
            for (int64_t i = 0; i < whole; i += kLanes)
                store_factor(to + kDeep * i, load_values(row + i, stride));
            for (int64_t i = whole; i < padded; i += kLanes) {
                alignas(64) bf16 some[kDeep][kLanes];
                for (int64_t k = 0; k < kDeep; k++)
                    for (int64_t j = 0; j < kLanes; j++) {
                        const bool is_inside = key + k < count && i + j < size;
                        some[k][j] = is_inside ? row[k * stride + i + j] : 0;
                    }
                store_factor(to + kDeep * i, load_values(some[0], kLanes));
            }
        }
    }

    const Attention& p;
};

}  // namespace
