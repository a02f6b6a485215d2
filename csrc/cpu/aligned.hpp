// Zeroed memory on cache lines.
#pragma once
#include <cstdint>
#include <cstring>
#include <new>

namespace dif {

template <class T>
class Aligned {
 public:
  explicit Aligned(int64_t n) : p_(static_cast<T*>(::operator new(bytes(n), std::align_val_t{64}))) {
    std::memset(p_, 0, bytes(n));
  }
  ~Aligned() { ::operator delete(p_, std::align_val_t{64}); }
  Aligned(const Aligned&) = delete;
  T* get() const { return p_; }

 private:
  static size_t bytes(int64_t n) { return static_cast<size_t>(n + 64) * sizeof(T); }
  T* p_;
};

}  // namespace dif
