// A check that counts, for programs that test without a framework.
#pragma once
#include <cstdio>

namespace dif_check {
inline int passed = 0, failed = 0;

// Prints the summary; its result is the exit code of main.
inline int report(const char* name) {
  std::printf("%s: %d checks passed, %d failed\n", name, passed, failed);
  return failed == 0 ? 0 : 1;
}
}  // namespace dif_check

#define CHECK(x)                                                  \
  do {                                                            \
    if (x) {                                                      \
      ++dif_check::passed;                                        \
    } else {                                                      \
      ++dif_check::failed;                                        \
      std::printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #x); \
    }                                                             \
  } while (0)
