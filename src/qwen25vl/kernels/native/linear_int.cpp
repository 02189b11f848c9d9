// y = x·wᵀ + b for weights of 8 or 4 bits; activations are quantised on the way, 128 inputs of a row at a time.
//
//     x[m, k] ≈ a[m, k] · A[m, k / 128]                a from −127 to 127, A = largest |x| of the 128 / 127
//     y[m, o] = Σ_groups A[m, group] · S[o, group] · (Σ_k a[m, k] · level[o, k])  + b[o]
//
// The inner sum is exact in 32-bit integers, and the outer one runs over the groups in order; so a row gives the same
// bits alone and among thousands. 8-bit weights have one S for each output, which is multiplied in at the end.
//
// Arithmetic with AVX-512: one instruction multiplies 64 unsigned bytes (levels + zero point) with 64 signed bytes
// (four activations, broadcast) into 16 sums, two such instructions a cycle. A tile of 6 rows by 2 vectors keeps 12
// integer sums in registers, and 12 float ones close by: 8 loads for 12 multiplications. The zero point is taken out by
// starting each sum at −zero · Σ_k a[m, k]. Every 128 inputs the 12 integer sums are added to the floats: 36 instructions
// after 384.
#include "kernels.h"
#include "panel_int.h"

namespace {

constexpr int64_t kPanel = 2 * kLanes;  // outputs of a panel of many rows
constexpr int64_t kChunk = 28;          // blocks of a panel, at most
constexpr int64_t kScratch = 16 << 20;  // bytes of activations in 8 bits at a time
#ifdef HAS_TILES
constexpr int64_t kPart = 8;  // blocks of a tile that stay in the first-level cache while all panels pass by
#else
constexpr int64_t kPart = INT64_MAX;
#endif
constexpr int64_t kAlone = 4;           // rows up to which weights are not turned
constexpr int64_t kFew = 16;            // rows up to which reading the weights takes longer than multiplying

// Several products of the same activations as if their outputs stood side by side: a part is of one or of several.
struct Together {
    Problem problems[kMostTogether];
    int64_t count;
};

// What a thread needs for few rows.
struct FewArrays {
    uint8_t* panel;
    float *sums, *scales;  // scales of 4-bit weights
    FewArrays(Arena& arena, const Together& all, int64_t groups)
        : panel(arena.take<uint8_t>(kBlock * kLanes)), sums(arena.take<float>(all.problems->rows * kLanes)),
          scales(arena.take<float>(all.problems->x.blocks * groups * kLanes)) {}
};

// One row to four: from the weights' rows as they lie; blocks that are cut off by an edge from a copy filled with zeros.
template <int64_t kBits, int64_t kGroups>
void multiply_alone(const Problem& p, int64_t begin, int64_t end, const FewArrays& arrays) {
    constexpr int64_t kBlockBytes = kBlock * kBits / 8;
    float* scales = kBits == 4 ? arrays.scales : nullptr;
    alignas(64) uint8_t copy[kLanes * kBlockBytes];
    int64_t stop = end * kLanes < p.outputs ? end * kLanes : p.outputs;
    for (int64_t first = begin * kLanes; first < stop; first += kLanes) {
        int64_t outputs = stop - first < kLanes ? stop - first : kLanes;
        const uint8_t* later = p.weight + (first + kLanes) * p.stride;
        if (scales) fill_scales<1>(scales, p, first, p.x.blocks * kGroups);
        alignas(64) float sums[kAlone][kLanes] = {};
        for (int64_t block = 0; block < p.x.blocks; block++) {
            const uint8_t* weight = p.weight + first * p.stride + block * kBlockBytes;
            int64_t stride = p.stride, bytes = p.stride - block * kBlockBytes;
            if (outputs < kLanes || bytes < kBlockBytes) {
                std::memset(copy, 0, sizeof copy);
                for (int64_t o = 0; o < outputs; o++)
                    std::memcpy(copy + o * kBlockBytes, weight + o * stride, bytes < kBlockBytes ? bytes : kBlockBytes);
                weight = copy, stride = kBlockBytes;
            }
            for (int64_t m = 0; m < p.rows; m++) {
                int64_t at = m * p.x.blocks + block;
                store(sums[m], add_block<kBits, kGroups>(load(sums[m]), weight, stride, p.x.values + at * kBlock,
                                                         p.x.starts + at * kGroups, p.x.scales[at],
                                                         scales ? scales + block * kGroups * kLanes : nullptr,
                                                         m == 0 ? later + block * kLanes * kBlockBytes : nullptr));
            }
        }
        for (int64_t m = 0; m < p.rows; m++) store_outputs(p, m, first, sums[m], kLanes);
    }
}

// Few rows: each block of a panel is used as soon as it is turned, so that nothing but the weights is read.
template <int64_t kBits, int64_t kGroups>
void multiply_few(const Problem& p, int64_t begin, int64_t end, const FewArrays& arrays) {
    uint8_t* panel = arrays.panel;
    float *sums = arrays.sums, *scales = kBits == 4 ? arrays.scales : nullptr;
    for (int64_t first = begin * kLanes; first < p.outputs && first < end * kLanes; first += kLanes) {
        for (int64_t m = 0; m < p.rows; m++) store(sums + m * kLanes, zeros());
        if (scales) fill_scales<1>(scales, p, first, p.x.blocks * kGroups);
        for (int64_t block = 0; block < p.x.blocks; block++) {
            fill_panel<kBits, 1>(panel, p, first, block, 1, true);
            for (int64_t m = 0; m < p.rows; m += kTile)
                multiply_rows<kBits, kGroups, kTile, 1>(p.rows - m < kTile ? p.rows - m : kTile, sums + m * kLanes, p.x, m,
                                                        block, 1, panel,
                                                        scales ? scales + block * kGroups * kLanes : nullptr, nullptr);
        }
        for (int64_t m = 0; m < p.rows; m++)
            store_outputs(p, m, first, sums + m * kLanes, kLanes);
    }
}

// Blocks of a panel, at most: all chunks are alike.
int64_t chunk_of(int64_t blocks) {
    const int64_t num_chunks = (blocks + kChunk - 1) / kChunk;
    return (blocks + num_chunks - 1) / num_chunks;
}

// What a thread needs for a part of many rows.
struct ManyArrays {
    uint8_t* panel;
    float *sums, *scales;  // scales of 4-bit weights
    ManyArrays(Arena& arena, int64_t blocks, int64_t groups, const Parts& parts)
        : panel(arena.take<uint8_t>(parts.most_panels() * chunk_of(blocks) * kBlock * kPanel)),
          sums(arena.take<float>((chunk_of(blocks) < blocks ? parts.most_tiles() : 1) * parts.most_panels() *
                                 many_rows(groups) * kPanel)),
          scales(arena.take<float>(parts.most_panels() * blocks * groups * kPanel)) {}
};

// Many rows: some panels, at most kChunk blocks at a time, stay in the second-level cache while the tiles of the part pass
// by. A tile is asked for while the one before it is multiplied, since the third level is slow when others use it too.
// The sums of all tiles wait for the next chunk, if there is one.
template <int64_t kBits, int64_t kGroups>
void multiply_many(const Problem& p, const Part& part, const ManyArrays& arrays) {
    constexpr int64_t kTile = many_rows(kGroups);
    const int64_t num_panels = part.end - part.begin, chunk = chunk_of(p.x.blocks), panel_size = chunk * kBlock * kPanel;
    const int64_t scales_size = p.x.blocks * kGroups * kPanel, tile_sums = num_panels * kTile * kPanel;
    const bool once = chunk >= p.x.blocks;
    float* scales = kBits == 4 ? arrays.scales : nullptr;
    for (int64_t v = 0; v < 2 * num_panels && scales; v++)
        fill_scales<2>(scales + v / 2 * scales_size + v % 2 * kLanes, p, (2 * part.begin + v) * kLanes,
                       p.x.blocks * kGroups);
    for (int64_t start = 0; start < p.x.blocks; start += chunk) {
        const int64_t count = p.x.blocks - start < chunk ? p.x.blocks - start : chunk;
        const bool is_last = start + count == p.x.blocks;
        for (int64_t v = 0; v < 2 * num_panels; v++)
            fill_panel<kBits, 2>(arrays.panel + v / 2 * panel_size + v % 2 * kBytes, p, (2 * part.begin + v) * kLanes, start,
                                 count, false);
        for (int64_t tile = part.first_tile; tile < part.last_tile; tile++) {
            const int64_t first = tile * kTile, next = first + kTile, rows = p.rows < next ? p.rows - first : kTile;
            const int64_t others = p.rows - next < kTile ? p.rows - next : kTile;
            ReadAhead ahead(p.x.values + (next * p.x.blocks + start * others) * kBlock,
                            others > 0 ? count * others * kBlock : 0, count * num_panels);
            for (int64_t m = 0; m < rows && is_last; m++)
                for (int64_t i = part.begin; i < part.end; i++) ask_for(p.y + (first + m) * p.outputs + i * kPanel);
            float* to = once ? arrays.sums : arrays.sums + (tile - part.first_tile) * tile_sums;
            for (int64_t i = 0; i < tile_sums && start == 0; i += kLanes) store(to + i, zeros());
            for (int64_t k = 0, blocks; k < count; k += blocks) {
                blocks = count - k < kPart ? count - k : kPart;
                for (int64_t i = 0; i < num_panels; i++) {
                    for (int64_t j = 0; j < kTile * kPanel; j += kLanes) ask_for(to + (i + 1) * kTile * kPanel + j);
                    multiply_rows<kBits, kGroups, kTile, 2>(
                        rows, to + i * kTile * kPanel, p.x, first, start + k, blocks,
                        arrays.panel + i * panel_size + k * kBlock * kPanel,
                        scales ? scales + i * scales_size + (start + k) * kGroups * kPanel : nullptr, &ahead);
                }
            }
            for (int64_t m = 0; m < rows && is_last; m++)
                for (int64_t i = 0; i < num_panels; i++)
                    store_outputs(p, first + m, (part.begin + i) * kPanel, to + (i * kTile + m) * kPanel, kPanel);
        }
    }
}

// Call use(problem, part) for what a part of all products is of each of them.
template <class Use>
void for_each_problem(const Together& all, const Part& part, int64_t width, const Use& use) {
    for (int64_t i = 0, start = 0, stop; i < all.count; i++, start = stop) {
        stop = start + (all.problems[i].outputs + width - 1) / width;
        const int64_t begin = part.begin > start ? part.begin - start : 0, end = (part.end < stop ? part.end : stop) - start;
        if (begin < end) use(all.problems[i], Part{begin, end, part.first_tile, part.last_tile});
    }
}

template <int64_t kBits, int64_t kGroups>
void multiply_all(const Together& all, int64_t threads) {
    static thread_local Scratch own_memory;
    Scratch& memory = own_memory;  // this thread's, in the others too
    const int64_t rows = all.problems->rows, num_blocks = all.problems->x.blocks, tile = many_rows(kGroups);
    const bool few = rows <= kFew;
    int64_t width = few ? kLanes : kPanel, num_panels = 0;
    for (int64_t i = 0; i < all.count; i++) num_panels += (all.problems[i].outputs + width - 1) / width;
    const int64_t panel_bytes = chunk_of(num_blocks) * kBlock * kPanel;
    const Parts parts = few ? Parts::of_few(num_panels, threads)
                            : Parts::of_many(num_panels, panel_bytes, (rows + tile - 1) / tile, threads);
    few ? memory.take_for<FewArrays>(threads, all, kGroups) : memory.take_for<ManyArrays>(threads, num_blocks, kGroups, parts);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t i = 0; i < parts.count(); i++)
        for_each_problem(all, parts[i], width, [&](const Problem& problem, const Part& part) {
            if (!few) return multiply_many<kBits, kGroups>(
                problem, part, memory.of_this_thread<ManyArrays>(num_blocks, kGroups, parts));
            const auto arrays = memory.of_this_thread<FewArrays>(all, kGroups);
            if (rows <= kAlone) multiply_alone<kBits, kGroups>(problem, part.begin, part.end, arrays);
            else multiply_few<kBits, kGroups>(problem, part.begin, part.end, arrays);
        });
}

