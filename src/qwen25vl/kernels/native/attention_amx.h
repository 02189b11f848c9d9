// One thread's work on attention by AMX's tiles: some rows of one key head through some of its
// keys.
//
// Both products are those of a linear layer: for the scores the keys of a part are the weights, for
// the mixed values its values are, turned round. Panels of a part are made once for all rows of a
// task; a block of up to 32 rows goes through scores, exponentials and values while it is in the
// caches. A part is done at once, so its largest score is known before the exponentials.
#pragma once

#include "attention.h"
#include "panel_bf16.h"

namespace {

constexpr int64_t kRows = 512;                 // of a task, at most
constexpr int64_t kBlockRows = kBf16TileRows;  // that go through a part together
constexpr int64_t kWide = 2 * kLanes;          // keys or numbers of a panel

inline int64_t in_whole(int64_t unit, int64_t count) { return (count + unit - 1) / unit * unit; }

// What a thread needs: for a part of the keys, for a block of rows, and the sums of a task that is
// computed whole.
//
//     queries      [block of rows][number / 32][R][32]    R: 32, or 16 in the last block
//     key_panel    [key / 32][number / 32][2][16][16][2], a panel for each 32 keys
//     value_panel  [number / 32][key / 32][2][16][16][2], a panel for each 32 numbers; the last may
//                  have one vector, of 16
//     scores       [key / 32][R][32];  chances the same in bfloat16
//     mixed        [number / 32][R][32], or [R][16] of a last panel of one vector
struct Arrays {
    bf16 *queries, *key_panel, *value_panel, *chances;
    float *scores, *mixed, *total;
    Arrays(Arena& arena, int64_t padded)
        : queries(arena.take<bf16>(kRows * in_whole(kWide, padded))),
          key_panel(arena.take<bf16>(kPart * in_whole(kWide, padded))),
          value_panel(arena.take<bf16>(kPart * padded)),
          chances(arena.take<bf16>(kBlockRows * kPart)),
          scores(arena.take<float>(kBlockRows * kPart)),
          mixed(arena.take<float>(kBlockRows * padded)), total(arena.take<float>(kRows * padded)) {}
};

// 2ˣ within 3·10⁻⁶, for x ≤ 0: 2 to the fraction by a polynomial that is exact at 0.
template <int64_t N>
FORCE_INLINE void powers_of_two(Floats (&x)[N]) {
    constexpr int kFractionOfFloor = 0x09;
    Floats f[N], p[N];
    UNROLL for (int64_t i = 0; i < N; i++) {
        f[i] = _mm512_reduce_ps(x[i], kFractionOfFloor);
        p[i] = multiply_add(f[i], broadcast(0.01342669f), broadcast(0.05224246f));
    }
    UNROLL for (int64_t i = 0; i < N; i++) p[i] = multiply_add(f[i], p[i], broadcast(0.24128021f));
    UNROLL for (int64_t i = 0; i < N; i++) p[i] = multiply_add(f[i], p[i], broadcast(0.69304484f));
    UNROLL for (int64_t i = 0; i < N; i++) p[i] = multiply_add(f[i], p[i], broadcast(1.f));
    UNROLL for (int64_t i = 0; i < N; i++) x[i] = times_power_of_two(p[i], x[i]);  // of its floor
}

class Worker : Arrays {
public:
    using Arrays::total;
    Worker(const Attention& attention, const Arrays& arrays)
        : Arrays(arrays), p(attention), deep_(in_whole(kWide, attention.size)) {}

    // Add what the task's rows see to `seen` and `total` [rows][padded].
    void run(const Task& task, Seen* seen, float* total) {
        gather_queries(task);
        const HeadRows first = p.keys_of(task, task.begin);
        const int64_t left = task.end - task.begin;
        p.ahead(task, first, task.begin).step(2 * p.size * (left < kWide ? left : kWide));
        for (int64_t begin = task.begin; begin < task.end; begin += kPart) {
            const int64_t count = task.end - begin < kPart ? task.end - begin : kPart;
            fill_panels(task, begin, count);
            for (int64_t row = 0; row < task.rows; row += kBlockRows) {
                const int64_t rest = task.rows - row, rows = rest < kBlockRows ? rest : kBlockRows;
                const int64_t head = task.head, end = begin + count;
                const Task block{task.segment, head, task.row + row, rows, begin, end};
                see_part(block, queries + row * deep_, seen + row, total + row * p.padded);
            }
        }
    }

private:
    static int64_t laid_out(int64_t rows) { return in_whole(kTileRows, rows); }

