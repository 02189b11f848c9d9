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
#include "dots.h"

namespace {

constexpr int64_t kChunk = 28;          // blocks of a panel, at most
constexpr int64_t kCache = 512 << 10;   // bytes of panels that a thread keeps, half of a second-level cache of 1 MiB
constexpr int64_t kScratch = 16 << 20;  // bytes of activations in 8 bits at a time
constexpr int64_t kAlone = 2;           // rows up to which weights are not turned
constexpr int64_t kFew = 16;            // rows up to which reading the weights takes longer than multiplying

// Where a panel's numbers come from. weight: rows of `stride` bytes; scales of 4-bit weights [outputs, groups] float16.
struct Problem {
    const uint8_t* weight;
    int64_t stride;
    const uint16_t* halves;
    int64_t groups;
    const float* scale;  // of 8-bit weights [outputs]
    const bf16* bias;
    bf16* y;
    Activations x;
    int64_t rows, outputs;
};

// Turn blocks [start, start + count) of kLanes outputs from `first` on into every kVectors-th vector of the panel.
template <int64_t kBits, int64_t kVectors>
void fill_panel(uint8_t* panel, const Problem& p, int64_t first, int64_t start, int64_t count, ReadAhead* ahead) {
    constexpr int64_t kBlockBytes = kBlock * kBits / 8;
    for (int64_t at = start * kBlockBytes; at < (start + count) * kBlockBytes; at += kBytes) {
        Words r[kLanes];
        if (ahead) ahead->step();
        const uint8_t* from = p.weight + first * p.stride + at;
        if (first + kLanes <= p.outputs && p.stride - at >= kBytes)
            for (int64_t i = 0; i < kLanes; i++) r[i] = load_words(from + i * p.stride);
        else
            for (int64_t i = 0; i < kLanes; i++)
                r[i] = first + i < p.outputs ? load_bytes(from + i * p.stride, p.stride - at) : Words{};
        transpose(r);
        int64_t block = at / kBlockBytes - start, step = at % kBlockBytes / 4;
        uint8_t* to = panel + (block * kSteps + step) * kVectors * kBytes;
        for (int64_t i = 0; i < kLanes; i++, to += kVectors * kBytes)
            if constexpr (kBits == 8) {
                store_words(to, for_panel(r[i]));
            } else {
                store_words(to, low_halves(r[i]));
                store_words(to + kSteps / 2 * kVectors * kBytes, high_halves(r[i]));
            }
    }
}

// The scales of kLanes outputs from `first` on, group by group: [count, kVectors, kLanes]; zeros after the last group,
// which may end before its block does.
template <int64_t kVectors>
void fill_scales(float* scales, const Problem& p, int64_t first, int64_t count) {
    for (int64_t g = 0; g < count; g += kLanes) {
        Words r[kLanes];
        for (int64_t i = 0; i < kLanes; i++) {
            bool inside = first + i < p.outputs && g < p.groups;
            Floats row = inside ? load_halves(p.halves + (first + i) * p.groups + g, p.groups - g) : zeros();
            __builtin_memcpy(&r[i], &row, sizeof row);
        }
        transpose(r);
        for (int64_t i = 0; i < kLanes && g + i < count; i++) store_words(scales + (g + i) * kVectors * kLanes, r[i]);
    }
}

// sums[m, v, lane] += the blocks [start, start + count) of a tile by the panel; kGroups scales for each block.
template <int64_t kBits, int64_t kGroups, int64_t kRows, int64_t kVectors>
void multiply_tile(float* sums, const Activations& x, int64_t first, int64_t start, int64_t count, const uint8_t* panel,
                   const float* scales, ReadAhead* ahead) {
    constexpr int64_t kHalves = kGroups == 1 ? 1 : 2, kRun = kSteps / kGroups / kHalves;
    constexpr int64_t kChains = kRows * kVectors <= 2 ? 4 : kRows * kVectors <= 4 ? 2 : 1;  // of sums that wait for none
    int64_t at = first * x.blocks + start * kRows;
    const int8_t* values = x.values + at * kBlock;
    const int32_t* starts = x.starts + at * kGroups;
    const float* row_scales = x.scales + at;
    for (int64_t b = 0; b < count; b++, row_scales += kRows, values += kRows * kBlock) {
        if (ahead) ahead->step();
        for (int64_t g = 0; g < kGroups; g++, starts += kRows) {
            Words n[kChains][kRows][kVectors];
            UNROLL for (int64_t c = 0; c < kChains; c++)
                UNROLL for (int64_t m = 0; m < kRows; m++)
                    UNROLL for (int64_t v = 0; v < kVectors; v++) n[c][m][v] = all_words(c == 0 ? starts[m] : 0);
            for (int64_t half = 0; half < kHalves; half++)
                for (int64_t s = half * kSteps / 2 + g * kRun; s < half * kSteps / 2 + (g + 1) * kRun; s += kChains)
                    UNROLL for (int64_t c = 0; c < kChains; c++) {
                        Words w[kVectors];
                        UNROLL for (int64_t v = 0; v < kVectors; v++)
                            w[v] = load_words(panel + ((s + c) * kVectors + v) * kBytes);
                        UNROLL for (int64_t m = 0; m < kRows; m++) {
                            int32_t four;
                            __builtin_memcpy(&four, values + ((s + c) * kRows + m) * 4, 4);
                            UNROLL for (int64_t v = 0; v < kVectors; v++)
                                n[c][m][v] = dot4<kBits>(n[c][m][v], w[v], all_words(four));
                        }
                    }
            UNROLL for (int64_t c = 1; c < kChains; c++)
                UNROLL for (int64_t m = 0; m < kRows; m++)
                    UNROLL for (int64_t v = 0; v < kVectors; v++) n[0][m][v] = add_words(n[0][m][v], n[c][m][v]);
            UNROLL for (int64_t m = 0; m < kRows; m++)
                UNROLL for (int64_t v = 0; v < kVectors; v++) {
                    float* sum = sums + (m * kVectors + v) * kLanes;
                    Floats scale = broadcast(row_scales[m]);
                    if constexpr (kBits == 4) scale = multiply(scale, load(scales + v * kLanes));
                    store(sum, multiply_add(to_floats(n[0][m][v]), scale, load(sum)));
                }
            if constexpr (kBits == 4) scales += kVectors * kLanes;
        }
        panel += kSteps * kVectors * kBytes;
    }
}

template <int64_t kBits, int64_t kGroups, int64_t kRows, int64_t kVectors>
void multiply_rows(int64_t rows, float* sums, const Activations& x, int64_t row, int64_t start, int64_t count,
                   const uint8_t* panel, const float* scales, ReadAhead* ahead) {
    if (rows == kRows)
        return multiply_tile<kBits, kGroups, kRows, kVectors>(sums, x, row, start, count, panel, scales, ahead);
    if constexpr (kRows > 1)
        multiply_rows<kBits, kGroups, kRows - 1, kVectors>(rows, sums, x, row, start, count, panel, scales, ahead);
}

void store_outputs(const Problem& p, int64_t row, int64_t first, const float* sums, int64_t width) {
    for (int64_t o = first; o < p.outputs && o < first + width; o += kLanes, sums += kLanes) {
        int64_t some = p.outputs - o < kLanes ? p.outputs - o : kLanes;
        Floats value = load(sums);
        if (p.scale) value = multiply(value, load_first(p.scale + o, some));
        if (p.bias) value = add(value, load_first(p.bias + o, some));
        store_first(p.y + row * p.outputs + o, value, some);
    }
}

// One row or two: from the weights' rows as they lie; blocks that are cut off by an edge from a copy filled with zeros.
template <int64_t kBits, int64_t kGroups>
void multiply_alone(const Problem& p, int64_t begin, int64_t end) {
    constexpr int64_t kBlockBytes = kBlock * kBits / 8;
    static thread_local Scratch all_scales;
    float* scales = kBits == 4 ? all_scales.take<float>(p.x.blocks * kGroups * kLanes) : nullptr;
    alignas(64) uint8_t copy[kLanes * kBlockBytes];
    int64_t stop = end * kLanes < p.outputs ? end * kLanes : p.outputs;
    for (int64_t first = begin * kLanes; first < stop; first += kLanes) {
        int64_t next = first + kLanes, outputs = stop < next ? stop - first : kLanes;
        int64_t following = stop - next < kLanes ? stop - next : kLanes;
        ReadAhead ahead(p.weight + next * p.stride, following > 0 ? following * p.stride : 0, p.x.blocks);
        if (scales) fill_scales<1>(scales, p, first, p.x.blocks * kGroups);
        alignas(64) float sums[kAlone][kLanes] = {};
        for (int64_t block = 0; block < p.x.blocks; block++) {
            ahead.step();
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
                                                         scales ? scales + block * kGroups * kLanes : nullptr));
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
        int64_t next = first + kLanes, stop = end * kLanes < p.outputs ? end * kLanes : p.outputs;
        int64_t following = next + kLanes < stop ? kLanes : next < stop ? stop - next : 0;
        ReadAhead ahead(p.weight + next * p.stride, following * p.stride, p.stride / kBytes);
        for (int64_t block = 0; block < p.x.blocks; block++) {
            fill_panel<kBits, 1>(panel, p, first, block, 1, &ahead);
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
    constexpr int64_t kWidth = 2 * kLanes;
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
                                 nullptr);
        for (int64_t first = 0; first < p.rows; first += kTile) {
            int64_t next = first + kTile, rows = p.rows < next ? p.rows - first : kTile;
            int64_t others = p.rows - next < kTile ? p.rows - next : kTile;
            ReadAhead ahead(p.x.values + (next * p.x.blocks + start * others) * kBlock,
                            others > 0 ? count * others * kBlock : 0, count * num_panels);
            for (int64_t m = 0; m < rows && start + count == p.x.blocks; m++)
                for (int64_t i = begin; i < end; i++) ask_for(p.y + (first + m) * p.outputs + i * kWidth);
            float* to = once ? sums : sums + first / kTile * tile_sums;
            for (int64_t i = 0; i < tile_sums && start == 0; i += kLanes) store(to + i, zeros());
            for (int64_t i = 0; i < num_panels; i++) {
                for (int64_t j = 0; j < kTile * kWidth; j += kLanes) ask_for(to + (i + 1) * kTile * kWidth + j);
                multiply_rows<kBits, kGroups, kTile, 2>(
                    rows, to + i * kTile * kWidth, p.x, first, start, count, panel + i * panel_size,
                    scales ? scales + i * scales_size + start * kGroups * kWidth : nullptr, &ahead);
            }
            for (int64_t m = 0; m < rows && start + count == p.x.blocks; m++)
                for (int64_t i = 0; i < num_panels; i++)
                    store_outputs(p, first + m, (begin + i) * kWidth, to + (i * kTile + m) * kWidth, kWidth);
        }
    }
}

