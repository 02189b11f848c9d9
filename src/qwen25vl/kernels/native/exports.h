// What leaves the library: plain C functions.
#pragma once

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#elif defined(__GNUC__)
#define EXPORT __attribute__((visibility("default")))
#else
#define EXPORT
#endif
#define EXPORT_C extern "C" EXPORT
