// y = x·wᵀ + b for weights of 8 or 4 bits; activations are quantised on the way, 128 inputs of a
// row at a time.
//
//     x[m, k] ≈ a[m, k] · A[m, k / 128]       a from −127 to 127, A = largest |x| of the 128 / 127
//     y[m, o] = Σ_groups A[m, group] · S[o, group] · (Σ_k a[m, k] · level[o, k])  + b[o]
//
// The inner sum is exact in 32-bit integers, and the outer one runs over the groups in order; so a
// row gives the same bits alone and among thousands. 8-bit weights have one S for each output,
// which is multiplied in at the end. Where each output and group of 4-bit weights has a zero point
// of its own, level = code − zero point, and the inner sum is that of the codes less zero point ·
// Σ_k a[m, k]: still exact.
//
// Arithmetic with AVX-512: one instruction multiplies 64 unsigned bytes (levels + zero point) with
// 64 signed bytes (four activations, broadcast) into 16 sums, two such instructions a cycle. A tile
// of 6 rows by 2 vectors keeps 12 integer sums in registers, and 12 float ones close by: 8 loads
// for 12 multiplications. The zero point is taken out by starting each sum at −zero · Σ_k a[m, k].
// Every 128 inputs the 12 integer sums are added to the floats: 36 instructions after 384.
//
// AVX2 has no such instruction. It multiplies 32 bytes and adds the products in pairs of 16 bits.
// Eight such steps of 4-bit weights fit in 16 bits, so the sums are widened once for all of them:
// 2.25 instructions for 32 products instead of 3.
#include "few_amx.h"

namespace {

#ifdef HAS_TILES
constexpr int64_t kMaxChunk = 16;  // blocks of a panel
#else
constexpr int64_t kMaxChunk = 28;
#endif
constexpr int64_t kMaxLevelBytes = 16 << 20;  // of activations in 8 bits at a time

// Blocks of a panel, at most: all chunks are alike.
int64_t chunk_of(int64_t blocks) {
    const int64_t num_chunks = (blocks + kMaxChunk - 1) / kMaxChunk;
    return (blocks + num_chunks - 1) / num_chunks;
}

// What a thread needs for a part of many rows: the codes and scales of its panels, and the sums of
// one panel and one tile, or of all of them where the inputs come in several chunks.
struct ManyArrays {
    uint8_t* codes;
    float *sums, *scales, *zero_points;  // the latter two of 4-bit weights
    ManyArrays(Arena& arena, int64_t blocks, int64_t groups, bool has_zeros, const Parts& parts)
        : codes(arena.take<uint8_t>(parts.most_panels() * chunk_of(blocks) * kBlock * kPanel)),
          sums(arena.take<float>(
              (chunk_of(blocks) < blocks ? parts.most_tiles() * parts.most_panels() : 1) *
              rows_at_once(groups) * kPanel)),
          scales(arena.take<float>(parts.most_panels() * blocks * groups * kPanel)),
          zero_points(has_zeros
                          ? arena.take<float>(parts.most_panels() * blocks * groups * kPanel)
                          : nullptr) {}
};

// The tile of so many rows that begins at row `first`, by a panel of two vectors.
template <int64_t kBits, int64_t kGroups, bool kZeros>
void multiply_int_tile(int64_t rows, float* sums, const Activations& x, int64_t first,
                       Blocks blocks, IntPanel panel, ReadAhead* ahead) {
    if constexpr (by_tiles(kGroups)) {
#ifdef HAS_TILES
        int_tile_by_amx<kBits, kZeros>(rows, sums, x, first, blocks, panel, ahead);
#endif
    } else {
        int_tile_of<kBits, kGroups, kZeros, kIntTileRows, 2>(rows, sums, x, first, blocks, panel,
                                                             ahead);
    }
}

// Many rows: some panels, at most kMaxChunk blocks at a time, stay in the second-level cache while
// the tiles of the part pass by. A tile is asked for while the one before it is multiplied, since
// the third level is slow when others use it too. The sums of all tiles wait for the next chunk, if
// there is one.
template <int64_t kBits, int64_t kGroups, bool kZeros>
class IntManyRows {
public:
    IntManyRows(const IntProduct& product, const Part& part, const ManyArrays& arrays)
        : p(product), part_(part), arrays_(arrays), num_panels_(part.end - part.begin),
          chunk_(chunk_of(product.x.blocks)), scales_size_(product.x.blocks * kGroups * kPanel) {}