template <int64_t kBits, int64_t kGroups>
void multiply_all(const Problem& p, int64_t threads) {
    bool few = p.rows <= kFew;
    int64_t width = (few ? 1 : 2) * kLanes, num_panels = (p.outputs + width - 1) / width;
    int64_t num_chunks = (p.x.blocks + kChunk - 1) / kChunk, chunk = (p.x.blocks + num_chunks - 1) / num_chunks;
    int64_t fit = kCache / (chunk * kBlock * width), fair = num_panels / (4 * threads);
    int64_t together = fit < fair ? fit : fair;
    int64_t num_parts = few ? threads : together < 2 ? num_panels : (num_panels + together - 1) / together;
    if (!few && num_parts < num_panels - threads)  // as many for each thread
        num_parts = (num_parts + threads - 1) / threads * threads;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t part = 0; part < num_parts; part++) {
        int64_t begin = num_panels * part / num_parts, end = num_panels * (part + 1) / num_parts;
        if (p.rows <= kAlone) multiply_alone<kBits, kGroups>(p, begin, end);
        else if (few) multiply_few<kBits, kGroups>(p, begin, end);
        else multiply_many<kBits, kGroups>(p, begin, end, chunk);
    }
}

// Few enough rows for their levels to fit in kScratch.
template <int64_t kBits>
void multiply(Problem p, const bf16* x, int64_t inputs, int64_t groups, int64_t threads) {
    static thread_local Scratch values, starts, scales;
    int64_t tile = p.rows <= kAlone ? 1 : kTile;  // each row by itself where they do not share broadcasts
    int64_t blocks = (inputs + kBlock - 1) / kBlock, num_tiles = (p.rows + tile - 1) / tile;
    p.x = {values.take<int8_t>(p.rows * blocks * kBlock), starts.take<int32_t>(p.rows * blocks * groups),
           scales.take<float>(p.rows * blocks), blocks};
#pragma omp parallel for num_threads(threads) schedule(static) if (p.rows > kAlone)
    for (int64_t i = 0; i < num_tiles * blocks; i++) {
        int64_t first = i / blocks * tile;
        quantise_tile<kBits>(p.x, first, i % blocks, p.rows - first < tile ? p.rows - first : tile, x, inputs, groups);
    }
    if constexpr (kBits == 4) {
        if (groups == 4) return multiply_all<4, 4>(p, threads);
        if (groups == 2) return multiply_all<4, 2>(p, threads);
    }
    multiply_all<kBits, 1>(p, threads);
}

