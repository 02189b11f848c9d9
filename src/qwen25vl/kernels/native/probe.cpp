// One instruction of every extension that the kernels of this instruction set may use, with the
// numbers that it must give.
#include "levels.h"

namespace {

// 1 + 1·2 + 3·4 in every lane: fused multiply-add or a dot product of bfloat16, then conversions.
bool right_floats() {
    const bf16 a[2] = {0x3f80, 0x4040}, b[2] = {0x4000, 0x4080};
    Floats x = dot(broadcast(1.f), broadcast_pair(a), broadcast_pair(b));
    float kept[kLanes];
    store(kept, round_to_bf16(maximum(x, zeros())));
    for (float value : kept)
        if (value != 15.f) return false;
    return true;
}

bool right_halves() {  // F16C: 0x3e00 is 1.5
    uint16_t halves[kLanes];
    for (uint16_t& half : halves) half = 0x3e00;
    float kept[kLanes];
    store(kept, load_halves(halves, kLanes));
    return kept[0] == 1.5f && kept[kLanes - 1] == 1.5f;
}

bool right_bytes() {  // VNNI, or products of bytes in AVX2: 7 + Σ 3·(−2) over four bytes = −17
    const Words threes = all_words(0x03030303), minus_twos = all_words((int32_t)0xfefefefe);
    int32_t kept[kLanes];
    store_words(kept, dot4<4>(all_words(7), threes, minus_twos));
    for (int32_t word : kept)
        if (word != -17) return false;
    return true;
}

#ifdef __AVX512F__
bool right_extensions() {  // VNNI in the smaller width too (VL), BW, DQ
    __m512i wide = _mm512_set1_epi32(-17), bytes = _mm512_abs_epi8(wide);
    const __m256i threes = _mm256_set1_epi8(3), minus_twos = _mm256_set1_epi8(-2);
    __m256i half = _mm256_dpbusd_epi32(_mm256_set1_epi32(7), threes, minus_twos);
    bool same = _mm256_cmpneq_epi32_mask(half, _mm512_extracti32x8_epi32(wide, 1)) == 0;
    return same && _mm512_test_epi8_mask(bytes, bytes) == ~0ull;
}
#else
bool right_extensions() { return true; }
#endif

#ifdef HAS_TILES
// 16×16 sums of 64 products of bytes −3·2, then of 32 products of bfloat16 1·2.
bool right_tiles() {
    alignas(64) uint8_t three[1024], two[1024];
    alignas(64) bf16 one[512], twice[512];
    alignas(64) int32_t sums[256];
    alignas(64) float floats[256];
    for (int i = 0; i < 1024; i++) three[i] = (uint8_t)-3, two[i] = 2;
    for (int i = 0; i < 512; i++) one[i] = 0x3f80, twice[i] = 0x4000;
    {
        const Tiles tiles;
        settle();
        _tile_loadd(0, kNoSums, kTileBytes);
        _tile_loadd(4, three, kTileBytes);
        _tile_loadd(6, two, kTileBytes);
        _tile_dpbssd(0, 4, 6);
        _tile_stored(0, sums, kTileBytes);
        _tile_loadd(0, kNoSums, kTileBytes);
        _tile_loadd(4, one, kTileBytes);
        _tile_loadd(6, twice, kTileBytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_stored(0, floats, kTileBytes);
        settle();
    }
    for (int i = 0; i < 256; i++)
        if (sums[i] != -384 || floats[i] != 64.f) return false;
    return true;
}
#else
bool right_tiles() { return true; }
#endif

}  // namespace

extern "C" int64_t KERNEL(probe)() {
    return right_floats() && right_halves() && right_bytes() && right_extensions() && right_tiles();
}
