// What attention works on: the operands, tasks, and what is kept between two of them.
#pragma once

#include <cmath>

#include "kernels.h"
#include "panel.h"

namespace {

constexpr int64_t kPart = 512;            // keys after which the sums begin anew
constexpr int64_t kMaxRowsInParts = 96;   // of a segment whose keys are shared out among threads
constexpr int64_t kMaxRowsAskAhead = 64;  // for whom keys and values are asked for before their use

// What a row has seen: the largest score, the sum of exponentials, and the weighted values (in a
// matrix beside it).
struct Seen {
    float largest = -INFINITY, sum = 0;
};

// Rows [row, row + rows) of one key head of one segment, over keys [begin, end). `kept`: where the
// rows of one of several parts keep what they have seen; negative: the task is whole.
struct Task {
    int64_t segment, head, row, rows, begin, end, kept = -1;
};

// Reading ahead: a few rows wait for memory, not for arithmetic. While a block of keys or values is
// used, the next one is asked for, in the order in which it lies there: asked for as it is used,
// row beside row, it arrives at half the speed.
struct Ahead {
    const char* next;  // or null
    void step(int64_t bytes) {
        if (!next) return;
        for (int64_t i = 0; i < bytes; i += 64) ask_for(next + i);
        next += bytes;
    }
};

// Keys or values of one head, rows of `size` numbers that are `stride` apart.
struct HeadRows {
    const bf16* from;
    int64_t stride, size;
};

// Words of two numbers of kLanes keys, one vector for each two numbers; zeros behind the last key
// and number.
inline void transpose_keys(Words r[kLanes], const bf16* from, int64_t stride, int64_t keys,
                           int64_t numbers) {
    if (keys >= kLanes && numbers >= 2 * kLanes)
        UNROLL for (int64_t j = 0; j < kLanes; j++) r[j] = load_words(from + j * stride);
    else if (keys >= kLanes)
        UNROLL for (int64_t j = 0; j < kLanes; j++)
            r[j] = load_bytes(from + j * stride, 2 * numbers);
    else
        for (int64_t j = 0; j < kLanes; j++)
            r[j] = j < keys ? load_bytes(from + j * stride, 2 * numbers) : Words{};
    transpose(r);
}

// q, out and the segments as KERNEL(attend) has them; `group` query heads share a key head.
struct Attention {
    bf16* out;
    const bf16* q;
    int64_t q_row_stride, q_head_stride;
    const Segment* segments;
    int64_t k_row_stride, v_row_stride, heads, group, size;
    int64_t padded;  // the head size in whole vectors
    float scale;
    bool causal;

    const bf16* query(const Task& task, int64_t r) const {
        const int64_t token = segments[task.segment].start + (task.row + r) / group;
        const int64_t head = task.head * group + (task.row + r) % group;
        return q + token * q_row_stride + head * q_head_stride;
    }

    HeadRows keys_of(const Task& task, int64_t begin) const {
        const Segment& segment = segments[task.segment];
        const bf16* from = segment.keys + task.head * segment.k_head_stride;
        return {from + begin * k_row_stride, k_row_stride, size};
    }

    HeadRows values_of(const Task& task, int64_t begin) const {
        const Segment& segment = segments[task.segment];
        const bf16* from = segment.values + task.head * segment.v_head_stride;
        return {from + begin * v_row_stride, v_row_stride, size};
    }

    // How many of the `count` keys from `begin` on a row sees.
    int64_t visible(const Task& task, int64_t r, int64_t begin, int64_t count) const {
        if (!causal) return count;
        const Segment& segment = segments[task.segment];
        const int64_t last = segment.num_keys - segment.length + (task.row + r) / group;
        return last < begin ? 0 : last - begin < count ? last - begin + 1 : count;
    }

    // Whether a value that some of the task's rows may not see, of keys [begin, begin + count), is
    // NaN or infinite: times a probability of 0 it would be NaN in their sums. Looks only at values
    // from the first row's own token on.
    bool hides_non_finite(const Task& task, int64_t begin, int64_t count) const {
        const int64_t seen = visible(task, 0, begin, count);
        if (seen == count) return false;
        const HeadRows values = values_of(task, begin);
        uint16_t found = 0;  // its highest bit: an exponent of all ones has carried
        for (int64_t key = seen; key < count; key++)
            for (int64_t i = 0; i < size; i++)
                found |= (uint16_t)((values.from[key * values.stride + i] & 0x7f80) + 0x80);
        return found >> 15;
    }

    // The rows of a task from `row` on that belong to one token, and so see the same keys.
    int64_t rows_of_token(const Task& task, int64_t row) const {
        const int64_t left = task.rows - row, rest = group - (task.row + row) % group;
        return left < rest ? left : rest;
    }

    // A block that a few rows will read; nothing for many rows, and where rows do not follow one
    // another in memory.
    Ahead ahead(const Task& task, const HeadRows& block, int64_t begin) const {
        const bool is_dense = block.stride == size;
        const bool is_there = begin < segments[task.segment].num_keys;
        const bool worth = task.rows <= kMaxRowsAskAhead && is_dense && is_there;
        return {worth ? (const char*)block.from : nullptr};
    }

    void finish(const Task& task, const Seen* seen, const float* total) const {
        for (int64_t r = 0; r < task.rows; r++) {
            const int64_t token = segments[task.segment].start + (task.row + r) / group;
            const int64_t head = task.head * group + (task.row + r) % group;
            bf16* to = out + (token * heads + head) * size;
            const Floats inverse = broadcast(1 / seen[r].sum);
            const float* from = total + r * padded;
            int64_t i = 0;
            for (; i + 2 * kLanes <= size; i += 2 * kLanes)
                store_two(to + i, multiply(load(from + i), inverse),
                          multiply(load(from + i + kLanes), inverse));
            for (; i < size; i += kLanes) {
                const int64_t left = size - i < kLanes ? size - i : kLanes;
                store_first(to + i, multiply(load(from + i), inverse), left);
            }
        }
    }
};

// What the values mixed before, and those mixed now, are to be multiplied with when they are added.
struct Shares {
    float before, now;
};
inline Shares add_state(Seen& seen, const Seen& more) {
    const float top = seen.largest > more.largest ? seen.largest : more.largest;
    const float before = seen.sum == 0 ? 0 : std::exp(seen.largest - top);
    const float now = std::exp(more.largest - top);
    seen = {top, seen.sum * before + more.sum * now};
    return {before, now};
}
inline void add_mixed(float* total, const float* mixed, Shares shares) {  // of one vector
    const Floats kept = multiply(load(total), broadcast(shares.before));
    store(total, multiply_add(load(mixed), broadcast(shares.now), kept));
}

// What was seen of more keys, to what was seen before.
inline void merge_seen(Seen& seen, float* total, const Seen& more, const float* mixed,
                       int64_t count) {
    if (more.sum == 0) return;
    const Shares shares = add_state(seen, more);
    for (int64_t i = 0; i < count; i += kLanes) add_mixed(total + i, mixed + i, shares);
}

}  // namespace
