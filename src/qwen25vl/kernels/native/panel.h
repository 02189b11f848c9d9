// Panels: the weights of some outputs, transposed so that one vector holds the same few inputs of
// kLanes outputs.
//
//     as stored   output 0: │ inputs 0–3 │ 4–7 │ 8–11 │ …        4 bytes, or 2 bfloat16 numbers
//                 output 1: │ inputs 0–3 │ 4–7 │ 8–11 │ …
//     panel       inputs 0–3: │ output 0 │ output 1 │ … │ output kLanes − 1      one vector
//                 inputs 4–7: │ output 0 │ output 1 │ …
//
// A product of many rows multiplies such a vector with those inputs of an activation row,
// broadcast. Transposing 32-bit words is done at each call, into scratch memory that stays in the
// caches: it costs about ten instructions per 64 bytes, and the weights stay mapped as they are.
#pragma once

#include "memory.h"
#include "vector.h"

namespace {

// How a product is cut into parts, each of some panels and some tiles of rows. There are several
// for each thread where that costs little, since a thread may share its core with another process
// and the others would wait for it.
struct Part {
    int64_t begin, end;             // panels
    int64_t first_tile, last_tile;  // tiles of rows; the last one not included
};

class Parts {
public:
    // Few rows, of one tile: every weight is read once, in long runs.
    static Parts of_few(int64_t num_panels, int64_t threads) {
        constexpr int64_t kLeastPanels = 4;
        const int64_t most = num_panels / kLeastPanels, wanted = 2 * kEach * threads;
        const int64_t shared = most < threads ? threads : most < wanted ? most : wanted;
        return {num_panels, threads < 2 ? 1 : shared, 1, 1};
    }

    // Many rows: groups of panels that stay in the second-level cache while the tiles pass by, and
    // blocks of tiles, so that a product of few outputs has enough parts too, and that sums which
    // wait for the next inputs stay near: sum_bytes of a panel and a tile, 0 where none wait.
    static Parts of_many(int64_t num_panels, int64_t panel_bytes, int64_t num_tiles,
                         int64_t sum_bytes, int64_t threads) {
        constexpr int64_t kWaiting = 1 << 20;
#ifdef HAS_TILES
        constexpr int64_t kCache = 768 << 10;  // processors with AMX have at least 2 MiB
#else
        constexpr int64_t kCache = 520 << 10;  // half of a second-level cache of 1 MiB
#endif
        constexpr int64_t kLeastTiles = 8;     // transposing is then a small part of the work
        const int64_t fit = kCache / panel_bytes, fair = num_panels / threads;
        const int64_t together = fit < fair ? fit : fair;
        int64_t num_groups = together < 2 ? num_panels : (num_panels + together - 1) / together;
        if (num_groups < num_panels - threads)  // as many for each thread
            num_groups = (num_groups + threads - 1) / threads * threads;
        const int64_t panels = (num_panels + num_groups - 1) / num_groups;
        const int64_t near = (num_tiles * panels * sum_bytes + kWaiting - 1) / kWaiting;
        const int64_t fair_share = (kEach * threads + num_groups - 1) / num_groups;
        const int64_t shared = threads < 2 ? 1 : fair_share;
        const int64_t wanted = shared > near ? shared : near;
        const int64_t most = (num_tiles + kLeastTiles - 1) / kLeastTiles;
        return {num_panels, num_groups, num_tiles, wanted < most ? wanted : most};
    }

