// Pictures for the model: resize uint8 frames, normalise them, cut them into patches, in one pass
// over threads.
//
// The normalising is (x − mean) / deviation in float32, the resizing is in resize.h. Work is cut
// into bands of one row of visual tokens: 28 rows of pixels. Only the patches leave the cache,
// written one after another; a still picture's are written to both of their frames at once. Writing
// them (8 bytes for each colour of a pixel, in float32) and the first touch of their pages bound it
// all.
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "resize.h"

namespace {

constexpr int64_t kHugePage = 2 << 20;

struct Cut {  // sizes in pixels, of a patch's side; merge in patches
    int64_t patch, merge, temporal, num_frames, height, width;
    const float *mean, *deviation;
};

// The patches of one band of one frame, each [3][temporal][patch][patch], in the order of merged
// blocks.
template <class Number>
void cut_band(Number* out, const uint8_t* rows, int64_t stride, int64_t frame, const Cut& cut) {
    const int64_t area = cut.patch * cut.patch, slot = frame % cut.temporal;
    // the last frame fills its patch
    const int64_t copies = frame == cut.num_frames - 1 ? cut.temporal - slot : 1;
    const int64_t num_patches = cut.merge * cut.width / cut.patch;
    Floats mean[3], deviation[3];
    for (int i = 0; i < 3; i++) {
        mean[i] = broadcast(cut.mean[i]);
        deviation[i] = broadcast(cut.deviation[i]);
    }
    for (int64_t i = 0; i < num_patches; i++, out += 3 * cut.temporal * area) {
        const int64_t block = i / (cut.merge * cut.merge), place = i % (cut.merge * cut.merge);
        const int64_t left = (block * cut.merge + place % cut.merge) * cut.patch;
        const uint8_t* corner = rows + place / cut.merge * cut.patch * stride + left * 3;
        for (int64_t y = 0; y < cut.patch; y++) {
            for (int64_t x = 0; x < cut.patch; x += 16) {
                const Colours colours(corner + y * stride + x * 3);
                for (int64_t start = 0; start < std::min<int64_t>(cut.patch - x, 16);
                     start += kLanes) {
                    const int64_t count = std::min(cut.patch - x - start, kLanes);
                    Number* target = out + slot * area + y * cut.patch + x + start;
                    for (int c = 0; c < 3; c++, target += cut.temporal * area) {
                        const Floats raw = colours.numbers(c, start);
                        const Floats value = divide(subtract(raw, mean[c]), deviation[c]);
                        for (int64_t t = 0; t < copies; t++)
                            store_first(target + t * area, value, count);
                    }
                }
            }
        }
    }
}

// Fewer page faults, where the system grants them.
#ifdef __linux__
void ask_for_huge_pages(void* start, int64_t bytes) {
    const int64_t first = ((int64_t)start + kHugePage - 1) / kHugePage * kHugePage;
    const int64_t last = ((int64_t)start + bytes) / kHugePage * kHugePage;
    if (last > first) madvise((void*)first, last - first, MADV_HUGEPAGE);
}
#else
void ask_for_huge_pages(void*, int64_t) {}
#endif

struct Size {
    int64_t height, width;
};

// Call use(frame, top, bottom, rows, stride) for all bands of all frames, resized. A thread takes a
// run of bands at a time, each of which shares input rows with the one before it.
template <class Use>
void for_each_band(const Frames& frames, const Size& size, int64_t band_height, int64_t threads,
                   const Use& use) {
    static thread_local Scratch own_memory;
    constexpr int64_t kRuns = 4, kLeastBands = 4;  // runs for each thread; bands of a run
    const Axis down(frames.height, size.height), across(frames.width, size.width);
    const BandSizes sizes(frames.width, down, across, band_height);
    const int64_t bands = (size.height + band_height - 1) / band_height,
                  total = bands * frames.count;
    threads = std::max<int64_t>(std::min(threads, total), 1);
    const int64_t most_runs = threads > 1 ? kRuns * threads : 1;
    const int64_t num_runs = std::clamp<int64_t>(total / kLeastBands, threads, most_runs);
    Scratch& memory = own_memory;  // this thread's, in the others too
    memory.take_for<BandArrays>(threads, sizes);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t run = 0; run < num_runs; run++) {
        Bands view(memory.of_this_thread<BandArrays>(sizes), frames, down, across, sizes.stride);
        for (int64_t i = total * run / num_runs; i < total * (run + 1) / num_runs; i++) {
            const int64_t frame = i / bands, top = i % bands * band_height;
            const int64_t bottom = std::min(top + band_height, size.height);
            use(frame, top, bottom, view.rows(frame, top, bottom), view.stride());
        }
    }
}

template <class Number>
void make_patches(Number* out, const Frames& frames, const Cut& cut, int64_t threads) {
    const int64_t side = cut.patch * cut.merge;
    const int64_t row_values = 3 * cut.temporal * cut.width;
    const int64_t grid_values = row_values * cut.height;  // of one temporal grid
    const int64_t grids = (cut.num_frames + cut.temporal - 1) / cut.temporal;
    ask_for_huge_pages(out, grids * grid_values * (int64_t)sizeof(Number));
    for_each_band(frames, {cut.height, cut.width}, side, threads,
                  [&](int64_t frame, int64_t top, int64_t, const uint8_t* rows, int64_t stride) {
                      const int64_t before = frame / cut.temporal * grid_values + row_values * top;
                      cut_band(out + before, rows, stride, frame, cut);
                  });
}

}  // namespace

// frames: uint8 [num_frames][height][width][3] -> out: uint8 [num_frames][out_height][out_width][3]
extern "C" int64_t KERNEL(resize_frames)(uint8_t* out, const uint8_t* frames, int64_t num_frames,
                                         int64_t height, int64_t width, int64_t out_height,
                                         int64_t out_width, int64_t threads) {
    constexpr int64_t kBandHeight = 32;
    const Frames all{frames, num_frames, height, width};
    const auto copy_band = [&](int64_t frame, int64_t top, int64_t bottom, const uint8_t* rows,
                               int64_t stride) {
        for (int64_t y = top; y < bottom; y++) {
            uint8_t* target = out + (frame * out_height + y) * out_width * 3;
            std::memcpy(target, rows + (y - top) * stride, out_width * 3);
        }
    };
    return guarded(
        [&] { for_each_band(all, {out_height, out_width}, kBandHeight, threads, copy_band); });
}

// frames: uint8 [num_frames][height][width][3] -> out: patches [N][3][temporal][patch][patch],
// float32 or bfloat16, of the frames resized to out_height × out_width (multiples of patch ·
// merge). mean, deviation: of each colour, in levels.
extern "C" int64_t KERNEL(patch_frames)(void* out, const uint8_t* frames, const float* mean,
                                        const float* deviation, int64_t num_frames, int64_t height,
                                        int64_t width, int64_t out_height, int64_t out_width,
                                        int64_t patch, int64_t merge, int64_t temporal,
                                        int64_t is_bfloat16, int64_t threads) {
    const Cut cut{patch, merge, temporal, num_frames, out_height, out_width, mean, deviation};
    const Frames all{frames, num_frames, height, width};
    return guarded([&] {
        if (is_bfloat16) make_patches((bf16*)out, all, cut, threads);
        else make_patches((float*)out, all, cut, threads);
    });
}
