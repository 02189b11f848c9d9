// out = softmax(scale · q·kᵀ) · v, head by head and segment by segment, without ever holding all
// scores.
//
// The query heads that share a key head become rows of one matrix, so each key is read once for all
// of them: row i · G + g is head g of the group, token i. A task takes up to kRows such rows
// through the keys in blocks of kKeys: scores = q·kᵀ of a block in float32; the largest so far is
// subtracted before the exponential (its growth rescales what was summed before); probabilities,
// rounded to bfloat16, times v are added up in float32 (both products: attention_tiles.h). With AMX
// a block is a whole part of kPart keys (attention_amx.h).
//
// Sums begin anew every kPart keys and are merged in order. So the parts of a long context can be
// computed by different threads, and a row's bits depend on its own keys only: not on its
// neighbours, the threads, or what else is asked.
#include "attention.h"
#include "tiles.h"

#ifdef HAS_TILES
#include "attention_amx.h"
#else
#include "attention_worker.h"
#endif

namespace {

struct Plan {
    const Vector<Task>& tasks;
    int64_t rows_kept;
};

// Cut the work: blocks of rows, and where a segment has few rows its keys part by part as well.
Plan plan(const Attention& p, int64_t num_segments) {
    // the caller's, so that its memory serves the next call
    static thread_local Vector<Task> tasks;
    tasks.clear();
    const int64_t block = kRows / p.group * p.group;
    int64_t kept = 0;
    for (int64_t segment = 0; segment < num_segments; segment++)
        for (int64_t head = 0; head < p.heads / p.group; head++) {
            const int64_t length = p.segments[segment].length;
            const int64_t num_keys = p.segments[segment].num_keys;
            const int64_t all = length * p.group, hidden = num_keys - length;
            for (int64_t row = 0; row < all; row += block) {
                const int64_t rows = all - row < block ? all - row : block;
                const int64_t end = p.causal ? hidden + (row + rows) / p.group : num_keys;
                const int64_t step = all <= kMaxRowsInParts ? kPart : end;
                for (int64_t begin = 0; begin < end; begin += step) {
                    const int64_t stop = end < begin + step ? end : begin + step;
                    tasks.push_back({segment, head, row, rows, begin, stop});
                    if (end <= step) continue;
                    tasks.back().kept = kept;
                    kept += rows;
                }
            }
        }
    return {tasks, kept};
}

// Where the rows of a task that is one of several parts keep what they have seen until it is
// merged.
struct PartResults {
    const Attention& attention;
    const Vector<Task>& tasks;
    float* totals;
    Seen* states;
    int64_t padded;

    bool is_whole(int64_t i) const { return tasks[i].kept < 0; }
    Seen* seen(int64_t i) const { return states + tasks[i].kept; }
    float* total(int64_t i) const { return totals + tasks[i].kept * padded; }

    void run(Worker& worker, int64_t i) const {
        const Task& task = tasks[i];
        Seen local[kRows], *state = is_whole(i) ? local : seen(i);
        float* sums = is_whole(i) ? worker.total : total(i);
        for (int64_t r = 0; r < task.rows; r++) state[r] = Seen{};
        for (int64_t k = 0; k < task.rows * padded; k += kLanes) store(sums + k, zeros());
        worker.run(task, state, sums);
        if (is_whole(i)) attention.finish(task, state, sums);
    }

    void merge(int64_t i) const {  // all parts that begin with this one
        const int64_t num_tasks = (int64_t)tasks.size();
        for (int64_t j = i + 1; j < num_tasks && tasks[j].begin != 0; j++)
            for (int64_t r = 0; r < tasks[i].rows; r++)
                merge_seen(seen(i)[r], total(i) + r * padded, seen(j)[r], total(j) + r * padded,
                           padded);
        attention.finish(tasks[i], seen(i), total(i));
    }
};

void attend_segments(const Attention& attention, int64_t num_segments, int64_t threads) {
    static thread_local Scratch totals_memory, states_memory, own_memory;
    const int64_t padded = attention.padded;
    const Plan work = plan(attention, num_segments);
    const PartResults results{attention, work.tasks,
                              totals_memory.take<float>(work.rows_kept * padded),
                              states_memory.take<Seen>(work.rows_kept), padded};
    const int64_t num_tasks = (int64_t)work.tasks.size();
    Scratch& memory = own_memory;  // this thread's, in the others too
    memory.take_for<Arrays>(threads, padded);
#pragma omp parallel num_threads(threads)
    {
        [[maybe_unused]] const Tiles in_force;
        Worker worker(attention, memory.of_this_thread<Arrays>(padded));
        // guided: parts that follow one another in memory mostly go to one thread, which has asked
        // for the next already
#pragma omp for schedule(guided)
        for (int64_t i = 0; i < num_tasks; i++) results.run(worker, i);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < num_tasks; i++)
            if (!results.is_whole(i) && results.tasks[i].begin == 0) results.merge(i);
    }
}

}  // namespace

// out [rows, heads, size]; q is read at row · q_row_stride + head · q_head_stride, keys and values
// of a segment at key · row_stride + kv head · head_stride. With `causal` the last row of a segment
// sees every key, each row before it one less. At most kRows query heads share a key head.
extern "C" int64_t KERNEL(attend)(bf16* out, const bf16* q, int64_t q_row_stride,
                                  int64_t q_head_stride, const Segment* segments,
                                  int64_t num_segments, int64_t k_row_stride, int64_t v_row_stride,
                                  int64_t heads, int64_t kv_heads, int64_t size, float scale,
                                  int64_t causal, int64_t threads) {
    Attention a;
    a.out = out, a.q = q, a.segments = segments;
    a.q_row_stride = q_row_stride, a.q_head_stride = q_head_stride;
    a.k_row_stride = k_row_stride, a.v_row_stride = v_row_stride;
    a.heads = heads, a.group = heads / kv_heads, a.size = size;
    a.padded = (size + kLanes - 1) / kLanes * kLanes;
    a.scale = scale, a.causal = causal != 0;
    return guarded([&] { attend_segments(a, num_segments, threads); });
}