    void gather_queries(const Task& task) {
        for (int64_t row = 0; row < task.rows; row += kBlockRows) {
            const int64_t left = task.rows - row;
            const int64_t R = laid_out(left < kBlockRows ? left : kBlockRows);
            for (int64_t r = 0; r < R; r++) {
                const bf16* from = p.query(task, row + r);
                if (r < left && few_rows(task)) ask_for_row(from + p.group * p.q_head_stride);
                for (int64_t i = 0; i < deep_; i += kWide) {
                    const int64_t bytes = r < left ? 2 * (p.size - i) : 0;
                    store_words(queries + row * deep_ + i * R + r * kWide,
                                load_bytes(from + i, bytes));
                }
            }
        }
    }

    static bool few_rows(const Task& task) { return task.rows <= kMaxRowsAskAhead; }

    // Rows that lie far apart come slowly. So a few rows ask for those of the next head, which is
    // computed next; many rows, which stay with their head, for those of the keys to come.
    void ask_for_row(const bf16* from) const {
        for (int64_t i = 0; i < p.size; i += 32) ask_for(from + i);
    }

    void fill_panels(const Task& task, int64_t begin, int64_t count) {
        const HeadRows keys = p.keys_of(task, begin), values = p.values_of(task, begin);
        Ahead next = p.ahead(task, values, begin);
        const bool is_spread = p.k_row_stride >= p.heads * p.size;  // head beside head
        const bool few = few_rows(task);
        const int64_t next_key = few ? p.size : kLanes * keys.stride;
        const int64_t next_value = few ? p.size : kLanes * values.stride;
        for (int64_t key = 0; key < count; key += kLanes)
            for (int64_t i = 0; i < deep_; i += kWide) {
                Words r[kLanes];
                next.step(2 * kLanes * kWide);
                if (is_spread && i == 0)
                    for (int64_t j = 0; j < kLanes; j++)
                        ask_for_row(keys.from + (key + j) * keys.stride + next_key);
                transpose_keys(r, keys.from + key * keys.stride + i, keys.stride, count - key,
                               p.size - i);
                bf16* to = key_panel + key / kWide * kWide * deep_ + i * kWide +
                           vector_of_panel(key / kLanes % 2);
                for (int64_t j = 0; j < kLanes; j++) store_words(to + j * pair_stride(2), r[j]);
            }
        next = p.ahead(task, p.keys_of(task, begin + kPart), begin + kPart);
        fill_value_panel(values, count, in_whole(kWide, count), is_spread ? next_value : 0, next);
    }

    // Zeros behind the first `count` keys; next_value: how far from a value to what is asked for,
    // or 0.
    void fill_value_panel(const HeadRows& values, int64_t count, int64_t width, int64_t next_value,
                          Ahead next) const {
        for (int64_t key = 0; key < width; key += 2) {
            const bf16* row = values.from + key * values.stride;
            next.step(4 * p.size);
            const int64_t rows = key < count ? count - key : 0;
            if (next_value)
                for (int64_t j = 0; j < 2; j++) ask_for_row(row + j * values.stride + next_value);
            for (int64_t i = 0; i < p.padded; i += kLanes) {
                const int64_t step = is_alone(i) ? kWide * kLanes : kWide * kWide;
                bf16* to = value_panel + i / kWide * kWide * width + key / kWide * step +
                           vector_of_panel(i / kLanes % 2) + key % kWide * kLanes;
                store_words(to, pair_of(row + i, values.stride, rows, p.size - i));
            }
        }
    }

    // kLanes numbers of two keys, side by side; zeros behind the last key and number.
    static Words pair_of(const bf16* from, int64_t stride, int64_t keys, int64_t numbers) {
        if (keys >= 2 && numbers >= kLanes) return interleave(from, from + stride);
        alignas(64) bf16 some[2][kLanes] = {};
        for (int64_t k = 0; k < 2 && k < keys; k++)
            for (int64_t j = 0; j < kLanes && j < numbers; j++) some[k][j] = from[k * stride + j];
        return interleave(some[0], some[1]);
    }