    void run() const {
        for (int64_t v = 0; v < 2 * num_panels_ && kBits == 4; v++) {
            const int64_t at = v / 2 * scales_size_ + v % 2 * kLanes;
            const int64_t first = (2 * part_.begin + v) * kLanes, groups = p.x.blocks * kGroups;
            fill_scales<2>(arrays_.scales + at, p, first, groups);
            if (kZeros) fill_zero_points<2>(arrays_.zero_points + at, p, first, groups);
        }
        for (int64_t start = 0; start < p.x.blocks; start += chunk_) {
            const int64_t left = p.x.blocks - start;
            const Blocks blocks{start, left < chunk_ ? left : chunk_};
            for (int64_t v = 0; v < 2 * num_panels_; v++)
                fill_int_panel<kBits, 2, kAsTiles>(
                    codes_of(v / 2) + vector_of_codes<kAsTiles>(v % 2), p,
                    (2 * part_.begin + v) * kLanes, blocks, kZero, Ahead::kNot);
            for (int64_t tile = part_.first_tile; tile < part_.last_tile; tile++)
                multiply_tile(tile, blocks);
        }
    }

private:
    static constexpr bool kAsTiles = by_tiles(kGroups);
    static constexpr int64_t kTile = rows_at_once(kGroups), kSums = kTile * kPanel;
    static constexpr int64_t kZero = kZeros ? 0 : zero_point(kBits);

    uint8_t* codes_of(int64_t panel) const {
        return arrays_.codes + panel * chunk_ * kBlock * kPanel;
    }

    void multiply_tile(int64_t tile, Blocks blocks) const {
        const int64_t first = tile * kTile, next = first + kTile;
        const int64_t rows = p.layout.rows_of(first, p.rows);
        const int64_t others = next < p.rows ? p.layout.rows_of(next, p.rows) : 0;
        const int64_t stored = next < p.rows ? kTile : p.rows - first;
        const bool is_last = blocks.start + blocks.count == p.x.blocks, once = chunk_ >= p.x.blocks;
        ReadAhead ahead(p.x.values + (next * p.x.blocks + blocks.start * others) * kBlock,
                        blocks.count * others * kBlock, blocks.count * num_panels_);
        for (int64_t m = 0; m < stored && is_last; m++)
            for (int64_t i = part_.begin; i < part_.end; i++)
                ask_for(p.y + (first + m) * p.outputs + i * kPanel);
        float* sums = arrays_.sums + (once ? 0 : (tile - part_.first_tile) * num_panels_ * kSums);
        for (int64_t i = 0; i < num_panels_; i++, sums += once ? 0 : kSums) {
            for (int64_t j = 0; j < kSums && !once; j += kLanes) ask_for(sums + kSums + j);
            for (int64_t j = 0; j < kSums && blocks.start == 0; j += kLanes)
                store(sums + j, zeros());
            const int64_t scales_at = i * scales_size_ + blocks.start * kGroups * kPanel;
            const IntPanel panel{codes_of(i), kBits == 4 ? arrays_.scales + scales_at : nullptr,
                                 kZeros ? arrays_.zero_points + scales_at : nullptr};
            multiply_int_tile<kBits, kGroups, kZeros>(rows, sums, p.x, first, blocks, panel,
                                                      &ahead);
            if (is_last)
                store_outputs<2>(p.results(), first, stored, (part_.begin + i) * kPanel, sums);
        }
    }

