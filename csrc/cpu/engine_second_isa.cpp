// Second derivatives for one instruction set: compiled once for each, under the same rules as isa.cpp.
#include "cpu/engine_second_isa.hpp"

#include "cpu/engine_second.hpp"

#if defined(DIF_ISA_avx512)
#include "cpu/engine_lanes_avx512.hpp"
#define DIF_SECOND second_avx512
#elif defined(DIF_ISA_avx2)
#include "cpu/engine_lanes_avx2.hpp"
#define DIF_SECOND second_avx2
#else
#include "cpu/engine_lanes.hpp"
#define DIF_SECOND second_baseline
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
struct SecondTag {};
using L = PortableEngine<float, SecondTag>;
constexpr const char* isa_name = "baseline";
#endif

}  // namespace

extern const SecondKernels<float> DIF_SECOND;
const SecondKernels<float> DIF_SECOND = {isa_name, turn_weights<L>, SecondState<L>::state, Second<L>::run};

#if defined(DIF_ISA_baseline)
namespace {
using D = PortableEngine<double, SecondTag>;
}
extern const SecondKernels<double> second_f64;
const SecondKernels<double> second_f64 = {"double", turn_weights<D>, SecondState<D>::state, Second<D>::run};
#endif

}  // namespace dif
