// One instruction of every extension that the kernels of this instruction set may use, with the numbers it must give.
#include "tiles.h"

namespace {

bool right_floats() {  // 1 + 1·2 + 3·4 in every lane: fused multiply-add or a dot product of bfloat16, then conversions
    const bf16 a[2] = {0x3f80, 0x4040}, b[2] = {0x4000, 0x4080};
    Floats x = dot(broadcast(1.f), broadcast_pair(a), broadcast_pair(b));
    float kept[kLanes];
    store(kept, round_to_bf16(maximum(x, zeros())));
    for (float value : kept)
        if (value != 15.f) return false;
    return true;
}

bool right_halves() {  // F16C: 0x3e00 is 1.5
    float kept[8];
    _mm256_storeu_ps(kept, _mm256_cvtph_ps(_mm_set1_epi16(0x3e00)));
    return kept[0] == 1.5f && kept[7] == 1.5f;
}

#ifdef __AVX512F__
bool right_integers() {  // VNNI in both widths (VL), BW, DQ: 7 + Σ 3·(−2) over four bytes = −17
    __m512i wide = _mm512_dpbusd_epi32(_mm512_set1_epi32(7), _mm512_set1_epi8(3), _mm512_set1_epi8(-2));
    __m256i half = _mm256_dpbusd_epi32(_mm256_set1_epi32(7), _mm256_set1_epi8(3), _mm256_set1_epi8(-2));
    bool same = _mm256_cmpneq_epi32_mask(half, _mm512_extracti32x8_epi32(wide, 1)) == 0;
    __m512i bytes = _mm512_abs_epi8(wide);
    return same && _mm512_cmpneq_epi32_mask(wide, _mm512_set1_epi32(-17)) == 0 && _mm512_test_epi8_mask(bytes, bytes) == ~0ull;
}
#else
bool right_integers() {  // Σ 3·(−2) over two bytes, then over two such sums: −24
    __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(3), _mm256_set1_epi8(-2));
    __m256i sums = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    return _mm256_movemask_epi8(_mm256_cmpeq_epi32(sums, _mm256_set1_epi32(-24))) == -1;
}
#endif

#ifdef HAS_TILES
bool right_tiles() {  // 16×16 sums of 64 products of bytes −3·2, then of 32 products of bfloat16 1·2
    alignas(64) uint8_t three[1024], two[1024];
    alignas(64) bf16 one[512], twice[512];
    alignas(64) int32_t sums[256];
    alignas(64) float floats[256];
    for (int i = 0; i < 1024; i++) three[i] = (uint8_t)-3, two[i] = 2;
    for (int i = 0; i < 512; i++) one[i] = 0x3f80, twice[i] = 0x4000;
    {
        Tiles tiles(kTileRows);
        _tile_zero(0);
        _tile_loadd(4, three, kTileBytes);
        _tile_loadd(6, two, kTileBytes);
        _tile_dpbsud(0, 4, 6);
        _tile_stored(0, sums, kTileBytes);
        _tile_zero(0);
        _tile_loadd(4, one, kTileBytes);
        _tile_loadd(6, twice, kTileBytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_stored(0, floats, kTileBytes);
    }
    for (int i = 0; i < 256; i++)
        if (sums[i] != -384 || floats[i] != 64.f) return false;
    return true;
}
#else
bool right_tiles() { return true; }
#endif

}  // namespace

extern "C" int64_t KERNEL(probe)() { return right_floats() && right_halves() && right_integers() && right_tiles(); }