    // A block of rows through a part of the keys.
    void see_part(const Task& block, const bf16* q, Seen* seen, float* total) {
        const int64_t count = block.end - block.begin, width = in_whole(kWide, count);
        const int64_t most = p.visible(block, block.rows - 1, block.begin, count);
        const int64_t used = in_whole(kWide, most), R = laid_out(block.rows);
        const TileRun fresh{true, nullptr};
        for (int64_t key = 0; key < used; key += kWide)
            bf16_tile_of<kBlockRows, 2>(R, scores + key * R, q, key_panel + key * deep_, deep_ / 2,
                                        fresh);
        Seen here[kBlockRows];
        for (int64_t r = 0; r < block.rows; r++) {
            const int64_t visible = p.visible(block, r, block.begin, count);
            if (visible > 0) here[r] = soften(r, R, visible, used);
            else clear_chances(r, R, 0, used);
        }
        const int64_t mixed_keys = used < count ? used : count;
        const bool hides = p.hides_non_finite(block, block.begin, mixed_keys);
        for (int64_t row = 0, rows = block.rows; row < block.rows; row += rows) {
            if (hides) {  // a panel for each token that holds only what the token sees
                rows = p.rows_of_token(block, row);
                fill_value_panel(p.values_of(block, block.begin),
                                 p.visible(block, row, block.begin, count), width, 0, {nullptr});
            }
            mix(R, used, width);
            for (int64_t r = row; r < row + rows; r++) add_seen(r, R, seen[r], total, here[r]);
        }
        if (hides)  // for the blocks of rows to come
            fill_value_panel(p.values_of(block, block.begin), count, width, 0, {nullptr});
    }

    void mix(int64_t R, int64_t used, int64_t width) const {
        const TileRun fresh{true, nullptr};
        for (int64_t i = 0; i < p.padded && used > 0; i += kWide) {
            const bf16* panel = value_panel + i * width;
            if (p.padded - i > kLanes)
                bf16_tile_of<kBlockRows, 2>(R, mixed + i * R, chances, panel, used / 2, fresh);
            else bf16_tile_of<kBlockRows, 1>(R, mixed + i * R, chances, panel, used / 2, fresh);
        }
    }

    // Scores of row r to probabilities that are not yet divided by their sum; zeros from `visible`
    // to `used`.
    Seen soften(int64_t r, int64_t R, int64_t visible, int64_t used) {
        const int64_t stride = R * kWide, whole = visible / kWide * kWide;
        float* score = scores + r * kWide;
        bf16* chance = chances + r * kWide;
        if (visible > whole) {
            float* last = score + whole * R;
            for (int64_t i = visible - whole; i < kWide; i++) last[i] = -INFINITY;
        }
        const int64_t steps = in_whole(kWide, visible) / kWide;
        Floats tops[2] = {broadcast(-INFINITY), broadcast(-INFINITY)};
        for (int64_t i = 0; i < steps; i++)
            for (int64_t v = 0; v < 2; v++)
                tops[v] = maximum(load(score + i * stride + v * kLanes), tops[v]);
        const float most = largest(maximum(tops[0], tops[1]));
        // the largest score is subtracted before anything is rounded: its own power is 1 exactly
        const Floats top = broadcast(most == -INFINITY ? 0 : most);
        const Floats scale = broadcast(p.scale * 1.44269504f);
        Floats sums[2] = {zeros(), zeros()};
        for (int64_t i = 0; i < steps; i++) {
            Floats x[2];
            for (int64_t v = 0; v < 2; v++)
                x[v] = multiply(subtract(load(score + i * stride + v * kLanes), top), scale);
            powers_of_two(x);
            for (int64_t v = 0; v < 2; v++) sums[v] = add(sums[v], x[v]);
            store_words(chance + i * stride, (Words)_mm512_cvtne2ps_pbh(x[1], x[0]));
        }
        clear_chances(r, R, steps * kWide, used);
        return {most * p.scale, sum(add(sums[0], sums[1]))};
    }

    void clear_chances(int64_t r, int64_t R, int64_t from, int64_t to) const {
        for (int64_t i = from; i < to; i += kWide)
            store_words(chances + i * R + r * kWide, Words{});
    }

    // What row r of a block saw of a part.
    void add_seen(int64_t r, int64_t R, Seen& seen, float* total, const Seen& here) const {
        if (here.sum == 0) return;
        const Shares shares = add_state(seen, here);
        for (int64_t i = 0; i < p.padded; i += kLanes) {
            const float* panel = mixed + i / kWide * kWide * R;
            add_mixed(total + r * p.padded + i,
                      panel + (is_alone(i) ? r * kLanes : r * kWide + i % kWide), shares);
        }
    }

    // Whether the numbers from i on are the only vector of their panel.
    bool is_alone(int64_t i) const { return i % kWide == 0 && i + kLanes == p.padded; }

    const Attention& p;
    const int64_t deep_;  // the head size in whole steps of the tiles
};

}  // namespace
