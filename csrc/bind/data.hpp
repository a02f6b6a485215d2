// The data set as it crosses from Python: addresses and lengths.
#pragma once
#include <cstdint>
#include <tuple>

#include "cpu/engine.hpp"

// (x, y, tokens, classes, their row sizes, n)
using DataTuple = std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, int64_t, int64_t, int64_t, int64_t, int64_t>;

template <class T>
dif::Data<T> data_of(const DataTuple& d) {
  return {{reinterpret_cast<const T*>(std::get<0>(d)), reinterpret_cast<const T*>(std::get<1>(d)),
           reinterpret_cast<const int32_t*>(std::get<2>(d)), reinterpret_cast<const int32_t*>(std::get<3>(d)),
           std::get<4>(d), std::get<5>(d), std::get<6>(d), std::get<7>(d), nullptr, 0},
          std::get<8>(d)};
}
