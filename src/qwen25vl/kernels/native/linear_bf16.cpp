// y = x·wᵀ + b for bfloat16 x [rows, inputs] and w [outputs, inputs], sums in float32.
//
// Arithmetic: a tile of activation rows by one panel (32 outputs with AVX-512) keeps its sums in
// registers, 12 × 2 of the 32; each step of two inputs loads 2 panel vectors and broadcasts 12
// pairs for 24 multiply-add instructions, so that loads (14 at two a cycle) hide behind arithmetic
// (24 at two a cycle).
//
// Caches: a thread transposes the panels of a hundred outputs or two, at most kMaxChunk inputs at a
// time; they stay in its second-level cache while all tiles pass by, and a tile comes from farther
// away once for all of them. It is asked for while the tile before it is multiplied: one stream of
// 4 bytes a cycle leaves no time to wait for the third level, which others use too. Therefore the
// rows are first laid out anew, tile by tile; besides, rows that lie 4096 bytes apart would push
// one another out of the first-level cache.
//
// A row's sum runs over the inputs in order, whatever rows stand beside it: a row alone gives the
// same bits. AMX sums in an order of its own; there few rows go through its tiles as well.
#include "kernels.h"
#include "panel_bf16.h"

namespace {

#ifdef HAS_TILES
constexpr int64_t kInputsAtOnce = 16 * kLanes;  // that few rows transpose before they multiply
constexpr int64_t kMaxChunk = 2048;             // inputs of a panel
#else
constexpr int64_t kInputsAtOnce = 2 * kLanes;
constexpr int64_t kMaxChunk = 3456;
#endif
constexpr int64_t kPanel = 2 * kLanes;          // outputs of a panel of many rows
constexpr int64_t kMaxLaidOutBytes = 16 << 20;  // of activations at a time

// One tile of rows: each step of a panel is used as soon as it is transposed, so that nothing but
// the weights is read.
void bf16_few_rows(const Bf16Product& p, int64_t begin, int64_t end) {
    alignas(64) bf16 panel[kInputsAtOnce * kLanes];
    const int64_t rows = p.tile_rows(0);
    for (int64_t first = begin * kLanes; first < p.outputs && first < end * kLanes;
         first += kLanes) {
        alignas(64) float sums[kBf16TileRows * kLanes];
        for (int64_t start = 0; start < p.inputs; start += kInputsAtOnce) {
            const int64_t left = p.inputs - start;
            const Inputs inputs{start, left < kInputsAtOnce ? left : kInputsAtOnce};
            fill_bf16_panel<1>(panel, p, first, inputs, true);
            bf16_tile_of<kBf16TileRows, 1>(rows, sums, p.x + start * rows, panel,
                                           (inputs.count + 1) / 2, {start == 0, nullptr});
        }
        store_outputs<1>(p.results(), 0, p.rows, first, sums);
    }
}

// Inputs of a panel, at most: all chunks are alike.
int64_t chunk_of(int64_t inputs) {
    const int64_t num_chunks = (inputs + kMaxChunk - 1) / kMaxChunk;
    const int64_t grain = num_chunks * 2 * kLanes;
    return (inputs + grain - 1) / grain * 2 * kLanes;
}

// What a thread needs for a part of many rows: its panels, and the sums of one panel and one tile,
// or of all of them where the inputs come in several chunks.
struct ManyArrays {
    bf16* panel;
    float* sums;
    ManyArrays(Arena& arena, int64_t inputs, const Parts& parts)
        : panel(arena.take<bf16>(parts.most_panels() * chunk_of(inputs) * kPanel)),
          sums(arena.take<float>(
              (chunk_of(inputs) < inputs ? parts.most_tiles() * parts.most_panels() : 1) *
              kBf16TileRows * kPanel)) {}
};

// Many rows. If the inputs come in several chunks, the sums of all tiles of the part wait for the
// next one.
class Bf16ManyRows {
public:
    Bf16ManyRows(const Bf16Product& product, const Part& part, const ManyArrays& arrays)
        : p(product), part_(part), arrays_(arrays), num_panels_(part.end - part.begin),
          chunk_(chunk_of(product.inputs)) {}

