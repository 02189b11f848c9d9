// All layers of the language model for a few rows: one call where Python would make fourteen for each layer, and would
// take a sixth of a token's time for it. Nothing is computed here but the residual sums; the kernels are those that the
// layers call one by one, so the bits are the same.
#include <cstring>

#include "kernels.h"
#include "panel.h"

namespace {

struct Layer {
    const bf16 *input_norm, *post_norm;
    Product qkv[3], o, gate_up[2], down;
};

// The cache of one sequence: storage [layers, 2, kv_heads, capacity, size], `length` tokens of it before this call.
struct Sequence {
    bf16* storage;
    int64_t capacity, length, rows;
};

struct Shape {
    int64_t rows, heads, kv_heads, size, threads;
};

// Layers that read the same x: integer ones of one kind together.
void multiply(bf16* const* y, const bf16* x, const Product* products, int64_t count, const Shape& s) {
    for (int64_t i = 0, next; i < count; i = next) {
        const Product& p = products[i];
        for (next = i + 1; next < count && p.bits < 16 && products[next].bits == p.bits && products[next].step == p.step;)
            next++;
        if (p.bits < 16) OWN(linear_int)(y + i, x, &p, next - i, s.rows, s.threads);
        else check(OWN(linear_bf16)(y[i], x, (const bf16*)p.weight, p.bias, s.rows, p.inputs, p.outputs, s.threads));
    }
}

void add_to(bf16* x, const bf16* y, int64_t count) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(x + i, add(load(x + i), load(y + i)));
    if (i < count) store_first(x + i, add(load_first(x + i, count - i), load_first(y + i, count - i)), count - i);
}

// Keys and values [rows, kv_heads, size] of one layer behind those in the caches; where all of them lie.
void remember(Segment* segments, const Sequence* sequences, int64_t num_sequences, int64_t layer, const bf16* keys,
              const bf16* values, const Shape& s) {
    for (int64_t i = 0, first = 0; i < num_sequences; first += sequences[i++].rows) {
        const Sequence& one = sequences[i];
        const int64_t head_stride = one.capacity * s.size, part = s.kv_heads * head_stride;
        bf16 *to_keys = one.storage + 2 * layer * part, *to_values = to_keys + part;
        for (int64_t row = 0; row < one.rows; row++)
            for (int64_t head = 0; head < s.kv_heads; head++) {
                const int64_t from = ((first + row) * s.kv_heads + head) * s.size;
                const int64_t at = head * head_stride + (one.length + row) * s.size;
                std::memcpy(to_keys + at, keys + from, s.size * sizeof(bf16));
                std::memcpy(to_values + at, values + from, s.size * sizeof(bf16));
            }
        segments[i] = {first, one.rows, one.length + one.rows, to_keys, to_values, head_stride, head_stride};
    }
}

// KERNEL(decode) below.
void decode(bf16* x, const Layer* layers, int64_t num_layers, float eps, float scale, const void* cosine, const void* sine,
            int64_t is_bf16, const Sequence* sequences, int64_t num_sequences, const Shape& s) {
    static thread_local Scratch memory, all_segments;
    const auto [rows, heads, kv_heads, size, threads] = s;
    const int64_t width = layers->o.outputs, wide = layers->down.inputs, kv_width = kv_heads * size;
    bf16* normed = memory.take<bf16>(rows * (4 * width + 3 * kv_width + 2 * wide));
    bf16 *q = normed + rows * width, *turned = q + rows * width, *mixed = turned + rows * width;
    bf16 *k = mixed + rows * width, *v = k + rows * kv_width, *turned_k = v + rows * kv_width;
    bf16 *gate = turned_k + rows * kv_width, *up = gate + rows * wide;
    bf16 *const qkv[] = {q, k, v}, *const gate_up[] = {gate, up};
    Segment* segments = all_segments.take<Segment>(num_sequences);
    for (int64_t i = 0; i < num_layers; i++) {
        const Layer& layer = layers[i];
        COMMON(rms_norm)(normed, x, layer.input_norm, eps, rows, width, threads);
        multiply(qkv, normed, layer.qkv, 3, s);
        COMMON(rotate)(turned, q, width, cosine, sine, is_bf16, rows, heads, size, threads);
        COMMON(rotate)(turned_k, k, kv_width, cosine, sine, is_bf16, rows, kv_heads, size, threads);
        remember(segments, sequences, num_sequences, i, turned_k, v, s);
        check(COMMON(attend)(mixed, turned, width, size, segments, num_sequences, size, size, heads, kv_heads, size, scale, 1,
                             threads));
        multiply(&normed, mixed, &layer.o, 1, s);
        add_to(x, normed, rows * width);
        COMMON(rms_norm)(normed, x, layer.post_norm, eps, rows, width, threads);
        multiply(gate_up, normed, layer.gate_up, 2, s);
        COMMON(silu_mul)(gate, gate, up, rows * wide, threads);
        multiply(&normed, gate, &layer.down, 1, s);
        add_to(x, normed, rows * width);
    }
}

}  // namespace

// x [rows, width] through num_layers layers, in place; the rows of each sequence stand side by side, in the order of
// `sequences`, whose caches take their keys and values. cosine, sine [rows, size / 2] in bfloat16 or float32.
extern "C" int64_t KERNEL(decode)(bf16* x, const Layer* layers, int64_t num_layers, float eps, float scale,
                                  const void* cosine, const void* sine, int64_t is_bf16, const Sequence* sequences,
                                  int64_t num_sequences, int64_t rows, int64_t heads, int64_t kv_heads, int64_t size,
                                  int64_t threads) {
    return guarded([&] {
        decode(x, layers, num_layers, eps, scale, cosine, sine, is_bf16, sequences, num_sequences,
               {rows, heads, kv_heads, size, threads});
    });
}
