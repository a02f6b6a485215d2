// The engine's passes for one instruction set: compiled once for each, under the same rules as isa.cpp.
#include "cpu/engine_isa.hpp"

#include "cpu/engine_matrix.hpp"

#if defined(DIF_ISA_avx512)
#include "cpu/engine_lanes_avx512.hpp"
#define DIF_ENGINE engine_avx512
#elif defined(DIF_ISA_avx2)
#include "cpu/engine_lanes_avx2.hpp"
#define DIF_ENGINE engine_avx2
#else
#include "cpu/engine_lanes.hpp"
#define DIF_ENGINE engine_baseline
#endif

namespace dif {
namespace {

#if defined(DIF_ISA_avx512)
using L = Avx512Engine;
constexpr const char* isa_name = "avx512";
#elif defined(DIF_ISA_avx2)
using L = Avx2Engine;
constexpr const char* isa_name = "avx2";
#else
struct EngineTag {};
using L = PortableEngine<float, EngineTag>;
constexpr const char* isa_name = "baseline";
#endif

void indices(const uint32_t* words, int64_t count, int64_t n, int32_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = static_cast<int32_t>((static_cast<uint64_t>(words[i]) * static_cast<uint64_t>(n)) >> 32);
  }
}

}  // namespace

extern const EngineKernels DIF_ENGINE;
const EngineKernels DIF_ENGINE = {isa_name, Matrix<L>::run, indices};

#if defined(DIF_ISA_baseline)
void matrix_pass_f64(const Plan& plan, const double* w, const Batch<double>& batch, double* g, double* s,
                     double* losses) {
  Matrix<PortableEngine<double, EngineTag>>::run(plan, w, batch, g, s, losses);
}
#endif

}  // namespace dif
