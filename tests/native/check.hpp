// CHECK(condition): counts, and names file, line and text of a condition that does not hold. summary() ends a
// program.
#pragma once
#include <cstdio>

namespace check {

inline int passed = 0, failed = 0;

inline void that(bool holds, const char* text, const char* file, int line) {
  ++(holds ? passed : failed);
  if (!holds) std::printf("%s:%d: does not hold: %s\n", file, line, text);
}

// The exit code of main.
inline int summary(const char* name) {
  std::printf("%s: %d checks passed", name, passed);
  if (failed > 0) std::printf(", %d FAILED", failed);
  std::printf("\n");
  return failed > 0 ? 1 : 0;
}

}  // namespace check

#define CHECK(condition) check::that((condition), #condition, __FILE__, __LINE__)
