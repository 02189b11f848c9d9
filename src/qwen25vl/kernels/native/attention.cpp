// out = softmax(scale · q·kᵀ) · v, head by head and segment by segment, without ever holding all scores.
//
// The query heads that share a key head become rows of one matrix, so each key is read once for all of them: row
// i · G + g is head g of the group, token i. A task takes up to kRows such rows through the keys in blocks of kKeys:
// scores = q·kᵀ of a block in float32; the largest so far is subtracted before the exponential (its growth rescales
// what was summed before); probabilities, rounded to bfloat16, times v are added up in float32 (both products: attention_tiles.h).
//
// Sums begin anew every kPart keys and are merged in order. So the parts of a long context can be computed by different
// threads, and a row's bits depend on its own keys only: not on its neighbours, the threads, or what else is asked.
#include <cmath>

#include "attention_tiles.h"
#include "kernels.h"

namespace {

constexpr int64_t kRows = 96, kPart = 512;
constexpr int64_t kSome = 64;  // rows up to which keys and values are asked for ahead of their use

struct Problem {
    bf16* out;
    const bf16* q;
    int64_t q_row_stride, q_head_stride;
    const Segment* segments;
    int64_t k_row_stride, v_row_stride, heads, group, size, padded;  // padded: the head size in whole vectors
    float scale;
    bool causal;
};

// Rows [row, row + rows) of one key head of one segment, over keys [begin, end).
struct Task {
    int64_t segment, head, row, rows, begin, end;
};

// What a row has seen: the largest score, the sum of exponentials, and the weighted values (in a matrix beside it).
struct Seen {
    float largest = -INFINITY, sum = 0;
};

// What a thread needs: for a block of keys, and the sums of a task that is computed whole.
struct Arrays {
    Number *queries, *key_panel, *value_panel, *chances;
    float *scores, *mixed, *total;
    Arrays(Arena& arena, int64_t padded)
        : queries(arena.take<Number>(kRows * padded)), key_panel(arena.take<Number>(kKeys * padded)),
          value_panel(arena.take<Number>(kKeys * padded)), chances(arena.take<Number>(kRows * kKeys)),
          scores(arena.take<float>(kRows * kKeys)), mixed(arena.take<float>(kRows * padded)),
          total(arena.take<float>(kRows * padded)) {}
};

class Worker : Arrays {
public:
    using Arrays::total;
    Worker(const Problem& problem, const Arrays& arrays) : Arrays(arrays), p(problem) {}

    // Add what the task's rows see to `seen` and `total` [rows, padded].
    void run(const Task& task, Seen* seen, float* total) {
        const int64_t start = p.segments[task.segment].start, size = p.size, padded = p.padded;
        for (int64_t r = 0; r < task.rows; r++) {
            const bf16* from = p.q + (start + (task.row + r) / p.group) * p.q_row_stride +
                               (task.head * p.group + (task.row + r) % p.group) * p.q_head_stride;
            Number* to = queries + r * padded;
            for (int64_t i = 0; i < size; i++) to[i] = to_number(from[i]);
            for (int64_t i = size; i < padded; i++) to[i] = 0;
        }
        const int64_t first = task.end - task.begin < kKeys ? task.end - task.begin : kKeys;
        ahead(task, keys_of(task, task.begin), p.k_row_stride, task.begin).step(2 * size * first);
        for (int64_t part = task.begin; part < task.end; part += kPart) {
            Seen here[kRows];
            int64_t end = part + kPart < task.end ? part + kPart : task.end;
            for (int64_t begin = part; begin < end; begin += kKeys)
                see_block(task, begin, end - begin < kKeys ? end - begin : kKeys, begin == part, here);
            for (int64_t r = 0; r < task.rows; r++)
                merge(seen[r], total + r * p.padded, here[r], mixed + r * p.padded, p.padded);
        }
    }

    static void merge(Seen& seen, float* total, const Seen& more, const float* mixed, int64_t count) {
        if (more.sum == 0) return;
        float top = seen.largest > more.largest ? seen.largest : more.largest;
        float before = seen.sum == 0 ? 0 : std::exp(seen.largest - top), now = std::exp(more.largest - top);
        seen = {top, seen.sum * before + more.sum * now};
        for (int64_t i = 0; i < count; i += kLanes)
            store(total + i, multiply_add(load(mixed + i), broadcast(now), multiply(load(total + i), broadcast(before))));
    }

    void finish(const Task& task, const Seen* seen, const float* total) const {
        for (int64_t r = 0; r < task.rows; r++) {
            int64_t token = p.segments[task.segment].start + (task.row + r) / p.group;
            bf16* to = p.out + (token * p.heads + task.head * p.group + (task.row + r) % p.group) * p.size;
            Floats inverse = broadcast(1 / seen[r].sum);
            for (int64_t i = 0; i < p.size; i += kLanes) {
                Floats value = ::multiply(load(total + r * p.padded + i), inverse);
                p.size - i < kLanes ? store_first(to + i, value, p.size - i) : store(to + i, value);
            }
        }
    }

private:
    const bf16* keys_of(const Task& task, int64_t begin) const {
        const Segment& segment = p.segments[task.segment];
        return segment.keys + task.head * segment.k_head_stride + begin * p.k_row_stride;
    }

