// The kernels' own facts, for every processor.
#include <atomic>
#include <cstdint>

#include "exports.h"

// Counted up whenever a kernel's arguments change: an old library beside new Python files must not
// be called.
EXPORT_C int64_t interface_version() { return 5; }

// For tests: let the allocation after `count` others fail, once; below 0, none.
namespace {
std::atomic<int64_t> allocations_left{-1};
}
EXPORT_C void fail_allocation(int64_t count) { allocations_left = count; }
extern "C" bool allocation_fails() {
    if (allocations_left.load(std::memory_order_relaxed) < 0) return false;
    return allocations_left.fetch_sub(1) == 0;
}
