// The SIMD vocabulary in plain C++, for any processor: see vector.h. A vector is an array of 16
// bytes whose operators work lane by lane: a vector type where the compiler has one (GCC, Clang),
// which becomes the instructions that every processor of an architecture has (SSE2, NEON), else
// lanes.h. multiply_add rounds twice.
#pragma once

#if defined(__GNUC__) && !defined(PLAIN_LANES)
namespace {
template <class T>
struct LanesOf {
    typedef T Type __attribute__((vector_size(16)));
};
template <class T>
using Lanes = typename LanesOf<T>::Type;
}  // namespace
#else
#include "lanes.h"
#endif

namespace {

constexpr int64_t kLanes = 4;

using Floats = Lanes<float>;
using Words = Lanes<int32_t>;
using Bits = Lanes<uint32_t>;  // shifted logically, and may wrap around
using Pairs = Words;           // 8 bfloat16 numbers

// Sizes of the tiles whose sums stay in 16 registers.
constexpr int64_t kFloatTileRows = 4, kIntTileRows = 4;

template <class To, class From>
To bits_as(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits as another type");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
inline Bits all_bits(uint32_t x) { return Bits{x, x, x, x}; }
inline Words select(Words mask, Words a, Words b) { return (mask & a) | (~mask & b); }
inline Floats select(Words mask, Floats a, Floats b) {
    return bits_as<Floats>(select(mask, bits_as<Words>(a), bits_as<Words>(b)));
}

inline Floats broadcast(float x) { return Floats{x, x, x, x}; }
inline Floats zeros() { return broadcast(0); }
inline Words all_words(int32_t x) { return Words{x, x, x, x}; }

inline Floats load(const float* p) {
    Floats r;
    std::memcpy(&r, p, sizeof r);
    return r;
}
inline Floats load(const bf16* p) { return bits_as<Floats>(Bits{p[0], p[1], p[2], p[3]} << 16); }
template <class T>
Floats load_first(const T* p, int64_t count) {
    if (count >= kLanes) return load(p);
    T padded[kLanes] = {};
    for (int64_t i = 0; i < count; i++) padded[i] = p[i];
    return load(padded);
}

inline float widen_half(uint16_t x) {  // float16: sign 1, exponent 5, fraction 10 bits
    const uint32_t sign = (uint32_t)(x & 0x8000) << 16, exponent = x >> 10 & 31, rest = x & 0x3ff;
    const float subnormal = (float)rest * 0x1p-24f;
    const uint32_t upper = exponent == 31 ? 255 : exponent + 127 - 15;
    const uint32_t bits = exponent == 0 ? bits_as<uint32_t>(subnormal) : upper << 23 | rest << 13;
    return bits_as<float>(sign | bits);
}
inline Floats load_halves(const uint16_t* p, int64_t count) {
    float wide[kLanes] = {};
    for (int64_t i = 0; i < count && i < kLanes; i++) wide[i] = widen_half(p[i]);
    return load(wide);
}

inline Bits rounded_bits(Floats x) {  // in the upper halves
    const Bits bits = bits_as<Bits>(x);
    const Bits rounded = bits + (bits >> 16 & all_bits(1)) + all_bits(0x7fff);
    return bits_as<Bits>(select(x == x, bits_as<Words>(rounded), all_words(0x7fc00000)));
}
inline Floats round_to_bf16(Floats x) {
    return bits_as<Floats>(rounded_bits(x) & all_bits(0xffff0000u));
}
inline void store(float* p, Floats x) { std::memcpy(p, &x, sizeof x); }
inline void store(bf16* p, Floats x) {
    const Bits bits = rounded_bits(x) >> 16;
    for (int64_t i = 0; i < kLanes; i++) p[i] = (bf16)bits[i];
}
inline void store_two(bf16* p, Floats a, Floats b) {
    store(p, a);
    store(p + kLanes, b);
}
template <class T>
void store_first(T* p, Floats x, int64_t count) {
    if (count >= kLanes) return store(p, x);
    T all[kLanes];
    store(all, x);
    for (int64_t i = 0; i < count; i++) p[i] = all[i];
}

inline Floats add(Floats a, Floats b) { return a + b; }
inline Floats subtract(Floats a, Floats b) { return a - b; }
inline Floats multiply(Floats a, Floats b) { return a * b; }
inline Floats divide(Floats a, Floats b) { return a / b; }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }
// b where one of them is NaN, as x86 has it
inline Floats maximum(Floats a, Floats b) { return select(a > b, a, b); }
inline Floats minimum(Floats a, Floats b) { return select(a < b, a, b); }

// Beside 1.5 · 2²³ a float has no places behind the point, and its lowest bits count in ones:
// adding it rounds any |x| < 2²² to nearest. A conversion to int would be undefined for NaN.
constexpr float kRounder = 12582912.f;
inline Floats round_to_int(Floats x) { return (x + broadcast(kRounder)) - broadcast(kRounder); }
inline Words to_words(Floats x) {
    const Bits bits = bits_as<Bits>(x + broadcast(kRounder));
    return bits_as<Words>(bits - bits_as<Bits>(broadcast(kRounder)));
}
inline Floats to_floats(Words x) {
    return Floats{(float)x[0], (float)x[1], (float)x[2], (float)x[3]};
}
inline Floats times_power_of_two(Floats x, Floats n) {  // in two steps: subnormal results are right
    const Words whole = to_words(n), half = whole >> 1;
    const Bits rest = bits_as<Bits>(whole) - bits_as<Bits>(half);
    const Floats first = bits_as<Floats>((bits_as<Bits>(half) + all_bits(127)) << 23);
    return x * first * bits_as<Floats>((rest + all_bits(127)) << 23);
}
inline float sum(Floats x) { return (x[0] + x[2]) + (x[1] + x[3]); }
inline float largest(Floats x) {
    const auto larger = [](float a, float b) { return a > b ? a : b; };
    return larger(larger(x[0], x[2]), larger(x[1], x[3]));
}

inline Words load_words(const void* p) {
    Words r;
    std::memcpy(&r, p, sizeof r);
    return r;
}
inline Words load_bytes(const void* p, int64_t count) {
    if (count >= (int64_t)sizeof(Words)) return load_words(p);
    uint8_t padded[sizeof(Words)] = {};
    for (int64_t i = 0; i < count; i++) padded[i] = ((const uint8_t*)p)[i];
    return load_words(padded);
}
inline void store_words(void* p, Words x) { std::memcpy(p, &x, sizeof x); }
inline void store_first_words(void* p, Words x, int64_t count) {
    if (count >= kLanes) return store_words(p, x);
    std::memcpy(p, &x, 4 * count);
}
inline Words add_words(Words a, Words b) {
    return bits_as<Words>(bits_as<Bits>(a) + bits_as<Bits>(b));
}
inline int32_t sum_of(Words x) {
    const Bits bits = bits_as<Bits>(x);
    return (int32_t)(bits[0] + bits[1] + bits[2] + bits[3]);
}

inline Pairs load_pairs(const bf16* p) { return load_words(p); }
inline Pairs broadcast_pair(const bf16* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return all_words(pair);
}
inline Floats even_of(Pairs x) { return bits_as<Floats>(bits_as<Bits>(x) << 16); }
inline Floats odd_of(Pairs x) { return bits_as<Floats>(bits_as<Bits>(x) & all_bits(0xffff0000u)); }
inline Floats dot(Floats sum, Pairs a, Pairs b) {
    return multiply_add(odd_of(a), odd_of(b), multiply_add(even_of(a), even_of(b), sum));
}

inline Words low_words(Words a, Words b) { return Words{a[0], b[0], a[1], b[1]}; }
inline Words high_words(Words a, Words b) { return Words{a[2], b[2], a[3], b[3]}; }
inline Words low_doubles(Words a, Words b) { return Words{a[0], a[1], b[0], b[1]}; }
inline Words high_doubles(Words a, Words b) { return Words{a[2], a[3], b[2], b[3]}; }
inline void turn_quarters(Words*) {}  // there is one only
inline void transpose(Words r[4]) {
    const Words low[2] = {low_words(r[0], r[1]), low_words(r[2], r[3])};
    const Words high[2] = {high_words(r[0], r[1]), high_words(r[2], r[3])};
    r[0] = low_doubles(low[0], low[1]);
    r[1] = high_doubles(low[0], low[1]);
    r[2] = low_doubles(high[0], high[1]);
    r[3] = high_doubles(high[0], high[1]);
}

constexpr int64_t zero_point(int64_t bits) { return bits == 4 ? 8 : 0; }
inline Words for_panel(Words codes) { return codes ^ all_words((int32_t)0x80808080u); }
inline Words low_halves(Words x) { return x & all_words(0x0f0f0f0f); }
inline Words high_halves(Words x) { return low_halves(x >> 4); }
inline Words half_bytes(uint64_t x) {
    return Words{(int)(x & 15), (int)(x >> 4 & 15), (int)(x >> 8 & 15), (int)(x >> 12 & 15)};
}
inline void store_as_bytes(int8_t* p, Words x) {
    for (int64_t i = 0; i < kLanes; i++)
        p[i] = (int8_t)(x[i] < -128 ? -128 : x[i] > 127 ? 127 : x[i]);
}
inline void split_pairs(const int8_t* from, int8_t* even, int8_t* odd, int64_t count) {
    for (int64_t k = 0; k < count / 2; k++) {
        even[k] = from[2 * k];
        odd[k] = from[2 * k + 1];
    }
}

// Pairs of products, in 16 bits: at most 2·128·127, which still fits.
inline Words pair_products(Words w, Words a) {
    using Shorts = Lanes<int16_t>;
    using ShortBits = Lanes<uint16_t>;
    const Shorts high_w = bits_as<Shorts>(w) >> 8, high_a = bits_as<Shorts>(a) >> 8;
    const Shorts low_w = bits_as<Shorts>(bits_as<ShortBits>(w) << 8) >> 8;
    const Shorts low_a = bits_as<Shorts>(bits_as<ShortBits>(a) << 8) >> 8;
    return bits_as<Words>(low_w * low_a + high_w * high_a);
}
constexpr int64_t steps_in_shorts(int64_t bits) { return bits == 4 ? 8 : 0; }  // 8·2·15·127 fits
inline Words add_pairs(Words shorts, Words w, Words a) {
    using Shorts = Lanes<int16_t>;
    return bits_as<Words>(bits_as<Shorts>(shorts) + bits_as<Shorts>(pair_products(w, a)));
}
inline Words add_shorts(Words sum, Words shorts) {
    return sum + (bits_as<Words>(bits_as<Bits>(shorts) << 16) >> 16) + (shorts >> 16);
}
template <int64_t kBits>
Words dot4(Words sum, Words w, Words a) {
    return add_shorts(sum, pair_products(w, a));
}

}  // namespace
