// Other processors and systems than x86-64 on Linux: only the kernels in plain C++, whose
// instructions every processor of an architecture has.
#include <cstdint>

#include "exports.h"

EXPORT_C int64_t processor_features() { return 1; }  // base

EXPORT_C int64_t try_probe(int64_t (*probe)()) { return probe() ? 0 : 1; }

EXPORT_C int64_t probe_illegal() { return 0; }

extern "C" bool has_fast_shuffles() { return false; }
