// How sums over a chain's coordinates are cut, on every device: into blocks of block_size coordinates, a block into
// running_sums float32 sums (coordinate i belongs to sum i mod running_sums, added in order), a block's sums into one
// double in order, the blocks' doubles in order. The cut depends on the coordinates alone, so a sum does not depend on
// instruction set, threads or device.
#pragma once
#include <cstdint>

namespace dif {

constexpr int64_t block_size = 8192;
constexpr int running_sums = 32;

}  // namespace dif
