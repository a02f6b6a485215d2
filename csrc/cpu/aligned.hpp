// Zeroed memory on cache lines; much of it on huge pages where Linux has them, since vectors of millions of numbers are
// streamed step after step, and small pages cost a fault each and then the translations of their addresses.
#pragma once
#include <cstdint>
#include <cstring>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace dif {

template <class T>
class Aligned {
 public:
  explicit Aligned(int64_t n)
      : size_(static_cast<size_t>(n + 64) * sizeof(T)), p_(static_cast<T*>(::operator new(size_, alignment()))) {
#ifdef __linux__
    if (size_ >= large) madvise(p_, size_, MADV_HUGEPAGE);  // advice: without it everything works as well
#endif
    std::memset(p_, 0, size_);
  }
  ~Aligned() { ::operator delete(p_, alignment()); }
  Aligned(const Aligned&) = delete;
  T* get() const { return p_; }

 private:
  static constexpr size_t huge = size_t{1} << 21, large = 2 * huge;
  std::align_val_t alignment() const { return std::align_val_t{size_ >= large ? huge : 64}; }
  size_t size_;
  T* p_;
};

}  // namespace dif