// Few enough rows for their levels to fit in kScratch.
template <int64_t kBits>
void multiply(Together all, const bf16* x, int64_t inputs, int64_t groups, int64_t threads) {
    static thread_local Scratch values, starts, scales;
    const int64_t rows = all.problems->rows;
    bool many = rows > kFew, in_rows = many && by_tiles(groups);
    int64_t tile = rows <= kAlone ? 1 : many ? many_rows(groups) : kTile;  // one alone shares nothing with the other
    int64_t blocks = (inputs + kBlock - 1) / kBlock, num_tiles = (rows + tile - 1) / tile;
    const Activations a{values.take<int8_t>(rows * blocks * kBlock), starts.take<int32_t>(rows * blocks * groups),
                        scales.take<float>(rows * blocks), blocks};
    for (int64_t i = 0; i < all.count; i++) all.problems[i].x = a;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 64) if (rows > kAlone)
    for (int64_t i = 0; i < num_tiles * blocks; i++) {
        int64_t first = i / blocks * tile;
        quantise_tile<kBits>(a, first, i % blocks, rows - first < tile ? rows - first : tile, x, inputs, groups, in_rows);
    }
    if constexpr (kBits == 4) {
        if (groups == 4) return multiply_all<4, 4>(all, threads);
        if (groups == 2) return multiply_all<4, 2>(all, threads);
    }
    multiply_all<kBits, 1>(all, threads);
}

