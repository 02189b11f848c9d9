// A vector of 16 bytes for compilers that have no such type: operators work lane by lane. A
// comparison gives −1 in the lanes where it holds and 0 in the others.
#pragma once

namespace {

template <class T>
struct Lanes {
    static constexpr int kCount = 16 / sizeof(T);
    T lane[kCount];
    T& operator[](int64_t i) { return lane[i]; }
    T operator[](int64_t i) const { return lane[i]; }
};

template <class To, class T, class Operation>
Lanes<To> lane_by_lane(const Lanes<T>& a, const Lanes<T>& b, const Operation& operation) {
    Lanes<To> r;
    for (int i = 0; i < Lanes<T>::kCount; i++) r.lane[i] = (To)operation(a.lane[i], b.lane[i]);
    return r;
}

#define LANES_OPERATOR(symbol)                                             \
    template <class T>                                                     \
    Lanes<T> operator symbol(const Lanes<T>& a, const Lanes<T>& b) {       \
        return lane_by_lane<T>(a, b, [](T x, T y) { return x symbol y; }); \
    }
#define LANES_COMPARISON(symbol)                                                            \
    inline Lanes<int32_t> operator symbol(const Lanes<float>& a, const Lanes<float>& b) {   \
        return lane_by_lane<int32_t>(a, b, [](float x, float y) { return -(x symbol y); }); \
    }
#define LANES_SHIFT(symbol)                                                   \
    template <class T>                                                        \
    Lanes<T> operator symbol(const Lanes<T>& a, int count) {                  \
        return lane_by_lane<T>(a, a, [=](T x, T) { return x symbol count; }); \
    }
LANES_OPERATOR(+)
LANES_OPERATOR(-)
LANES_OPERATOR(*)
LANES_OPERATOR(/)
LANES_OPERATOR(&)
LANES_OPERATOR(|)
LANES_OPERATOR(^)
LANES_COMPARISON(==)
LANES_COMPARISON(<)
LANES_COMPARISON(>)
LANES_SHIFT(<<)
LANES_SHIFT(>>)
#undef LANES_OPERATOR
#undef LANES_COMPARISON
#undef LANES_SHIFT

template <class T>
Lanes<T> operator~(const Lanes<T>& a) {
    return lane_by_lane<T>(a, a, [](T x, T) { return ~x; });
}

}  // namespace
