// AMX: products of 16×64-byte tiles, for a block of up to 32 rows by 32 outputs.
//
//                       │ 6: outputs 0–15 of a panel   │ 7: its outputs 16–31
//     4: rows 0–15      │ 0: their sums                │ 1
//     5: rows 16–31     │ 2                            │ 3
//
// Four loads of 1 KiB serve four products of 16 cycles each. A panel holds 1 KiB for each 16
// outputs and 64 bytes of inputs: 16 steps of 4 bytes by 16 outputs. The activations lie in rows
// of 64 bytes, one row below the other; rows are filled up with zeros to 16 or 32.
//
// What is in the second-level cache arrives at a third of the rate of the products, less when the
// other hyperthread belongs to somebody else. So panels take less than half of that cache, the
// next rows are asked for into it while these are multiplied, and sums stay in the tiles for as
// many inputs as a panel has.
//
// With TILE_MODEL the instructions are imitated, so that every line but theirs is tested on
// machines that lack them. The processor takes subnormal numbers of bfloat16 for zeros; the
// imitation does not.
#pragma once

#include "panel.h"

namespace {

constexpr int64_t kTileRows = 16, kTileBytes = 64;

}  // namespace

#ifdef HAS_TILES

namespace {

struct alignas(64) TileShapes {  // palette 1: bytes of a row and rows of each of eight tiles
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};

#ifdef TILE_MODEL

struct TileModel {
    TileShapes shapes;
    alignas(64) uint8_t rows[8][kTileRows][kTileBytes];

    void check(int tile) const {
        const bool is_set = shapes.palette && shapes.rows[tile];
        if (!is_set || shapes.rows[tile] > 16 || shapes.bytes[tile] > 64) __builtin_trap();
    }
    void configure(const TileShapes* wanted) {
        shapes = *wanted;
        __builtin_memset(rows, 0, sizeof rows);
    }
    void load(int tile, const void* from, int64_t stride) {
        check(tile);
        for (int m = 0; m < shapes.rows[tile]; m++)
            __builtin_memcpy(rows[tile][m], (const char*)from + m * stride, shapes.bytes[tile]);
    }
    void store(int tile, void* to, int64_t stride) {
        check(tile);
        for (int m = 0; m < shapes.rows[tile]; m++)
            __builtin_memcpy((char*)to + m * stride, rows[tile][m], shapes.bytes[tile]);
    }
    void check_product(int c, int a, int b) const {
        check(c), check(a), check(b);
        if (a == b || a == c || b == c) __builtin_trap();
        const bool outer = shapes.rows[c] == shapes.rows[a] && shapes.bytes[c] == shapes.bytes[b];
        if (!outer || shapes.bytes[a] != 4 * shapes.rows[b]) __builtin_trap();
    }
    template <class Left>  // of signed or unsigned bytes
    void multiply_bytes(int c, int a, int b) {
        check_product(c, a, b);
        for (int m = 0; m < shapes.rows[c]; m++)
            for (int n = 0; n < shapes.bytes[c] / 4; n++)
                for (int k = 0; k < shapes.bytes[a]; k++) {
                    const int32_t left = (Left)rows[a][m][k],
                                  right = (int8_t)rows[b][k / 4][4 * n + k % 4];
                    ((int32_t*)rows[c][m])[n] += left * right;
                }
    }
    // The even products and the odd ones in a sum each, then both.
    void multiply_bf16(int c, int a, int b) {
        check_product(c, a, b);
        auto number = [this](int tile, int m, int k) {
            uint32_t bits = (uint32_t)((bf16*)rows[tile][m])[k] << 16;
            float value;
            __builtin_memcpy(&value, &bits, 4);
            return value;
        };
        for (int m = 0; m < shapes.rows[c]; m++)
            for (int n = 0; n < shapes.bytes[c] / 4; n++) {
                float sums[2] = {};
                for (int k = 0; k < shapes.bytes[a] / 2; k++) {
                    const float left = number(a, m, k), right = number(b, k / 2, 2 * n + k % 2);
                    sums[k % 2] = __builtin_fmaf(left, right, sums[k % 2]);
                }
                ((float*)rows[c][m])[n] += sums[0] + sums[1];
            }
    }
};

inline TileModel& tile_model() {
    static thread_local TileModel model;
    return model;
}

#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#undef _tile_dpbusd
#define _tile_loadconfig(shapes) tile_model().configure((const TileShapes*)(shapes))
#define _tile_release() tile_model().shapes.palette = 0
#define _tile_loadd(tile, from, stride) tile_model().load(tile, from, stride)
#define _tile_stored(tile, to, stride) tile_model().store(tile, to, stride)
#define _tile_dpbf16ps(c, a, b) tile_model().multiply_bf16(c, a, b)
#define _tile_dpbssd(c, a, b) tile_model().multiply_bytes<int8_t>(c, a, b)
#define _tile_dpbusd(c, a, b) tile_model().multiply_bytes<uint8_t>(c, a, b)

#endif

// gcc 12's intrinsics do not tell that they read and write memory: what was written has to be there
// before them, and is not to be read too early behind them.
inline void settle(const void* written = nullptr) {
    __asm__ volatile("" ::"r"(written) : "memory");
}

// The shapes of the tiles, all of 16 rows by 64 bytes, in force in this thread while this object
// lives. It costs as much as ten products: once for each parallel region.
class Tiles {
public:
    Tiles() {
        TileShapes shapes;
        for (int tile = 0; tile < 8; tile++) {
            shapes.rows[tile] = kTileRows;
            shapes.bytes[tile] = kTileBytes;
        }
        settle(&shapes);
        _tile_loadconfig(&shapes);
    }
    Tiles(const Tiles&) = delete;
    ~Tiles() { _tile_release(); }
};

// What new sums are loaded from. After the instruction that clears a tile each product takes twice
// as long.
alignas(64) constexpr uint8_t kNoSums[kTileRows * kTileBytes] = {};

}  // namespace

#else

struct Tiles {};

#endif
