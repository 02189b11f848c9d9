// x86-64 on Linux: what the processor and the operating system have, and a safe way to try it.
// Compiled for any x86-64 processor.
#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <initializer_list>

#include <cpuid.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "exports.h"

namespace {

// The bits of processor_features.
constexpr int64_t kBase = 1, kAvx2 = 2, kAvx512Vnni = 4, kAvx512 = 8, kAmx = 16;

struct Registers {
    unsigned a = 0, b = 0, c = 0, d = 0;
};

// All zero for a leaf that the processor does not know.
Registers ask(unsigned leaf, unsigned subleaf) {
    Registers r;
    __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
    return r;
}

bool has(unsigned bits, std::initializer_list<int> all) {
    for (int bit : all)
        if (!(bits >> bit & 1)) return false;
    return true;
}

// XCR0: which registers the operating system keeps across a change of threads.
uint64_t saved_state() {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

bool may_use_tiles() {  // Linux hands the 8 KiB of tile registers only to processes that ask
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

EXPORT_C int64_t processor_features() {
    Registers first = ask(1, 0), seven = ask(7, 0), seven_one = ask(7, 1);
    if (!has(first.c, {12, 27, 28, 29})) return kBase;  // FMA, OSXSAVE, AVX, F16C
    uint64_t saved = saved_state();
    if ((saved & 0x6) != 0x6 || !has(seven.b, {5})) return kBase;  // XMM, YMM kept; AVX2
    int64_t features = kBase | kAvx2;
    bool avx512 = has(seven.b, {16, 17, 30, 31}) && has(seven.c, {11});  // F, DQ, BW, VL; VNNI
    if ((saved & 0xe6) != 0xe6 || !avx512) return features;
    features |= kAvx512Vnni;
    if (!has(seven_one.a, {5})) return features;  // BF16
    features |= kAvx512;
#ifdef TILE_MODEL
    return features | kAmx;  // imitated
#endif
    bool amx = has(seven.d, {22, 24, 25});  // BF16, TILE, INT8
    if ((saved & 0x60000) == 0x60000 && amx && may_use_tiles()) features |= kAmx;
    return features;
}

// Whether it makes at least two shuffles of 512 bits a cycle: AMD's do (Zen 4 at half the rate of
// everything), Intel's one.
extern "C" bool has_fast_shuffles() {
    Registers r;
    __get_cpuid(0, &r.a, &r.b, &r.c, &r.d);
    return r.b == signature_AMD_ebx && r.c == signature_AMD_ecx;
}

// A processor may promise what it, or the machine that imitates it, does not keep. The first call
// of an instruction set is therefore made in a thread of its own with a handler for illegal
// instructions, which leaves that thread's call and nothing else. It is in place for the
// microseconds of the trial; other threads' signals go on to who had them before.
namespace {

thread_local sigjmp_buf* way_out = nullptr;
struct sigaction before;
pthread_mutex_t one_trial = PTHREAD_MUTEX_INITIALIZER;

void leave(int signal, siginfo_t* info, void* context) {
    if (way_out) siglongjmp(*way_out, 1);
    if (before.sa_flags & SA_SIGINFO) return before.sa_sigaction(signal, info, context);
    if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN)
        return before.sa_handler(signal);
    sigaction(signal, &before, nullptr);  // the instruction runs again and meets the default
}

struct Trial {
    int64_t (*probe)();
    int64_t outcome;
};

void* run_trial(void* argument) {
    Trial* trial = (Trial*)argument;
    sigjmp_buf here;
    if (sigsetjmp(here, 1)) {
        trial->outcome = 2;
    } else {
        way_out = &here;
        trial->outcome = trial->probe() ? 0 : 1;
    }
    way_out = nullptr;
    return nullptr;
}

}  // namespace

// Run probe_avx2, … in a thread that survives it: 0 right, 1 wrong numbers, 2 an illegal
// instruction, 3 no thread.
EXPORT_C int64_t try_probe(int64_t (*probe)()) {
    struct sigaction action = {};
    action.sa_sigaction = leave;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigemptyset(&action.sa_mask);
    Trial trial{probe, 3};
    pthread_t thread;
    pthread_mutex_lock(&one_trial);
    if (!sigaction(SIGILL, &action, &before)) {
        if (!pthread_create(&thread, nullptr, run_trial, &trial)) pthread_join(thread, nullptr);
        sigaction(SIGILL, &before, nullptr);
    }
    pthread_mutex_unlock(&one_trial);
    return trial.outcome;
}

// What try_probe is tested with: an instruction that no processor knows.
EXPORT_C int64_t probe_illegal() {
    __asm__ volatile("ud2");
    return 1;
}
