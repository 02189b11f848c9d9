// The SIMD vocabulary of the kernels. Every kernel file is compiled once for each instruction set;
// the compiler's flags choose the file below that defines the vocabulary. A kernel exported as
// KERNEL(name) is called name_base, name_avx2 or name_avx512.
//
//     Floats              kLanes numbers
//     Words               as many 32-bit integers; also 4 bytes each, or 2 bfloat16 numbers each
//     Pairs               2 · kLanes bfloat16 numbers
//     dot(sum, a, b)      lane i: sum + a₂ᵢ·b₂ᵢ + a₂ᵢ₊₁·b₂ᵢ₊₁
//     dot4(sum, w, a)     lane i: sum + Σ_j w₄ᵢ₊ⱼ·a₄ᵢ₊ⱼ over four bytes; weights of 8 bits go
//                         through for_panel before, and are then level + zero_point(8)
//     add_pairs           the same in two steps, where that is faster: sums of pairs in 16 bits, at
//     add_shorts          most steps_in_shorts of them (0: never), which are then added to 32 bits
//     half_bytes          lane i: 4 bits of a word, those from bit 4·i on
//     multiply_add        a·b + c
//     times_power_of_two  x · 2ⁿ, n whole
//     store_two           two vectors, one after the other
//     …_first             the first `count` lanes only; what is not loaded is zero
//     low_words, …        AVX's unpack operations, in each 16 bytes of a vector
//     turn_quarters       transposes the 16-byte quarters of as many vectors
//
// bfloat16 numbers are the upper halves of floats. They are kept as uint16_t, and rounded to
// nearest, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

#include "exports.h"

#define JOIN_NAME(name, isa) name##_##isa
#define NAME_FOR(name, isa) JOIN_NAME(name, isa)
#define OWN(name) NAME_FOR(name, ISA)

#define KERNEL(name) EXPORT OWN(name)

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define UNROLL _Pragma("GCC unroll 16")
#else
#define UNROLL
#endif

// For what must not become a call: its vectors would go through memory.
#if defined(__GNUC__)
#define FORCE_INLINE inline __attribute__((always_inline))
#define NO_INLINE __attribute__((noinline))
#else
#define FORCE_INLINE inline
#define NO_INLINE
#endif

using bf16 = uint16_t;

#if defined(__AMX_TILE__) || defined(TILE_MODEL)
#define HAS_TILES  // tiles.h
#endif

#if defined(__AVX512F__)
#include "vector_avx512.h"
#elif defined(__AVX2__)
#include "vector_avx2.h"
#else
#include "vector_base.h"
#endif

namespace {

constexpr int64_t kBytes = kLanes * 4;  // of one vector

// Bring a line near before it is used: results too, since writes wait for one another, and each for
// its line. `ask_for_later`: into the second-level cache.
#if defined(__GNUC__)
inline void ask_for(const void* p) { __builtin_prefetch(p, 0, 3); }
inline void ask_for_later(const void* p) { __builtin_prefetch(p, 0, 2); }
#else
inline void ask_for(const void*) {}
inline void ask_for_later(const void*) {}
#endif

// eˣ within 2 units of the last place, 0 below −104, +∞ above 89: 2ⁿ · e^r with |r| ≤ ln 2 / 2, e^r
// by its series. Step by step for N vectors at once: each step waits for the one before, and the
// processor does not look far enough ahead to fill the time with other vectors by itself.
template <int64_t N>
void exponentials(Floats (&x)[N]) {
    Floats n[N], p[N];
    UNROLL for (int64_t i = 0; i < N; i++) {
        // in this order NaN stays NaN
        x[i] = minimum(broadcast(89.f), maximum(broadcast(-104.f), x[i]));
        n[i] = round_to_int(multiply(x[i], broadcast(1.44269504f)));
        // ln 2 in two parts, the first of few bits
        x[i] = multiply_add(n[i], broadcast(-0.693359375f), x[i]);
        x[i] = multiply_add(n[i], broadcast(2.12194440e-4f), x[i]);
    }
    UNROLL for (int64_t i = 0; i < N; i++) {
        p[i] = multiply_add(broadcast(1.9875691500e-4f), x[i], broadcast(1.3981999507e-3f));
        p[i] = multiply_add(p[i], x[i], broadcast(8.3334519073e-3f));
        p[i] = multiply_add(p[i], x[i], broadcast(4.1665795894e-2f));
    }
    UNROLL for (int64_t i = 0; i < N; i++) {
        p[i] = multiply_add(p[i], x[i], broadcast(1.6666665459e-1f));
        p[i] = multiply_add(p[i], x[i], broadcast(5.0000001201e-1f));
        p[i] = multiply_add(multiply(p[i], x[i]), x[i], add(x[i], broadcast(1.f)));
    }
    UNROLL for (int64_t i = 0; i < N; i++) x[i] = times_power_of_two(p[i], n[i]);
}

}  // namespace
