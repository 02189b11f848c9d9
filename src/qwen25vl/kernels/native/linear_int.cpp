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

constexpr int64_t kChunk = 28;          // blocks of a panel, at most
constexpr int64_t kCache = 512 << 10;   // bytes of panels that a thread keeps, half of a second-level cache of 1 MiB
constexpr int64_t kScratch = 16 << 20;  // bytes of activations in 8 bits at a time
#ifdef HAS_TILES
constexpr int64_t kPart = 8;  // blocks of a tile that stay in the first-level cache while all panels pass by
#else
constexpr int64_t kPart = INT64_MAX;
#endif
constexpr int64_t kAlone = 4;           // rows up to which weights are not turned
constexpr int64_t kFew = 16;            // rows up to which reading the weights takes longer than multiplying

// One row to four: from the weights' rows as they lie; blocks that are cut off by an edge from a copy filled with zeros.
template <int64_t kBits, int64_t kGroups>
void multiply_alone(const Problem& p, int64_t begin, int64_t end) {
    constexpr int64_t kBlockBytes = kBlock * kBits / 8;
    static thread_local Scratch all_scales;
    float* scales = kBits == 4 ? all_scales.take<float>(p.x.blocks * kGroups * kLanes) : nullptr;
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
                __builtin_memset(copy, 0, sizeof copy);
                for (int64_t o = 0; o < outputs; o++)
                    __builtin_memcpy(copy + o * kBlockBytes, weight + o * stride, bytes < kBlockBytes ? bytes : kBlockBytes);
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
void multiply_few(const Problem& p, int64_t begin, int64_t end) {
    static thread_local Scratch panels, all_sums, all_scales;
    uint8_t* panel = panels.take<uint8_t>(kBlock * kLanes);
    float* sums = all_sums.take<float>(p.rows * kLanes);
    float* scales = kBits == 4 ? all_scales.take<float>(p.x.blocks * kGroups * kLanes) : nullptr;
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

// Many rows: some panels, at most kChunk blocks at a time, stay in the second-level cache while all tiles pass by. A
// tile is asked for while the one before it is multiplied, since the third level is slow when others use it too. The
// sums of all tiles wait for the next chunk, if there is one.
template <int64_t kBits, int64_t kGroups>
void multiply_many(const Problem& p, int64_t begin, int64_t end, int64_t chunk) {
    constexpr int64_t kWidth = 2 * kLanes, kTile = many_rows(kGroups);
    static thread_local Scratch panels, all_scales, all_sums;
    int64_t num_panels = end - begin, panel_size = chunk * kBlock * kWidth, scales_size = p.x.blocks * kGroups * kWidth;
    int64_t tile_sums = num_panels * kTile * kWidth;
    bool once = chunk >= p.x.blocks;
    uint8_t* panel = panels.take<uint8_t>(num_panels * panel_size);
    float* sums = all_sums.take<float>((once ? 1 : (p.rows + kTile - 1) / kTile) * tile_sums);
    float* scales = kBits == 4 ? all_scales.take<float>(num_panels * scales_size) : nullptr;
    for (int64_t v = 0; v < 2 * num_panels && scales; v++)
        fill_scales<2>(scales + v / 2 * scales_size + v % 2 * kLanes, p, (2 * begin + v) * kLanes, p.x.blocks * kGroups);
    for (int64_t start = 0; start < p.x.blocks; start += chunk) {
        int64_t count = p.x.blocks - start < chunk ? p.x.blocks - start : chunk;
        for (int64_t v = 0; v < 2 * num_panels; v++)
            fill_panel<kBits, 2>(panel + v / 2 * panel_size + v % 2 * kBytes, p, (2 * begin + v) * kLanes, start, count,
                                 false);
        for (int64_t first = 0; first < p.rows; first += kTile) {
            int64_t next = first + kTile, rows = p.rows < next ? p.rows - first : kTile;
            int64_t others = p.rows - next < kTile ? p.rows - next : kTile;
            ReadAhead ahead(p.x.values + (next * p.x.blocks + start * others) * kBlock,
                            others > 0 ? count * others * kBlock : 0, count * num_panels);
            for (int64_t m = 0; m < rows && start + count == p.x.blocks; m++)
                for (int64_t i = begin; i < end; i++) ask_for(p.y + (first + m) * p.outputs + i * kWidth);
            float* to = once ? sums : sums + first / kTile * tile_sums;
            for (int64_t i = 0; i < tile_sums && start == 0; i += kLanes) store(to + i, zeros());
            for (int64_t part = 0, blocks; part < count; part += blocks) {
                blocks = count - part < kPart ? count - part : kPart;
                for (int64_t i = 0; i < num_panels; i++) {
                    for (int64_t j = 0; j < kTile * kWidth; j += kLanes) ask_for(to + (i + 1) * kTile * kWidth + j);
                    multiply_rows<kBits, kGroups, kTile, 2>(
                        rows, to + i * kTile * kWidth, p.x, first, start + part, blocks,
                        panel + i * panel_size + part * kBlock * kWidth,
                        scales ? scales + i * scales_size + (start + part) * kGroups * kWidth : nullptr, &ahead);
                }
            }
            for (int64_t m = 0; m < rows && start + count == p.x.blocks; m++)
                for (int64_t i = 0; i < num_panels; i++)
                    store_outputs(p, first + m, (begin + i) * kWidth, to + (i * kTile + m) * kWidth, kWidth);
        }
    }
}

// Several products of the same activations as if their outputs stood side by side: a part is of one or of several.
struct Together {
    Problem problems[kMostTogether];
    int64_t count;
};

template <int64_t kBits, int64_t kGroups>
void multiply_all(const Together& all, int64_t threads) {
    const int64_t rows = all.problems->rows, num_blocks = all.problems->x.blocks;
    bool few = rows <= kFew;
    int64_t width = (few ? 1 : 2) * kLanes, ends[kMostTogether], num_panels = 0;
    for (int64_t i = 0; i < all.count; i++) ends[i] = num_panels += (all.problems[i].outputs + width - 1) / width;
    int64_t num_chunks = (num_blocks + kChunk - 1) / kChunk, chunk = (num_blocks + num_chunks - 1) / num_chunks;
    int64_t fit = kCache / (chunk * kBlock * width), fair = num_panels / (4 * threads);
    int64_t together = fit < fair ? fit : fair;
    int64_t num_parts = few ? threads : together < 2 ? num_panels : (num_panels + together - 1) / together;
    if (!few && num_parts < num_panels - threads)  // as many for each thread
        num_parts = (num_parts + threads - 1) / threads * threads;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t part = 0; part < num_parts; part++) {
        int64_t first = num_panels * part / num_parts, last = num_panels * (part + 1) / num_parts;
        for (int64_t i = 0, start = 0; i < all.count; start = ends[i++]) {
            int64_t begin = first > start ? first - start : 0, end = (last < ends[i] ? last : ends[i]) - start;
            if (begin >= end) continue;
            if (rows <= kAlone) multiply_alone<kBits, kGroups>(all.problems[i], begin, end);
            else if (few) multiply_few<kBits, kGroups>(all.problems[i], begin, end);
            else multiply_many<kBits, kGroups>(all.problems[i], begin, end, chunk);
        }
    }
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
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > kAlone)
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
extern "C" void KERNEL(linear_int8)(bf16* y, const bf16* x, const uint8_t* codes, const float* scale, const bf16* bias,
                                    int64_t rows, int64_t inputs, int64_t outputs, int64_t stride, int64_t threads) {
    const Product product{codes, scale, bias, 8, inputs, outputs, stride};
    OWN(linear_int)(&y, x, &product, 1, rows, threads);
}

// packed [outputs, groups · group_size / 2]: two of level + 8, the even input in the low half; scale [outputs, groups]
// float16; group_size 32, 64 or 128.
extern "C" void KERNEL(linear_int4)(bf16* y, const bf16* x, const uint8_t* packed, const uint16_t* scale,
                                    const bf16* bias, int64_t rows, int64_t inputs, int64_t outputs, int64_t group_size,
                                    int64_t threads) {
    const Product product{packed, scale, bias, 4, inputs, outputs, group_size};
    OWN(linear_int)(&y, x, &product, 1, rows, threads);
}
