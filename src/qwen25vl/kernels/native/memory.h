// Memory of the kernels. All of it is taken before a parallel region begins: nothing may throw
// inside one. What a failed allocation throws ends at the C border, where `guarded` turns it into a
// status that the caller raises.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#else
inline int omp_get_thread_num() { return 0; }
#endif

// features.cpp: for tests that let every allocation fail in turn
extern "C" bool allocation_fails();

namespace {

constexpr int64_t kDone = 0, kOutOfMemory = 1;  // what kernels return
constexpr int64_t kLine = 64;                   // bytes of a cache line, and of the widest vector

inline int64_t whole_lines(int64_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

#ifdef _WIN32
inline void* aligned_memory(int64_t bytes) { return _aligned_malloc(bytes, kLine); }
inline void release(void* memory) { _aligned_free(memory); }
#else
inline void* aligned_memory(int64_t bytes) { return std::aligned_alloc(kLine, bytes); }
inline void release(void* memory) { std::free(memory); }
#endif

inline void* allocate(int64_t bytes) {
    void* memory = allocation_fails() ? nullptr : aligned_memory(whole_lines(bytes));
    if (!memory) throw std::bad_alloc();
    return memory;
}

// Run what may throw for want of memory, and return a kernel's status.
template <class Work>
int64_t guarded(const Work& work) noexcept {
    try {
        work();
        return kDone;
    } catch (...) {  // std::bad_alloc, or std::length_error of a vector
        return kOutOfMemory;
    }
}

inline void check(int64_t status) {  // of a kernel that another one calls
    if (status != kDone) throw std::bad_alloc();
}

template <class T>
struct Allocator {
    using value_type = T;
    Allocator() = default;
    template <class U>
    Allocator(const Allocator<U>&) {}
    T* allocate(size_t count) { return (T*)::allocate((int64_t)(count * sizeof(T))); }
    void deallocate(T* memory, size_t) { release(memory); }
    template <class U>
    bool operator==(const Allocator<U>&) const {
        return true;
    }
    template <class U>
    bool operator!=(const Allocator<U>&) const {
        return false;
    }
};
template <class T>
using Vector = std::vector<T, Allocator<T>>;

// Hands out arrays that follow one another in a block. Started at nullptr it only counts the bytes
// they take.
class Arena {
public:
    explicit Arena(char* start) : next_(start) {}
    template <class T>
    T* take(int64_t count) {
        char* here = next_;
        next_ += whole_lines(count * (int64_t)sizeof(T));
        return (T*)here;
    }
    int64_t bytes() const { return (int64_t)next_; }

private:
    char* next_;
};

// Memory that a calling thread uses again and again; it grows, and is freed when the thread ends.
class Scratch {
public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    ~Scratch() { release(memory_); }

    template <class T>
    T* take(int64_t count) {
        const int64_t bytes = count * (int64_t)sizeof(T);
        if (bytes > size_) {
            release(memory_);
            memory_ = nullptr, size_ = 0;
            memory_ = (char*)allocate(bytes);
            size_ = whole_lines(bytes);
        }
        return (T*)memory_;
    }

    // A part for every thread of the region to come: `arrays` holds what is laid out in each part
    // by its constructor, from an Arena and these sizes.
    template <class Arrays, class... Sizes>
    void take_for(int64_t threads, const Sizes&... sizes) {
        Arena counting(nullptr);
        Arrays(counting, sizes...);
        part_ = counting.bytes();
        take<char>(threads * part_);
    }

    template <class Arrays, class... Sizes>
    Arrays of_this_thread(const Sizes&... sizes) const {
        Arena arena(memory_ + omp_get_thread_num() * part_);
        return Arrays(arena, sizes...);
    }

private:
    char* memory_ = nullptr;
    int64_t size_ = 0, part_ = 0;
};

}  // namespace
