// The kernels that others call too; each file that defines one of them includes this, so that the
// compiler compares.
#pragma once

#include "memory.h"
#include "vector.h"

#ifdef HAS_TILES
#define COMMON(name) NAME_FOR(name, avx512)  // of what has no form of its own for AMX
#else
#define COMMON(name) OWN(name)
#endif

// A linear layer: weight [outputs, inputs] in bfloat16, or codes in 8 or 4 bits with their scales
// and, in 4 bits, zero points (none: 8 everywhere); bias [outputs] or none.
struct Product {
    const uint8_t* weight;
    const void* scale;
    const uint32_t* zero_points;
    const bf16* bias;
    int64_t bits, inputs, outputs;
    int64_t step;  // 8 bits: bytes from row to row of codes; 4 bits: inputs that share a scale
};
constexpr int64_t kMostTogether = 3;

// Rows that attend to each other: where they begin and how many there are, how many keys they see
// at most, and where these and their values lie, head by head.
struct Segment {
    int64_t start, length, num_keys;
    const bf16 *keys, *values;
    int64_t k_head_stride, v_head_stride;
};

// Throws std::bad_alloc, as nothing else here does.
void OWN(linear_int)(bf16* const* y, const bf16* x, const Product* products, int64_t count,
                     int64_t num_rows, int64_t threads);

extern "C" {
EXPORT int64_t OWN(linear_bf16)(bf16* y, const bf16* x, const bf16* weight, const bf16* bias,
                                int64_t rows, int64_t inputs, int64_t outputs, int64_t threads);
EXPORT int64_t COMMON(rms_norm)(bf16* y, const bf16* x, const bf16* weight, float eps, int64_t rows,
                                int64_t width, int64_t threads);
EXPORT int64_t COMMON(silu_mul)(bf16* y, const bf16* gate, const bf16* up, int64_t count,
                                int64_t threads);
EXPORT int64_t COMMON(rotate)(bf16* y, const bf16* x, int64_t x_row_stride, const void* cosine,
                              const void* sine, int64_t is_bf16, int64_t rows, int64_t heads,
                              int64_t size, int64_t threads);
EXPORT int64_t OWN(attend)(bf16* out, const bf16* q, int64_t q_row_stride, int64_t q_head_stride,
                              const Segment* segments, int64_t num_segments, int64_t k_row_stride,
                              int64_t v_row_stride, int64_t heads, int64_t kv_heads, int64_t size,
                              float scale, int64_t causal, int64_t threads);
}