    void run() const {
        for (int64_t start = 0; start < p.inputs; start += chunk_) {
            const int64_t left = p.inputs - start;
            const Inputs inputs{start, left < chunk_ ? left : chunk_};
            for (int64_t v = 0; v < 2 * num_panels_; v++)
                fill_bf16_panel<2>(arrays_.panel + v / 2 * chunk_ * kPanel + vector_of_panel(v % 2),
                                   p, (2 * part_.begin + v) * kLanes, inputs, false);
            for (int64_t tile = part_.first_tile; tile < part_.last_tile; tile++)
                multiply_tile(tile, inputs);
        }
    }

private:
    void multiply_tile(int64_t tile, Inputs inputs) const {
        constexpr int64_t kSums = kBf16TileRows * kPanel;
        const int64_t first = tile * kBf16TileRows, next = first + kBf16TileRows;
        const int64_t rows = p.tile_rows(first), others = p.tile_rows(next);
        const int64_t stored = p.rows < next ? p.rows - first : kBf16TileRows;
        const bool is_last = inputs.start + inputs.count == p.inputs, once = chunk_ >= p.inputs;
        for (int64_t m = 0; m < stored && is_last; m++)
            for (int64_t i = part_.begin; i < part_.end; i++)
                ask_for(p.y + (first + m) * p.outputs + i * kPanel);
        float* sums = arrays_.sums + (once ? 0 : (tile - part_.first_tile) * num_panels_ * kSums);
        ReadAhead ahead(p.x + 2 * next * p.pairs() + inputs.start * others,
                        2 * inputs.count * others, (inputs.count / 32 + 1) * num_panels_);
        const bf16* x = p.x + 2 * first * p.pairs() + inputs.start * rows;
        for (int64_t i = 0; i < num_panels_; i++, sums += once ? 0 : kSums) {
            for (int64_t j = 0; j < kSums && !once; j += kLanes) ask_for(sums + kSums + j);
            bf16_tile_of<kBf16TileRows, 2>(rows, sums, x, arrays_.panel + i * chunk_ * kPanel,
                                           (inputs.count + 1) / 2, {inputs.start == 0, &ahead});
            if (is_last)
                store_outputs<2>(p.results(), first, stored, (part_.begin + i) * kPanel, sums);
        }
    }

    const Bf16Product& p;
    const Part& part_;
    const ManyArrays& arrays_;
    const int64_t num_panels_, chunk_;
};

// Few enough rows for their tiles to fit in kMaxLaidOutBytes.
void lay_out_and_multiply(Bf16Product p, int64_t threads) {
    static thread_local Scratch tiles_memory, parts_memory;
    const bool few = p.rows <= kBf16TileRows;
    const int64_t num_tiles = (p.rows + kBf16TileRows - 1) / kBf16TileRows;
    const int64_t steps = (p.pairs() + kLanes - 1) / kLanes;
    const int64_t width = few ? kLanes : kPanel, num_panels = (p.outputs + width - 1) / width;
    const int64_t panel_bytes = chunk_of(p.inputs) * kPanel * 2;
    const int64_t sum_bytes = chunk_of(p.inputs) < p.inputs ? kBf16TileRows * kPanel * 4 : 0;
    const Parts parts = few ? Parts::of_few(num_panels, threads)
                            : Parts::of_many(num_panels, panel_bytes, num_tiles, sum_bytes,
                                              threads);
    bf16* tiles = tiles_memory.take<bf16>(2 * p.laid_out() * p.pairs());
    Scratch& memory = parts_memory;  // this thread's, in the others too
    if (!few) memory.take_for<ManyArrays>(threads, p.inputs, parts);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 64) if (num_tiles > 1)
    for (int64_t i = 0; i < num_tiles * steps; i++)
        lay_out(tiles, p, i / steps * kBf16TileRows, i % steps * kLanes);
    p.x = tiles;
#pragma omp parallel num_threads(threads)
    {
        [[maybe_unused]] const Tiles in_force;
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < parts.count(); i++) {
            const Part part = parts[i];
            if (few) bf16_few_rows(p, part.begin, part.end);
            else Bf16ManyRows(p, part, memory.of_this_thread<ManyArrays>(p.inputs, parts)).run();
        }
    }
}

}  // namespace

extern "C" int64_t KERNEL(linear_bf16)(bf16* y, const bf16* x, const bf16* weight, const bf16* bias,
                                       int64_t rows, int64_t inputs, int64_t outputs,
                                       int64_t threads) {
    return guarded([&] {
        const Bf16Product all{y, x, weight, bias, rows, inputs, outputs};
        const int64_t row_bytes = 4 * all.pairs() + 1;  // never 0
        const int64_t most = kMaxLaidOutBytes / row_bytes / kBf16TileRows * kBf16TileRows;
        const int64_t num_parts = most > 0 ? (rows + most - 1) / most : rows;
        for (int64_t part = 0; part < num_parts; part++) {
            const int64_t begin = rows * part / num_parts, end = rows * (part + 1) / num_parts;
            Bf16Product some = all;
            some.y += begin * outputs;
            some.x += begin * inputs;
            some.rows = end - begin;
            lay_out_and_multiply(some, threads);
        }
    });
}
