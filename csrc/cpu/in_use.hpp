// A part of the backend has a table of functions for each instruction set: DIF_IN_USE(engine) is that of
// engine_baseline, engine_avx2 and engine_avx512 which goes with the kernels in use.
#pragma once
#include <cstring>
#include <type_traits>

#include "cpu/kernels.hpp"

#if defined(DIF_HAVE_avx512)
#define DIF_TABLE_avx512(part) &part##_avx512
#else
#define DIF_TABLE_avx512(part) nullptr
#endif
#if defined(DIF_HAVE_avx2)
#define DIF_TABLE_avx2(part) &part##_avx2
#else
#define DIF_TABLE_avx2(part) nullptr
#endif
#define DIF_IN_USE(part) ::dif::in_use(part##_baseline, DIF_TABLE_avx2(part), DIF_TABLE_avx512(part))

namespace dif {

template <class Table>
const Table& in_use(const Table& baseline, const std::remove_cv_t<Table>* avx2, const std::remove_cv_t<Table>* avx512) {
  if (avx512 && std::strcmp(kernels().name, "avx512") == 0) return *avx512;
  if (avx2 && std::strcmp(kernels().name, "avx2") == 0) return *avx2;
  return baseline;
}

}  // namespace dif
