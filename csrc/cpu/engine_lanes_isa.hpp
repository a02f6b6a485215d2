// For files that are compiled once for each instruction set: the engine's lanes L of this one, its name, and
// DIF_OF_ISA(engine), the name of the table that such a file fills.
#pragma once

#if defined(DIF_ISA_avx512)
#include "cpu/engine_lanes_avx512.hpp"
#define DIF_OF_ISA(part) part##_avx512
#elif defined(DIF_ISA_avx2)
#include "cpu/engine_lanes_avx2.hpp"
#define DIF_OF_ISA(part) part##_avx2
#else
#include "cpu/engine_lanes.hpp"
#define DIF_OF_ISA(part) part##_baseline
#endif

namespace dif {
namespace {  // what is made of these lanes belongs to one file alone: no other may link to it

#if defined(DIF_ISA_avx512)
using L = Avx512Engine;
constexpr const char* isa_name = "avx512";
#elif defined(DIF_ISA_avx2)
using L = Avx2Engine;
constexpr const char* isa_name = "avx2";
#else
struct FileTag {};
using L = PortableEngine<float, FileTag>;
constexpr const char* isa_name = "baseline";
#endif

}  // namespace
}  // namespace dif
