// Second derivatives for one instruction set: compiled once for each, under the same rules as isa.cpp.
#include "cpu/engine_second_isa.hpp"

#include "cpu/engine_lanes_double.hpp"
#include "cpu/engine_lanes_isa.hpp"
#include "cpu/engine_second.hpp"

namespace dif {
namespace {

template <class Lanes>
void multiply(int64_t m, int64_t n, int64_t k, const typename Lanes::T* a, int64_t a_row, int64_t a_column,
              const typename Lanes::T* b, int64_t b_ld, typename Lanes::T* c, int64_t c_ld, bool onto) {
  Gemm<Lanes>::run(m, n, k, {a, a_row, a_column}, b, b_ld, c, c_ld, nullptr, onto);
}

}  // namespace

extern const SecondKernels<float> DIF_OF_ISA(second);
const SecondKernels<float> DIF_OF_ISA(second) = {isa_name, turn_weights<L>, SecondState<L>::state, Second<L>::run,
                                                 multiply<L>};

extern const SecondKernels<double> DIF_OF_ISA(second_f64);
const SecondKernels<double> DIF_OF_ISA(second_f64) = {isa_name, turn_weights<D>, SecondState<D>::state, Second<D>::run,
                                                      multiply<D>};

}  // namespace dif