template <int64_t kBits>
void linear(const Together& all, const bf16* x, int64_t rows, int64_t inputs, int64_t groups, int64_t threads) {
    int64_t num_parts = rows * (inputs + kBlock) / kScratch + 1;
    for (int64_t part = 0; part < num_parts; part++) {
        int64_t begin = rows * part / num_parts, end = rows * (part + 1) / num_parts;
        Together some = all;
        for (int64_t i = 0; i < all.count; i++) {
            some.problems[i].y += begin * all.problems[i].outputs;
            some.problems[i].rows = end - begin;
        }
        multiply<kBits>(some, x + begin * inputs, inputs, groups, threads);
    }
}

}  // namespace

// At most kMostTogether products of the same x, of the same number of bits and the same groups.
void OWN(linear_int)(bf16* const* y, const bf16* x, const Product* products, int64_t count, int64_t rows, int64_t threads) {
    const int64_t bits = products->bits, inputs = products->inputs, step = products->step;
    Together all{{}, count};
    for (int64_t i = 0; i < count; i++) {
        const Product& p = products[i];
        const int64_t groups = (inputs + step - 1) / step;
        all.problems[i] = bits == 8 ? Problem{p.weight, step, nullptr, 0, (const float*)p.scale, p.bias, y[i], {}, 0, p.outputs}
                                    : Problem{p.weight, groups * step / 2, (const uint16_t*)p.scale, groups, nullptr, p.bias,
                                              y[i], {}, 0, p.outputs};
    }
    if (bits == 8) linear<8>(all, x, rows, inputs, 1, threads);
    else linear<4>(all, x, rows, inputs, kBlock / step, threads);
}

// codes [outputs, inputs]: level + 128, rows `stride` bytes apart; scale [outputs].
extern "C" int64_t KERNEL(linear_int8)(bf16* y, const bf16* x, const uint8_t* codes, const float* scale, const bf16* bias,
                                       int64_t rows, int64_t inputs, int64_t outputs, int64_t stride, int64_t threads) {
    const Product product{codes, scale, bias, 8, inputs, outputs, stride};
    return guarded([&] { OWN(linear_int)(&y, x, &product, 1, rows, threads); });
}

// packed [outputs, groups · group_size / 2]: two of level + 8, the even input in the low half; scale [outputs, groups]
// float16; group_size 32, 64 or 128.
extern "C" int64_t KERNEL(linear_int4)(bf16* y, const bf16* x, const uint8_t* packed, const uint16_t* scale,
                                       const bf16* bias, int64_t rows, int64_t inputs, int64_t outputs, int64_t group_size,
                                       int64_t threads) {
    const Product product{packed, scale, bias, 4, inputs, outputs, group_size};
    return guarded([&] { OWN(linear_int)(&y, x, &product, 1, rows, threads); });
}