    int64_t count() const { return num_groups_ * num_blocks_; }
    int64_t most_panels() const { return (num_panels_ + num_groups_ - 1) / num_groups_; }
    int64_t most_tiles() const { return (num_tiles_ + num_blocks_ - 1) / num_blocks_; }
    Part operator[](int64_t i) const {
        const int64_t group = i / num_blocks_, block = i % num_blocks_;
        return {num_panels_ * group / num_groups_, num_panels_ * (group + 1) / num_groups_,
                num_tiles_ * block / num_blocks_, num_tiles_ * (block + 1) / num_blocks_};
    }

private:
    static constexpr int64_t kEach = 4;  // parts for each thread, at least
    Parts(int64_t num_panels, int64_t num_groups, int64_t num_tiles, int64_t num_blocks)
        : num_panels_(num_panels), num_groups_(num_groups), num_tiles_(num_tiles),
          num_blocks_(num_blocks) {}
    int64_t num_panels_, num_groups_, num_tiles_, num_blocks_;
};

// Reading ahead. The hardware does not foresee kLanes rows of weights read side by side. Where
// little is done with each line, each one asks for the line that is two steps on in its row, and
// for one of the next group of rows, which follows in memory, in order, into the second-level
// cache: together 90 % of what plain reading reaches, either alone 80 %.

// For a vector of each of kLanes rows.
inline void ask_ahead(const void* from, int64_t stride) {
    for (int64_t i = 0; i < kLanes; i++) ask_for((const char*)from + i * stride + 2 * kBytes);
}
inline void ask_ahead(const void* from, int64_t stride, const void* later) {
    ask_ahead(from, stride);
    for (int64_t i = 0; i < kLanes; i++) ask_for_later((const char*)later + i * kBytes);
}

// What is needed next is asked for while tiles are multiplied, so that the memory is never idle:
// the next tile of many rows, or the next panel of weights for a few.
class ReadAhead {
#ifdef HAS_TILES
    static constexpr bool kTiled = true;
#else
    static constexpr bool kTiled = false;
#endif

public:
    ReadAhead(const void* from, int64_t bytes, int64_t steps, bool is_later = kTiled)
        : next_((const char*)from), end_(next_ + bytes),
          step_((bytes / (steps > 0 ? steps : 1) / 64 + 1) * 64), is_later_(is_later) {}
    void step() {
        const char* stop = end_ - next_ < step_ ? end_ : next_ + step_;
        for (; next_ < stop; next_ += 64)
            if (is_later_) ask_for_later(next_);
            else ask_for(next_);
    }

private:
    const char *next_, *end_;
    int64_t step_;
    bool is_later_;
};

// Where results go, [rows, outputs], and what each output's sums are multiplied with and added to;
// either may be null.
struct Results {
    bf16* y;
    const float* scale;
    const bf16* bias;
    int64_t outputs;
};

// The outputs of one vector of a panel or of two from `first` on, for `count` rows from `row` on.
template <int64_t kVectors>
void store_outputs(const Results& p, int64_t row, int64_t count, int64_t first,
                   const float* sums) {
    Floats scale[kVectors], bias[kVectors];
    int64_t there[kVectors];  // outputs of a vector
    for (int64_t v = 0; v < kVectors; v++) {
        const int64_t at = first + v * kLanes, left = p.outputs - at;
        there[v] = left < 0 ? 0 : left < kLanes ? left : kLanes;
        scale[v] = p.scale && left > 0 ? load_first(p.scale + at, there[v]) : zeros();
        bias[v] = p.bias && left > 0 ? load_first(p.bias + at, there[v]) : zeros();
    }
    bf16* y = p.y + row * p.outputs + first;
    for (int64_t m = 0; m < count; m++, y += p.outputs, sums += kVectors * kLanes) {
        Floats value[kVectors];
        for (int64_t v = 0; v < kVectors; v++) {
            value[v] = load(sums + v * kLanes);
            if (p.scale) value[v] = multiply(value[v], scale[v]);
            if (p.bias) value[v] = add(value[v], bias[v]);
        }
        if (kVectors == 2 && there[kVectors - 1] == kLanes)
            store_two(y, value[0], value[kVectors - 1]);
        else
            for (int64_t v = 0; v < kVectors; v++)
                store_first(y + v * kLanes, value[v], there[v]);
    }
}

}  // namespace
