// y = x·wᵀ + b for bfloat16 x [rows, inputs] and w [outputs, inputs], sums in float32.
//
// Arithmetic: a tile of kTile activation rows by one panel (32 outputs with AVX-512) keeps its sums in registers, 12 × 2
// of the 32; each step of two inputs loads 2 panel vectors and broadcasts 12 pairs for 24 multiply-add instructions, so
// that loads (14 at two a cycle) hide behind arithmetic (24 at two a cycle).
//
// Caches: a thread turns the panels of a hundred outputs or two, at most kChunk inputs at a time; they stay in its
// second-level cache while all tiles pass by, and a tile comes from farther away once for all of them. It is asked for
// while the tile before it is multiplied: one stream of 4 bytes a cycle leaves no time to wait for the third level,
// which others use too. Therefore the rows are first laid out anew, tile by tile; besides, rows that lie 4096 bytes
// apart would push one another out of the first-level cache.
//
// A row's sum runs over the inputs in order, whatever rows stand beside it: a row alone gives the same bits. AMX sums in
// an order of its own; there few rows go through its tiles as well.
#include "kernels.h"
#include "tiles.h"

namespace {

#ifdef HAS_TILES
constexpr int64_t kTile = 2 * kTileRows;
constexpr int64_t kTurned = 16 * kLanes;  // inputs that few rows turn before they multiply
constexpr int64_t kPart = 512;            // inputs of a tile that stay in the first-level cache while all panels pass by
#else
constexpr int64_t kTile = kFloatTileRows;
constexpr int64_t kTurned = 2 * kLanes;
constexpr int64_t kPart = INT64_MAX;
#endif
constexpr int64_t kPanel = 2 * kLanes;  // outputs of a panel of many rows
constexpr int64_t kChunk = 3456;        // inputs of a panel, at most
constexpr int64_t kScratch = 16 << 20;  // bytes of activations laid out anew at a time

struct Problem {
    bf16* y;
    const bf16 *x, *weight, *bias;
    int64_t rows, inputs, outputs;
#ifdef HAS_TILES
    int64_t pairs() const { return (inputs + 2 * kLanes - 1) / (2 * kLanes) * kLanes; }
#else
    int64_t pairs() const { return (inputs + 1) / 2; }
#endif
};

#ifdef HAS_TILES

// Tiles of x one after the other, each [pairs / kLanes, R, kLanes, 2] for its R rows (kTile, fewer in the last one), with
// zeros after the inputs. This is one step: kLanes pairs of a tile, from row `first` and pair `start` on.
void lay_out(bf16* tiles, const Problem& p, int64_t first, int64_t start) {
    int64_t R = p.rows - first < kTile ? p.rows - first : kTile;
    bf16* to = tiles + 2 * (first * p.pairs() + start * R);
    for (int64_t m = 0; m < R; m++)
        store_words(to + 2 * m * kLanes, load_bytes(p.x + (first + m) * p.inputs + 2 * start, 2 * (p.inputs - 2 * start)));
}

#else

// Tiles of x one after the other, each [pairs, R, 2] for its R rows (kTile, fewer in the last one); an odd input has a
// zero at its side. This is one step: kLanes pairs of a tile, from row `first` and pair `start` on.
void lay_out(bf16* tiles, const Problem& p, int64_t first, int64_t start) {
    int64_t R = p.rows - first < kTile ? p.rows - first : kTile, left = p.pairs() - start;
    Words r[kLanes];
    for (int64_t m = 0; m < kLanes; m++)
        r[m] = m < R ? load_bytes(p.x + (first + m) * p.inputs + 2 * start, 2 * (p.inputs - 2 * start)) : Words{};
    transpose(r);
    bf16* to = tiles + 2 * (first * p.pairs() + start * R);
    for (int64_t k = 0; k < kLanes && k < left; k++) store_first_words(to + 2 * k * R, r[k], R);
}

#endif

// Turn inputs [start, start + count) of kLanes outputs from `first` on into every kVectors-th vector of the panel;
// outputs and inputs beyond the end are zeros.
template <int64_t kVectors>
void fill_panel(bf16* panel, const Problem& p, int64_t first, int64_t start, int64_t count, bool ahead) {
    for (int64_t k = 0; k < count; k += 2 * kLanes) {
        Words r[kLanes];
        const bf16* from = p.weight + first * p.inputs + start + k;
        if (ahead) ask_ahead(from, 2 * p.inputs, p.weight + (first + kLanes) * p.inputs + (start + k) * kLanes);
        if (first + kLanes <= p.outputs && count - k >= 2 * kLanes)
            for (int64_t i = 0; i < kLanes; i++) r[i] = load_words(from + i * p.inputs);
        else
            for (int64_t i = 0; i < kLanes; i++)
                r[i] = first + i < p.outputs ? load_bytes(from + i * p.inputs, 2 * (count - k)) : Words{};
        transpose(r);
        for (int64_t i = 0; i < kLanes; i++) store_words(panel + (k / 2 + i) * kVectors * 2 * kLanes, r[i]);
    }
}

#ifdef HAS_TILES

// sums[m, v, lane] += Σ_k x[k / kLanes, m, k % kLanes] · panel[k, v, lane] over pairs k
template <int64_t, int64_t kVectors>
void multiply_rows(int64_t rows, float* sums, const bf16* x, const bf16* panel, int64_t pairs, ReadAhead* ahead) {
    constexpr int64_t kStride = kVectors * kBytes;
    bool more = rows > kTileRows;
    float* below = sums + kTileRows * kVectors * kLanes;
    Tiles tiles(rows);
    _tile_loadd(0, sums, kStride);
    if (kVectors > 1) _tile_loadd(1, sums + kLanes, kStride);
    if (more) _tile_loadd(2, below, kStride);
    if (more && kVectors > 1) _tile_loadd(3, below + kLanes, kStride);
    for (int64_t k = 0; k < pairs; k += kLanes, x += rows * 2 * kLanes, panel += kVectors * 2 * kLanes * kLanes) {
        if (ahead) ahead->step();
        _tile_loadd(4, x, kTileBytes);
        _tile_loadd(6, panel, kStride);
        _tile_dpbf16ps(0, 4, 6);
        if (kVectors > 1) {
            _tile_loadd(7, panel + 2 * kLanes, kStride);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (!more) continue;
        _tile_loadd(5, x + kTileRows * 2 * kLanes, kTileBytes);
        _tile_dpbf16ps(2, 5, 6);
        if (kVectors > 1) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, kStride);
    if (kVectors > 1) _tile_stored(1, sums + kLanes, kStride);
    if (more) _tile_stored(2, below, kStride);
    if (more && kVectors > 1) _tile_stored(3, below + kLanes, kStride);
}

#else

// sums[m, v, lane] += Σ_k x[k, m] · panel[k, v, lane] over pairs k
template <int64_t kRows, int64_t kVectors>
void multiply_tile(float* sums, const bf16* x, const bf16* panel, int64_t pairs, ReadAhead* ahead) {
    Floats s[kRows][kVectors];
    for (int64_t m = 0; m < kRows; m++)
        for (int64_t v = 0; v < kVectors; v++) s[m][v] = load(sums + (m * kVectors + v) * kLanes);
    for (int64_t k = 0; k < pairs; k++) {
        if (ahead && k % 16 == 0) ahead->step();
        Pairs w[kVectors];
        for (int64_t v = 0; v < kVectors; v++) w[v] = load_pairs(panel + (k * kVectors + v) * 2 * kLanes);
        for (int64_t m = 0; m < kRows; m++) {
            Pairs a = broadcast_pair(x + 2 * (k * kRows + m));
            for (int64_t v = 0; v < kVectors; v++) s[m][v] = dot(s[m][v], w[v], a);
        }
    }
    for (int64_t m = 0; m < kRows; m++)
        for (int64_t v = 0; v < kVectors; v++) store(sums + (m * kVectors + v) * kLanes, s[m][v]);
}

template <int64_t kRows, int64_t kVectors>
void multiply_rows(int64_t rows, float* sums, const bf16* x, const bf16* panel, int64_t pairs,
                   ReadAhead* ahead) {
    if (rows == kRows) return multiply_tile<kRows, kVectors>(sums, x, panel, pairs, ahead);
    if constexpr (kRows > 1) multiply_rows<kRows - 1, kVectors>(rows, sums, x, panel, pairs, ahead);
}

#endif

void store_outputs(const Problem& p, int64_t row, int64_t first, int64_t width, const float* sums) {
    for (int64_t o = first; o < p.outputs && o < first + width; o += kLanes, sums += kLanes) {
        int64_t some = p.outputs - o < kLanes ? p.outputs - o : kLanes;
        Floats value = load(sums);
        if (p.bias) value = add(value, load_first(p.bias + o, some));
        store_first(p.y + row * p.outputs + o, value, some);
    }
}

// One tile of rows: each step of a panel is used as soon as it is turned, so that nothing but the weights is read.
void multiply_few(const Problem& p, int64_t begin, int64_t end) {
    alignas(64) bf16 panel[kTurned * kLanes];
    for (int64_t first = begin * kLanes; first < p.outputs && first < end * kLanes; first += kLanes) {
        alignas(64) float sums[kTile * kLanes] = {};
        for (int64_t start = 0; start < p.inputs; start += kTurned) {
            int64_t count = p.inputs - start < kTurned ? p.inputs - start : kTurned;
            fill_panel<1>(panel, p, first, start, count, true);
            multiply_rows<kTile, 1>(p.rows, sums, p.x + start * p.rows, panel, (count + 1) / 2, nullptr);
        }
        for (int64_t m = 0; m < p.rows; m++) store_outputs(p, m, first, kLanes, sums + m * kLanes);
    }
}

// Inputs of a panel, at most: all chunks are alike.
int64_t chunk_of(int64_t inputs) {
    const int64_t num_chunks = (inputs + kChunk - 1) / kChunk, grain = num_chunks * 2 * kLanes;
    return (inputs + grain - 1) / grain * 2 * kLanes;
}

// What a thread needs for a part of many rows: panels, and the sums of their tiles.
struct ManyArrays {
    bf16* panel;
    float* sums;
    ManyArrays(Arena& arena, int64_t inputs, const Parts& parts)
        : panel(arena.take<bf16>(parts.most_panels() * chunk_of(inputs) * kPanel)),
          sums(arena.take<float>((chunk_of(inputs) < inputs ? parts.most_tiles() : 1) * parts.most_panels() * kTile *
                                 kPanel)) {}
};

// Many rows. If the inputs come in several chunks, the sums of all tiles of the part wait for the next one.
void multiply_many(const Problem& p, const Part& part, const ManyArrays& arrays) {
    const int64_t num_panels = part.end - part.begin, chunk = chunk_of(p.inputs), tile_sums = num_panels * kTile * kPanel;
    const bool once = chunk >= p.inputs;
    for (int64_t start = 0; start < p.inputs; start += chunk) {
        const int64_t count = p.inputs - start < chunk ? p.inputs - start : chunk;
        const bool is_last = start + count == p.inputs;
        for (int64_t v = 0; v < 2 * num_panels; v++)
            fill_panel<2>(arrays.panel + v / 2 * chunk * kPanel + v % 2 * 2 * kLanes, p, (2 * part.begin + v) * kLanes, start,
                          count, false);
        for (int64_t tile = part.first_tile; tile < part.last_tile; tile++) {
            const int64_t first = tile * kTile, R = p.rows - first < kTile ? p.rows - first : kTile;
            for (int64_t m = 0; m < R && is_last; m++)
                for (int64_t i = part.begin; i < part.end; i++) ask_for(p.y + (first + m) * p.outputs + i * kPanel);
            float* to = once ? arrays.sums : arrays.sums + (tile - part.first_tile) * tile_sums;
            for (int64_t i = 0; i < tile_sums && start == 0; i += kLanes) store(to + i, zeros());
            const int64_t next = first + kTile, others = p.rows - next < kTile ? p.rows - next : kTile;
            ReadAhead ahead(p.x + 2 * next * p.pairs() + start * others, others > 0 ? 2 * count * others : 0,
                            (count / 32 + 1) * num_panels);
            for (int64_t k = 0, inputs; k < count; k += inputs) {
                inputs = count - k < kPart ? count - k : kPart;
                for (int64_t i = 0; i < num_panels; i++) {
                    for (int64_t j = 0; j < kTile * kPanel; j += kLanes) ask_for(to + (i + 1) * kTile * kPanel + j);
                    multiply_rows<kTile, 2>(R, to + i * kTile * kPanel, p.x + 2 * first * p.pairs() + (start + k) * R,
                                            arrays.panel + (i * chunk + k) * kPanel, (inputs + 1) / 2, &ahead);
                }
            }
            for (int64_t m = 0; m < R && is_last; m++)
                for (int64_t i = 0; i < num_panels; i++)
                    store_outputs(p, first + m, (part.begin + i) * kPanel, kPanel, to + (i * kTile + m) * kPanel);
        }
    }
}

// Few enough rows for their tiles to fit in kScratch.
void multiply(Problem p, int64_t threads) {
    static thread_local Scratch tiles_memory, parts_memory;
    const bool few = p.rows <= kTile;
    const int64_t num_tiles = (p.rows + kTile - 1) / kTile, steps = (p.pairs() + kLanes - 1) / kLanes;
    const int64_t width = few ? kLanes : kPanel, num_panels = (p.outputs + width - 1) / width;
    const Parts parts = few ? Parts::of_few(num_panels, threads)
                            : Parts::of_many(num_panels, chunk_of(p.inputs) * kPanel * 2, num_tiles, threads);
    bf16* tiles = tiles_memory.take<bf16>(2 * p.rows * p.pairs());
    Scratch& memory = parts_memory;  // this thread's, in the others too
    if (!few) memory.take_for<ManyArrays>(threads, p.inputs, parts);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 64) if (num_tiles > 1)
    for (int64_t i = 0; i < num_tiles * steps; i++) lay_out(tiles, p, i / steps * kTile, i % steps * kLanes);
    p.x = tiles;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t i = 0; i < parts.count(); i++)
        few ? multiply_few(p, parts[i].begin, parts[i].end)
            : multiply_many(p, parts[i], memory.of_this_thread<ManyArrays>(p.inputs, parts));
}

}  // namespace

extern "C" int64_t KERNEL(linear_bf16)(bf16* y, const bf16* x, const bf16* weight, const bf16* bias, int64_t rows,
                                       int64_t inputs, int64_t outputs, int64_t threads) {
    return guarded([&] {
        const int64_t most = kScratch / (2 * inputs + 2) / kTile * kTile;
        const int64_t num_parts = most > 0 ? (rows + most - 1) / most : rows;
        for (int64_t part = 0; part < num_parts; part++) {
            const int64_t begin = rows * part / num_parts, end = rows * (part + 1) / num_parts;
            multiply({y + begin * outputs, x + begin * inputs, weight, bias, end - begin, inputs, outputs}, threads);
        }
    });
}