template <int64_t kBits>
void linear(const Problem& p, const bf16* x, int64_t inputs, int64_t groups, int64_t threads) {
    int64_t num_parts = p.rows * (inputs + kBlock) / kScratch + 1;
    for (int64_t part = 0; part < num_parts; part++) {
        int64_t begin = p.rows * part / num_parts, end = p.rows * (part + 1) / num_parts;
        Problem some = p;
        some.y += begin * p.outputs;
        some.rows = end - begin;
        multiply<kBits>(some, x + begin * inputs, inputs, groups, threads);
    }
}

}  // namespace

// codes [outputs, inputs]: level + 128, rows `stride` bytes apart; scale [outputs].
extern "C" void KERNEL(linear_int8)(bf16* y, const bf16* x, const uint8_t* codes, const float* scale, const bf16* bias,
                                    int64_t rows, int64_t inputs, int64_t outputs, int64_t stride, int64_t threads) {
    Problem p{codes, stride, nullptr, 0, scale, bias, y, {}, rows, outputs};
    linear<8>(p, x, inputs, 1, threads);
}

// packed [outputs, groups · group_size / 2]: two of level + 8, the even input in the low half; scale [outputs, groups]
// float16; group_size 32, 64 or 128.
extern "C" void KERNEL(linear_int4)(bf16* y, const bf16* x, const uint8_t* packed, const uint16_t* scale,
                                    const bf16* bias, int64_t rows, int64_t inputs, int64_t outputs, int64_t group_size,
                                    int64_t threads) {
    int64_t groups = (inputs + group_size - 1) / group_size;
    Problem p{packed, groups * group_size / 2, scale, groups, nullptr, bias, y, {}, rows, outputs};
    linear<4>(p, x, inputs, kBlock / group_size, threads);
}