    const IntProduct& p;
    const Part& part_;
    const ManyArrays& arrays_;
    const int64_t num_panels_, chunk_, scales_size_;
};

// Call use(product, part) for what a part of all products is of each of them.
template <class Use>
void for_each_product(const Together& all, const Part& part, int64_t width, const Use& use) {
    for (int64_t i = 0, start = 0, stop; i < all.count; i++, start = stop) {
        stop = start + (all.products[i].outputs + width - 1) / width;
        const int64_t begin = part.begin > start ? part.begin - start : 0;
        const int64_t end = (part.end < stop ? part.end : stop) - start;
        if (begin < end) use(all.products[i], Part{begin, end, part.first_tile, part.last_tile});
    }
}

// The products of activations that are in 8 bits already.
template <int64_t kBits, int64_t kGroups, bool kZeros>
void multiply_levels(const Together& all, int64_t threads) {
    static thread_local Scratch own_memory;
    Scratch& memory = own_memory;  // this thread's, in the others too
    const int64_t rows = all.products->rows, blocks = all.products->x.blocks;
    const int64_t tile = rows_at_once(kGroups);
    const bool few = rows <= max_few_rows(kGroups), as_stored = rows <= max_rows_as_stored();
    const int64_t width = as_stored || (few && by_tiles(kGroups)) ? kLanes : kPanel;
    int64_t num_panels = 0;
    for (int64_t i = 0; i < all.count; i++)
        num_panels += (all.products[i].outputs + width - 1) / width;
    const int64_t panel_bytes = chunk_of(blocks) * kBlock * kPanel;
    const int64_t sum_bytes = chunk_of(blocks) < blocks ? tile * kPanel * 4 : 0;
    const Parts parts =
        few ? Parts::of_few(num_panels, threads)
            : Parts::of_many(num_panels, panel_bytes, (rows + tile - 1) / tile, sum_bytes, threads);
    if (few) memory.take_for<FewArrays>(threads, all, kGroups);
    else memory.take_for<ManyArrays>(threads, blocks, kGroups, kZeros, parts);
#pragma omp parallel num_threads(threads)
    {
        [[maybe_unused]] const Tiles in_force;
        const auto multiply = [&](const IntProduct& product, const Part& part) {
            if (!few) {
                const auto arrays =
                    memory.of_this_thread<ManyArrays>(blocks, kGroups, kZeros, parts);
                return IntManyRows<kBits, kGroups, kZeros>(product, part, arrays).run();
            }
            const auto arrays = memory.of_this_thread<FewArrays>(all, kGroups);
            if (as_stored)
                return int_rows_as_stored<kBits, kGroups, kZeros>(product, part.begin, part.end,
                                                                  arrays);
            if constexpr (by_tiles(kGroups)) {
#ifdef HAS_TILES
                int_few_rows_by_amx<kBits, kZeros>(product, part.begin, part.end, arrays);
#endif
            } else {
                int_few_rows<kBits, kGroups, kZeros>(product, part.begin, part.end, arrays);
            }
        };
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < parts.count(); i++)
            for_each_product(all, parts[i], width, multiply);
    }
}

// Few enough rows for their levels to fit in kMaxLevelBytes.
template <int64_t kBits, bool kZeros>
void quantise_and_multiply(Together all, const Rows& x, int64_t groups, int64_t threads) {
    static thread_local Scratch values, starts, scales;
    const bool as_stored = x.count <= max_rows_as_stored(), tiled = !as_stored && by_tiles(groups);
    const bool in_rows = tiled && x.count > max_few_rows(groups);
    // one row of those as stored shares nothing with the other
    const int64_t tile_rows = as_stored ? 1 : in_rows || !tiled ? rows_at_once(groups) : kTileRows;
    const Layout layout{tile_rows, tiled ? kTileRows : 1, groups, kZeros ? 1 : zero_point(kBits),
                        in_rows};
    const int64_t blocks = (x.inputs + kBlock - 1) / kBlock;
    const int64_t num_tiles = (x.count + layout.tile_rows - 1) / layout.tile_rows;
    const int64_t rows = layout.rows_of_all(x.count);
    const Activations a{values.take<int8_t>(rows * blocks * kBlock),
                        starts.take<int32_t>(rows * blocks * groups),
                        scales.take<float>(rows * blocks), blocks};
    for (int64_t i = 0; i < all.count; i++) all.products[i].x = a, all.products[i].layout = layout;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 64) if (!as_stored)
    for (int64_t i = 0; i < num_tiles * blocks; i++)
        quantise_tile<kBits>(a, layout, x, i / blocks * layout.tile_rows, i % blocks);
    if constexpr (kBits == 4) {
        if (groups == 4) return multiply_levels<4, 4, kZeros>(all, threads);
        if (groups == 2) return multiply_levels<4, 2, kZeros>(all, threads);
    }
    multiply_levels<kBits, 1, kZeros>(all, threads);
}

