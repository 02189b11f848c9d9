// One instruction of every extension that the kernels of this instruction set may use, with the numbers it must give.
#include "vector.h"

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

#ifdef __AMX_TILE__
struct alignas(64) TileShapes {  // palette 1: rows and bytes per row of each of eight tiles
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};

bool right_tiles() {  // 16×16 sums of 64 products of bytes 3·2, then of 32 products of bfloat16 1·2
    TileShapes shapes;
    for (int i = 0; i < 3; i++) shapes.bytes[i] = 64, shapes.rows[i] = 16;
    alignas(64) uint8_t three[1024], two[1024];
    alignas(64) bf16 one[512], twice[512];
    alignas(64) int32_t sums[256];
    alignas(64) float floats[256];
    for (int i = 0; i < 1024; i++) three[i] = 3, two[i] = 2;
    for (int i = 0; i < 512; i++) one[i] = 0x3f80, twice[i] = 0x4000;
    _tile_loadconfig(&shapes);
    _tile_zero(0);
    _tile_loadd(1, three, 64);
    _tile_loadd(2, two, 64);
    _tile_dpbssd(0, 1, 2);
    _tile_stored(0, sums, 64);
    _tile_zero(0);
    _tile_loadd(1, one, 64);
    _tile_loadd(2, twice, 64);
    _tile_dpbf16ps(0, 1, 2);
    _tile_stored(0, floats, 64);
    _tile_release();
    for (int i = 0; i < 256; i++)
        if (sums[i] != 384 || floats[i] != 64.f) return false;
    return true;
}
#else
bool right_tiles() { return true; }
#endif

}  // namespace

extern "C" int64_t KERNEL(probe)() { return right_floats() && right_halves() && right_integers() && right_tiles(); }