    void see_block(const Task& task, int64_t begin, int64_t count, bool fresh, Seen* seen) {
        const Segment& segment = p.segments[task.segment];
        const int64_t width = (count + kLanes - 1) / kLanes * kLanes;
        const bf16* keys = keys_of(task, begin);
        const bf16* values = segment.values + task.head * segment.v_head_stride + begin * p.v_row_stride;
        const bool few = task.rows <= kFew && count == kKeys && p.size % (2 * kLanes) == 0;
        const Ahead next_values = ahead(task, values, p.v_row_stride, begin);
        const Ahead next_keys = ahead(task, keys + kKeys * p.k_row_stride, p.k_row_stride, begin + kKeys);
        if (few) {
            score_few<kFew>(task.rows, scores, queries, keys, p.k_row_stride, p.size, next_values);
        } else {
            turn_keys(keys, count, width, next_values);
            ::multiply(scores, queries, task.rows, p.padded, key_panel, width, p.padded, false);
        }
        const int64_t first = segment.num_keys - segment.length + 1;  // keys that token 0 sees
        for (int64_t r = 0; r < task.rows; r++) {
            int64_t visible = p.causal ? first + (task.row + r) / p.group - begin : count;
            soften(seen[r], scores + r * width, chances + r * width, visible < count ? visible : count, width,
                   fresh ? nullptr : mixed + r * p.padded);
        }
        if (few) {
            mix_few<kFew>(task.rows, mixed, chances, values, p.v_row_stride, p.size, !fresh, next_keys);
        } else {
            pair_values(values, count, width, next_keys);
            ::multiply(mixed, chances, task.rows, width, value_panel, p.padded, width, !fresh);
        }
    }

    // A block that a few rows will read; nothing for many rows, and where rows do not follow one another in memory.
    Ahead ahead(const Task& task, const bf16* block, int64_t stride, int64_t begin) const {
        bool worth = task.rows <= kSome && stride == p.size && begin < p.segments[task.segment].num_keys;
        return {worth ? (const char*)block : nullptr};
    }