template <int64_t kBits, bool kZeros>
void linear(const Together& all, const Rows& x, int64_t groups, int64_t threads) {
    const int64_t num_parts = x.count * (x.inputs + kBlock) / kMaxLevelBytes + 1;
    for (int64_t part = 0; part < num_parts; part++) {
        const int64_t begin = x.count * part / num_parts, end = x.count * (part + 1) / num_parts;
        Together some = all;
        for (int64_t i = 0; i < all.count; i++) {
            some.products[i].y += begin * all.products[i].outputs;
            some.products[i].rows = end - begin;
        }
        const Rows rows{x.x + begin * x.inputs, end - begin, x.inputs};
        quantise_and_multiply<kBits, kZeros>(some, rows, groups, threads);
    }
}

IntProduct product_of(const Product& layer, bf16* y) {
    IntProduct p{};
    p.weight = layer.weight;
    p.bias = layer.bias;
    p.y = y;
    p.outputs = layer.outputs;
    if (layer.bits == 8) {
        p.stride = layer.step;
        p.scale = (const float*)layer.scale;
    } else {
        p.groups = (layer.inputs + layer.step - 1) / layer.step;
        p.stride = p.groups * layer.step / 2;
        p.halves = (const uint16_t*)layer.scale;
        p.zero_points = layer.zero_points;
    }
    return p;
}

}  // namespace

// At most kMostTogether products of the same x, of the same number of bits and the same groups, all
// with zero points or none.
void OWN(linear_int)(bf16* const* y, const bf16* x, const Product* products, int64_t count,
                     int64_t num_rows, int64_t threads) {
    const Rows rows{x, num_rows, products->inputs};
    Together all{{}, count};
    for (int64_t i = 0; i < count; i++) all.products[i] = product_of(products[i], y[i]);
    const int64_t groups = products->bits == 8 ? 1 : kBlock / products->step;
    if (products->bits == 8) linear<8, false>(all, rows, groups, threads);
    else if (products->zero_points) linear<4, true>(all, rows, groups, threads);
    else linear<4, false>(all, rows, groups, threads);
}

// codes [outputs, inputs]: level + 128, rows `stride` bytes apart; scale [outputs].
extern "C" int64_t KERNEL(linear_int8)(bf16* y, const bf16* x, const uint8_t* codes,
                                       const float* scale, const bf16* bias, int64_t rows,
                                       int64_t inputs, int64_t outputs, int64_t stride,
                                       int64_t threads) {
    const Product product{codes, scale, nullptr, bias, 8, inputs, outputs, stride};
    return guarded([&] { OWN(linear_int)(&y, x, &product, 1, rows, threads); });
}

// packed [outputs, groups · group_size / 2]: two codes in a byte, the even input in the low half;
// scale [outputs, groups] float16; zero_points [outputs / 8, groups], eight in a word, or null: all
// are 8; group_size 32, 64 or 128.
extern "C" int64_t KERNEL(linear_int4)(bf16* y, const bf16* x, const uint8_t* packed,
                                       const uint16_t* scale, const uint32_t* zero_points,
                                       const bf16* bias, int64_t rows, int64_t inputs,
                                       int64_t outputs, int64_t group_size, int64_t threads) {
    const Product product{packed, scale, zero_points, bias, 4, inputs, outputs, group_size};
    return guarded([&] { OWN(linear_int)(&y, x, &product, 1, rows, threads); });
}
