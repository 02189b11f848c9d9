// All layers of the language model for a few rows: one call where Python would make fourteen for
// each layer, and would take a sixth of a token's time for it. Nothing is computed here but the
// residual sums; the kernels are those that the layers call one by one, so the bits are the same.
#include <initializer_list>

#include "kernels.h"
#include "panel.h"

namespace {

struct Layer {
    const bf16 *input_norm, *post_norm;
    Product qkv[3], o, gate_up[2], down;
};

// The cache of one sequence: storage [layers, 2, kv_heads, capacity, size], `length` tokens of it
// before this call.
struct Sequence {
    bf16* storage;
    int64_t capacity, length, rows;
};

struct Shape {
    int64_t rows, heads, kv_heads, size, threads;
};

// Angles of each row, cos and sin [rows, size / 2], in bfloat16 or float32.
struct Rotation {
    const void *cosine, *sine;
    int64_t is_bf16;
};

struct Sequences {
    const Sequence* all;
    int64_t count;
};

bool go_together(const Product& a, const Product& b) {  // integer ones of one kind
    const bool is_alike = a.bits == b.bits && !a.zero_points == !b.zero_points;
    return a.bits < 16 && is_alike && a.step == b.step;
}

// Layers that read the same x.
void multiply_layers(bf16* const* y, const bf16* x, const Product* products, int64_t count,
                     const Shape& s) {
    for (int64_t i = 0, next; i < count; i = next) {
        const Product& p = products[i];
        next = i + 1;
        while (next < count && go_together(p, products[next])) next++;
        if (p.bits < 16) OWN(linear_int)(y + i, x, &p, next - i, s.rows, s.threads);
        else
            check(OWN(linear_bf16)(y[i], x, (const bf16*)p.weight, p.bias, s.rows, p.inputs,
                                   p.outputs, s.threads));
    }
}

void add_to(bf16* x, const bf16* y, int64_t count) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(x + i, add(load(x + i), load(y + i)));
    const int64_t left = count - i;
    if (left > 0) store_first(x + i, add(load_first(x + i, left), load_first(y + i, left)), left);
}

// Keys and values [rows, kv_heads, size] of one layer go behind those in the caches; `segments`
// becomes where all of them lie.
void append(Segment* segments, const Sequences& sequences, int64_t layer, const bf16* keys,
            const bf16* values, const Shape& s) {
    for (int64_t i = 0, first = 0; i < sequences.count; first += sequences.all[i++].rows) {
        const Sequence& one = sequences.all[i];
        const int64_t head_stride = one.capacity * s.size, part = s.kv_heads * head_stride;
        bf16 *to_keys = one.storage + 2 * layer * part, *to_values = to_keys + part;
        for (int64_t row = 0; row < one.rows; row++)
            for (int64_t head = 0; head < s.kv_heads; head++) {
                const int64_t from = ((first + row) * s.kv_heads + head) * s.size;
                const int64_t at = head * head_stride + (one.length + row) * s.size;
                std::memcpy(to_keys + at, keys + from, s.size * sizeof(bf16));
                std::memcpy(to_values + at, values + from, s.size * sizeof(bf16));
            }
        const int64_t num_keys = one.length + one.rows;
        segments[i] = {first, one.rows, num_keys, to_keys, to_values, head_stride, head_stride};
    }
}

// What a layer writes on the way to its result, for all rows.
struct LayerArrays {
    bf16 *normed, *q, *turned, *mixed, *k, *v, *turned_k, *gate, *up;
    LayerArrays(Arena& arena, const Layer& layer, const Shape& s) {
        const int64_t width = s.rows * layer.o.outputs, kv_width = s.rows * s.kv_heads * s.size;
        for (bf16** each : {&normed, &q, &turned, &mixed}) *each = arena.take<bf16>(width);
        for (bf16** each : {&k, &v, &turned_k}) *each = arena.take<bf16>(kv_width);
        for (bf16** each : {&gate, &up}) *each = arena.take<bf16>(s.rows * layer.down.inputs);
    }
};

class Decoder {
public:
    Decoder(const Shape& shape, float eps, float scale, const Rotation& rotation,
            const Sequences& sequences, Segment* segments, const LayerArrays& arrays)
        : s(shape), eps_(eps), scale_(scale), rotation_(rotation), sequences_(sequences),
          segments_(segments), a(arrays) {}

    void run(bf16* x, const Layer& layer, int64_t number) const {
        const int64_t width = layer.o.outputs, wide = layer.down.inputs;
        COMMON(rms_norm)(a.normed, x, layer.input_norm, eps_, s.rows, width, s.threads);
        attend(layer, number, width);
        multiply_layers(&a.normed, a.mixed, &layer.o, 1, s);
        add_to(x, a.normed, s.rows * width);
        COMMON(rms_norm)(a.normed, x, layer.post_norm, eps_, s.rows, width, s.threads);
        bf16* const gate_up[] = {a.gate, a.up};
        multiply_layers(gate_up, a.normed, layer.gate_up, 2, s);
        COMMON(silu_mul)(a.gate, a.gate, a.up, s.rows * wide, s.threads);
        multiply_layers(&a.normed, a.gate, &layer.down, 1, s);
        add_to(x, a.normed, s.rows * width);
    }

private:
    void attend(const Layer& layer, int64_t number, int64_t width) const {
        bf16* const qkv[] = {a.q, a.k, a.v};
        multiply_layers(qkv, a.normed, layer.qkv, 3, s);
        rotate(a.turned, a.q, width, s.heads);
        rotate(a.turned_k, a.k, s.kv_heads * s.size, s.kv_heads);
        append(segments_, sequences_, number, a.turned_k, a.v, s);
        check(OWN(attend)(a.mixed, a.turned, width, s.size, segments_, sequences_.count, s.size,
                             s.size, s.heads, s.kv_heads, s.size, scale_, 1, s.threads));
    }

    void rotate(bf16* y, const bf16* x, int64_t stride, int64_t heads) const {
        COMMON(rotate)(y, x, stride, rotation_.cosine, rotation_.sine, rotation_.is_bf16, s.rows,
                       heads, s.size, s.threads);
    }

    const Shape& s;
    const float eps_, scale_;
    const Rotation& rotation_;
    const Sequences& sequences_;
    Segment* const segments_;
    const LayerArrays& a;
};

}  // namespace

// x [rows, width] through num_layers layers, in place; the rows of each sequence stand side by
// side, in the order of `sequences`, whose caches take their keys and values. cosine, sine [rows,
// size / 2] in bfloat16 or float32.
extern "C" int64_t KERNEL(decode)(bf16* x, const Layer* layers, int64_t num_layers, float eps,
                                  float scale, const void* cosine, const void* sine,
                                  int64_t is_bf16, const Sequence* sequences, int64_t num_sequences,
                                  int64_t rows, int64_t heads, int64_t kv_heads, int64_t size,
                                  int64_t threads) {
    static thread_local Scratch memory, all_segments;
    const Shape shape{rows, heads, kv_heads, size, threads};
    const Rotation rotation{cosine, sine, is_bf16};
    const Sequences all{sequences, num_sequences};
    return guarded([&] {
        Arena counting(nullptr);
        LayerArrays(counting, *layers, shape);
        Arena arena(memory.take<char>(counting.bytes()));
        const LayerArrays arrays(arena, *layers, shape);
        Segment* segments = all_segments.take<Segment>(num_sequences);
        const Decoder decoder(shape, eps, scale, rotation, all, segments, arrays);
        for (int64_t i = 0; i < num_layers; i++) decoder.run(x, layers[i], i);
    });
}