    // One row of scores to probabilities that are not yet divided by their sum; zeros from `visible` on.
    void soften(Seen& seen, float* score, Number* chance, int64_t visible, int64_t width, float* before) const {
        visible = visible > 0 ? visible : 0;
        const int64_t used = (visible + kLanes - 1) / kLanes * kLanes;
        for (int64_t i = visible; i < used; i++) score[i] = -INFINITY;  // not read, it may be anything
        Floats top = broadcast(seen.largest), scale = broadcast(p.scale);
        for (int64_t i = 0; i < used; i += kLanes) {
            Floats x = ::multiply(load(score + i), scale);
            store(score + i, x);
            top = maximum(x, top);
        }
        float most = largest(top);
        if (before && most > seen.largest && seen.sum > 0) {
            float less = std::exp(seen.largest - most);
            seen.sum *= less;
            for (int64_t i = 0; i < p.padded; i += kLanes) store(before + i, ::multiply(load(before + i), broadcast(less)));
        }
        seen.largest = most;
        const Floats shift = broadcast(most == -INFINITY ? 0 : most);
        Floats total = zeros();
        int64_t i = 0;
        for (; i + 4 * kLanes <= used; i += 4 * kLanes) soften_some<4>(total, score + i, chance + i, shift);
        for (; i < used; i += kLanes) soften_some<1>(total, score + i, chance + i, shift);
        for (; i < width; i += kLanes) store_numbers(chance + i, zeros());
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
    void turn_keys(const bf16* from, int64_t count, int64_t width, Ahead ahead) const {
        const int64_t stride = p.k_row_stride, size = p.size, padded = p.padded;
        for (int64_t key = 0; key < width; key += kLanes)
            for (int64_t i = 0; i < padded; i += 2 * kLanes) {
                Words r[kLanes];
                ahead.step(4 * kLanes * kLanes);
                turn(r, from + key * stride + i, stride, count - key, size - i);
                Number* to = key_panel + i * width + kDeep * key;
                const int64_t words = padded - i >= 2 * kLanes ? kLanes : (padded - i) / 2;
                UNROLL for (int64_t j = 0; j < kLanes; j++)
                    UNROLL for (int64_t h = 0; h < kHalves; h++)
                        if (j < words) store_factor(to + (2 * j + h * kDeep) * width, factor_of(r[j], h));
            }
    }

    // The panel of a block of values: the keys are the inputs, the numbers the outputs.
    void pair_values(const bf16* from, int64_t count, int64_t width, Ahead ahead) const {
        const int64_t stride = p.v_row_stride, size = p.size, padded = p.padded;
        for (int64_t key = 0; key < width; key += kDeep) {
            const bf16* row = from + key * stride;
            ahead.step(2 * kDeep * size);
            Number* to = value_panel + key * padded;
            const int64_t whole = key + kDeep <= count ? size / kLanes * kLanes : 0;
            for (int64_t i = 0; i < whole; i += kLanes) store_factor(to + kDeep * i, load_values(row + i, stride));
            for (int64_t i = whole; i < padded; i += kLanes) {
                alignas(64) bf16 some[kDeep][kLanes];
                for (int64_t k = 0; k < kDeep; k++)
                    for (int64_t j = 0; j < kLanes; j++)
                        some[k][j] = key + k < count && i + j < size ? row[k * stride + i + j] : 0;
                store_factor(to + kDeep * i, load_values(some[0], kLanes));
            }
        }
    }

    const Problem& p;
};

// Cut the work: blocks of rows, and where one block holds all rows of a segment, its keys part by part as well.
const Vector<Task>& plan(const Problem& p, int64_t num_segments) {
    static thread_local Vector<Task> tasks;  // the caller's, so that its memory serves the next call
    tasks.clear();
    int64_t block = kRows / p.group * p.group;
    for (int64_t segment = 0; segment < num_segments; segment++)
        for (int64_t head = 0; head < p.heads / p.group; head++) {
            const int64_t length = p.segments[segment].length, num_keys = p.segments[segment].num_keys;
            int64_t all = length * p.group, hidden = num_keys - length;
            for (int64_t row = 0; row < all; row += block) {
                int64_t rows = all - row < block ? all - row : block;
                int64_t end = p.causal ? hidden + (row + rows) / p.group : num_keys;
                int64_t step = all <= block ? kPart : end;
                for (int64_t begin = 0; begin < end; begin += step)
                    tasks.push_back({segment, head, row, rows, begin, end < begin + step ? end : begin + step});
            }
        }
    return tasks;
}

void attend(const Problem& problem, int64_t num_segments, int64_t threads) {
    static thread_local Scratch totals_memory, states_memory, own_memory;
    const int64_t padded = problem.padded;
    const Vector<Task>& tasks = plan(problem, num_segments);
    const int64_t num_tasks = (int64_t)tasks.size();
    auto is_whole = [&](int64_t i) {
        return tasks[i].begin == 0 && (i + 1 == num_tasks || tasks[i + 1].begin == 0);
    };
    int64_t most = 0;  // rows of a task that is one of several parts
    for (int64_t i = 0; i < num_tasks; i++)
        if (!is_whole(i) && tasks[i].rows > most) most = tasks[i].rows;
    float* totals = totals_memory.take<float>(num_tasks * most * padded);
    Seen* states = states_memory.take<Seen>(num_tasks * most);
    Scratch& memory = own_memory;  // this thread's, in the others too
    memory.take_for<Arrays>(threads, padded);
#pragma omp parallel num_threads(threads)
    {
        Worker worker(problem, memory.of_this_thread<Arrays>(padded));
        // guided: parts that follow one another in memory mostly go to one thread, which has asked for the next already
#pragma omp for schedule(guided)
        for (int64_t i = 0; i < num_tasks; i++) {
            const Task& task = tasks[i];
            Seen local[kRows], *seen = is_whole(i) ? local : states + i * most;
            float* total = is_whole(i) ? worker.total : totals + i * most * padded;
            for (int64_t r = 0; r < task.rows; r++) seen[r] = Seen{};
            for (int64_t k = 0; k < task.rows * padded; k += kLanes) store(total + k, zeros());
            worker.run(task, seen, total);
            if (is_whole(i)) worker.finish(task, seen, total);
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < num_tasks; i++) {
            if (is_whole(i) || tasks[i].begin != 0) continue;
            Seen* seen = states + i * most;
            float* total = totals + i * most * padded;
            for (int64_t j = i + 1; j < num_tasks && tasks[j].begin != 0; j++)
                for (int64_t r = 0; r < tasks[i].rows; r++)
                    Worker::merge(seen[r], total + r * padded, states[j * most + r],
                                  totals + (j * most + r) * padded, padded);
            worker.finish(tasks[i], seen, total);
        }
    }
}

}  // namespace

// out [rows, heads, size]; q is read at row · q_row_stride + head · q_head_stride, keys and values of a segment at
// key · row_stride + kv head · head_stride. With `causal` the last row of a segment sees every key, each row before it one
// less. At most kRows query heads share a key head.
extern "C" int64_t KERNEL(attend)(bf16* out, const bf16* q, int64_t q_row_stride, int64_t q_head_stride,
                                  const Segment* segments, int64_t num_segments, int64_t k_row_stride,
                                  int64_t v_row_stride, int64_t heads, int64_t kv_heads, int64_t size, float scale,
                                  int64_t causal, int64_t threads) {
    const int64_t padded = (size + kLanes - 1) / kLanes * kLanes;
    const Problem problem{out, q, q_row_stride, q_head_stride, segments, k_row_stride, v_row_stride, heads,
                          heads / kv_heads, size, padded, scale, causal != 0};
    return guarded([&] { attend(problem, num_segments, threads); });
}
