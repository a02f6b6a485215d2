// Runs launches: blocks one after another in random order, the threads of a block as fibers in random order, one warp
// at a time as far as it gets. So a thread that should have waited finds memory that nobody has written yet, which is
// NaN: shared memory is never zero here.
//
// What it finds wrong by itself: a barrier that part of a block reaches, a collective whose mask names a lane that does
// not come, a shuffle from a lane outside the mask, a store beside an array of shared memory, a launch no GPU accepts.
#include "cuda_runtime.h"

#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

#include <algorithm>
#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "fiber.hpp"

namespace shim {

Position now;

namespace {

constexpr size_t static_limit = 48 * 1024, dynamic_limit = 227 * 1024, gap = 128;
constexpr unsigned char poison = 0xff, canary = 0xa5;

enum class State : unsigned char { ready, at_barrier, in_collective, done };

struct Thread {
  Fiber fiber;
  State state;
  int line;  // where it waits
  Collective kind;
  uint32_t mask;
  int argument, width;
  uint64_t value;
};

// Whom the thread sanitizer sees meeting, and how often: two meetings in a row must not order what lies between them.
struct Meeting {
  uint32_t mask;
  unsigned count;
  char place[2];
};

// Lies in the block's own arena: places of one block must not order another.
struct Meetings {
  static constexpr int masks = 16;
  Meeting block, warp[32][masks];
};

struct Shared {
  const char* name;
  int line;
  char* at;
  size_t bytes;
};

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

std::vector<std::unique_ptr<Thread>> threads;
Meetings* meetings = nullptr;
constexpr size_t most_arrays = 64;
std::vector<Shared> arrays;                   // its memory is there before a fiber runs: a fiber allocates nothing
std::vector<std::unique_ptr<char[]>> arenas;  // of a launch: under the thread sanitizer one a block, never reused
std::map<const void*, size_t> allowed;
std::vector<Launch> recorded;
bool recording = false;
const Launch* running = nullptr;
unsigned count, current;
size_t arena_used, shared_used;
char began, ended;
uint64_t random_state = 1, switches;
std::string pending, last_error;  // a fiber's stack is never unwound: the scheduler throws what a fiber found

uint64_t random_below(uint64_t n) {
  random_state += 0x9E3779B97F4A7C15u;  // splitmix64
  uint64_t x = random_state;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return (x ^ (x >> 31)) % n;
}

template <class T>
void shuffle_order(std::vector<T>& v) {
  for (size_t i = v.size(); i > 1; --i) std::swap(v[i - 1], v[random_below(i)]);
}

std::string text(const dim3& d) {
  return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
}

void wait(State state, int line) {
  Thread& t = *threads[current];
  t.state = state;
  t.line = line;
  t.fiber.leave();
}

void fail(const std::string& what) {
  pending = what;
  threads[current]->fiber.leave();
  __builtin_trap();
}

void thread_body() {
  acquire(&began);
  running->thread();
  release(&ended);
  threads[current]->state = State::done;
  threads[current]->fiber.leave(true);
}

// Room for the meetings, every array with gaps beside it, and the pool.
size_t arena_size() {
  return 128 + sizeof(Meetings) + gap + static_limit + most_arrays * 2 * gap + running->shared_bytes + 2 * gap;
}

void open_arena() {
#if !defined(DIF_SHIM_THREAD)
  arenas.clear();
#endif
  arenas.emplace_back(new char[arena_size()]);
  char* arena = arenas.back().get();
#if defined(DIF_SHIM_THREAD)
  std::memset(arena, poison, arena_size());  // here and not in `take`, where it would be one thread's store
#else
  std::memset(arena, canary, arena_size());
#endif
  arena_used = -reinterpret_cast<uintptr_t>(arena) & 127;
  meetings = new (arena + arena_used) Meetings{};
  arena_used += (sizeof(Meetings) + 127) / 128 * 128 + gap;
  forbid(arena + arena_used - gap, arena_size() - arena_used + gap);
  arrays.clear();
  arrays.reserve(most_arrays);
  shared_used = 0;
}

char* take(const char* name, int line, size_t bytes) {
  char* at = arenas.back().get() + arena_used;
  arena_used += (bytes + 127) / 128 * 128 + gap;
#if !defined(DIF_SHIM_THREAD)
  permit(at, bytes);
  std::memset(at, poison, bytes);
#endif
  arrays.push_back({name, line, at, bytes});
  return at;
}

void close_arena() {
#if !defined(DIF_SHIM_THREAD)
  permit(arenas.back().get(), arena_size());
  for (const Shared& s : arrays) {
    const auto* low = reinterpret_cast<unsigned char*>(s.at);
    const auto* high = low + s.bytes;
    for (size_t i = 1; i <= gap; ++i) {
      if (low[-static_cast<ptrdiff_t>(i)] != canary || high[i - 1] != canary)
        throw Failure(std::string("shared memory: a store beside ") + s.name);
    }
  }
#endif
}

// Which lane a shuffle reads; its own if the other lies outside the segment of `width`.
unsigned source(const Thread& t, unsigned lane) {
  const unsigned width = static_cast<unsigned>(t.width), start = lane / width * width, end = start + width;
  const auto by = static_cast<unsigned>(t.argument);
  unsigned other = lane;
  if (t.kind == Collective::xor_lane) other = lane ^ by;
  if (t.kind == Collective::down) other = lane + by;
  if (t.kind == Collective::up) other = lane >= start + by ? lane - by : lane;
  if (t.kind == Collective::lane) other = start + by % width;
  return other < end ? other : lane;
}

void collect(unsigned first, uint32_t mask) {
  uint64_t results[32] = {};
  uint32_t ballot = 0;
  for (unsigned k = 0; k < 32; ++k) {
    if (mask >> k & 1u) ballot |= threads[first + k]->value ? 1u << k : 0u;
  }
  for (unsigned k = 0; k < 32; ++k) {
    if (!(mask >> k & 1u)) continue;
    const Thread& t = *threads[first + k];
    const unsigned from = source(t, k);
    if (t.kind != Collective::ballot && t.kind != Collective::sync && !(mask >> from & 1u))
      throw Failure("line " + std::to_string(t.line) + ": lane " + std::to_string(k) + " shuffles from lane " +
                    std::to_string(from) + ", which is not in the mask");
    results[k] = t.kind == Collective::ballot ? ballot : threads[first + from]->value;
  }
  for (unsigned k = 0; k < 32; ++k) {
    if (mask >> k & 1u) threads[first + k]->value = results[k], threads[first + k]->state = State::ready;
  }
}

// Lets the lanes of a warp go on whose collective is complete.
bool settle_warp(unsigned warp) {
  bool settled = false;
  const unsigned first = 32 * warp, end = std::min(count, first + 32);
  for (unsigned i = first; i < end; ++i) {
    const Thread& t = *threads[i];
    if (t.state != State::in_collective) continue;
    bool complete = true;
    for (unsigned k = 0; k < 32; ++k) {
      if (!(t.mask >> k & 1u)) continue;
      if (first + k >= end || threads[first + k]->state == State::done)
        throw Failure("line " + std::to_string(t.line) + ": the mask of a warp collective names lane " +
                      std::to_string(k) + ", which has exited or does not exist");
      const Thread& other = *threads[first + k];
      complete &=
          other.state == State::in_collective && other.mask == t.mask && other.line == t.line && other.kind == t.kind;
    }
    if (!complete) continue;
    for (Meeting& m : meetings->warp[warp]) m.count += m.mask == t.mask && t.kind == Collective::sync;
    collect(first, t.mask);
    settled = true;
  }
  return settled;
}

bool settle_block() {
  unsigned waiting = 0, done = 0;
  int line = 0;
  bool same = true;
  for (unsigned i = 0; i < count; ++i) {
    const Thread& t = *threads[i];
    done += t.state == State::done;
    if (t.state != State::at_barrier) continue;
    same &= waiting == 0 || line == t.line;
    line = t.line;
    ++waiting;
  }
  if (waiting == 0 || waiting + done < count) return false;
  if (done > 0)
    throw Failure("line " + std::to_string(line) + ": __syncthreads reached by " + std::to_string(waiting) + " of " +
                  std::to_string(count) + " threads, the others have exited");
  if (!same) throw Failure("__syncthreads: the threads of a block wait at different ones");
  for (unsigned i = 0; i < count; ++i) threads[i]->state = State::ready;
  ++meetings->block.count;
  return true;
}

void run_warp(unsigned warp) {
  std::vector<unsigned> lanes;
  do {
    lanes.clear();
    for (unsigned i = 32 * warp; i < std::min(count, 32 * warp + 32); ++i) {
      if (threads[i]->state == State::ready) lanes.push_back(i);
    }
    shuffle_order(lanes);
    for (unsigned i : lanes) {
      current = i;
      const dim3& b = running->block;
      now.thread = dim3(i % b.x, i / b.x % b.y, i / (b.x * b.y));
      ++switches;
      threads[i]->fiber.enter();
      if (!pending.empty()) throw Failure(std::exchange(pending, {}));
    }
  } while (settle_warp(warp));
}

void run_block() {
  open_arena();
  if (running->shared_bytes) take("the pool", -1, running->shared_bytes);
  release(&began);
  char* stack = stacks(count);
  for (unsigned i = 0; i < count; ++i) {
    threads[i]->state = State::ready;
    threads[i]->fiber.start(thread_body, stack + i * stack_distance());
  }
  std::vector<unsigned> warps((count + 31) / 32);
  for (size_t i = 0; i < warps.size(); ++i) warps[i] = static_cast<unsigned>(i);
  do {
    shuffle_order(warps);
    for (unsigned w : warps) run_warp(w);
  } while (settle_block());
  unsigned done = 0, waiting = 0;
  for (unsigned i = 0; i < count; ++i) {
    done += threads[i]->state == State::done;
    waiting += threads[i]->state == State::at_barrier;
  }
  if (done < count)
    throw Failure("deadlock: " + std::to_string(waiting) + " threads wait at __syncthreads, " +
                  std::to_string(count - waiting - done) + " in warp collectives, " + std::to_string(done) +
                  " have exited");
  close_arena();
}

void check(const Launch& l) {
  const size_t size = size_t{l.block.x} * l.block.y * l.block.z;
  const bool fits = size >= 1 && size <= 1024 && l.block.z <= 64 && l.grid.x >= 1 && l.grid.x <= 2147483647u &&
                    l.grid.y >= 1 && l.grid.y <= 65535 && l.grid.z >= 1 && l.grid.z <= 65535;
  if (!fits) throw Failure("launch: no GPU takes grid " + text(l.grid) + ", block " + text(l.block));
  const auto found = allowed.find(l.kernel);
  const size_t limit = found == allowed.end() ? static_limit : std::min(found->second, dynamic_limit);
  if (l.shared_bytes > limit)
    throw Failure("launch: " + std::to_string(l.shared_bytes) + " bytes of shared memory where " +
                  std::to_string(limit) + " are allowed");
  size_t bytes = 0;
  for (const auto& a : l.arguments) bytes += a.size();
  if (bytes > 4096) throw Failure("launch: " + std::to_string(bytes) + " bytes of arguments, 4096 are possible");
}

void run(const Launch& l) {
  running = &l;
  count = l.block.x * l.block.y * l.block.z;
  while (threads.size() < count) threads.push_back(std::make_unique<Thread>());
  now.threads = l.block;
  now.blocks = l.grid;
  std::vector<uint64_t> blocks(uint64_t{l.grid.x} * l.grid.y * l.grid.z);
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = i;
  shuffle_order(blocks);
  release(&began);
  for (uint64_t i : blocks) {
    now.block = dim3(static_cast<unsigned>(i % l.grid.x), static_cast<unsigned>(i / l.grid.x % l.grid.y),
                     static_cast<unsigned>(i / l.grid.x / l.grid.y));
    run_block();
  }
  acquire(&ended);
  arenas.clear();
}

}  // namespace

void barrier(int line) {
  char* place = &meetings->block.place[meetings->block.count & 1];
  release(place);
  wait(State::at_barrier, line);
  acquire(place);
}

uint64_t collective(Collective kind, uint32_t mask, uint64_t value, int argument, int width, int line) {
  Thread& t = *threads[current];
  if (!(mask >> (current & 31) & 1u))
    fail("line " + std::to_string(line) + ": a warp collective is called by a lane that its mask does not name");
  t.kind = kind;
  t.mask = mask;
  t.value = value;
  t.argument = argument;
  t.width = width;
  if (kind != Collective::sync) {
    wait(State::in_collective, line);
    return t.value;
  }
  // The only one that orders memory.
  auto& known = meetings->warp[current / 32];
  Meeting* m =
      std::find_if(known, known + Meetings::masks, [&](const Meeting& x) { return x.mask == mask || !x.mask; });
  if (m == known + Meetings::masks) fail("line " + std::to_string(line) + ": more masks than the shim can tell apart");
  m->mask = mask;
  char* place = &m->place[m->count & 1];
  release(place);
  wait(State::in_collective, line);
  acquire(place);
  return 0;
}

void* shared(const char* name, int line, size_t bytes) {
  for (const Shared& s : arrays) {
    if (s.line == line && std::strcmp(s.name, name) == 0) return s.at;
  }
  shared_used += (bytes + 15) / 16 * 16;
  if (shared_used > static_limit || arrays.size() == most_arrays) fail("more than 48 KiB of static shared memory");
  return take(name, line, bytes);
}

void* dynamic_shared() {
  if (!running->shared_bytes) fail("a pool of shared memory, and none in the launch");
  return arrays.front().at;
}

void allow_dynamic_shared(const void* kernel, size_t bytes) { allowed[kernel] = bytes; }

void launch(Launch&& l) {
  if (!last_error.empty()) return;
  try {
    check(l);
    if (recording)
      recorded.push_back(std::move(l));
    else
      run(l);
  } catch (const Failure& e) {
    last_error = e.what();
  }
}

}  // namespace shim

// --- the runtime's interface, and what tests ask of the shim -------------------------------------------------------

namespace {
std::string told;
}

cudaError_t cudaGetLastError() {
  if (shim::last_error.empty()) return cudaSuccess;
  told = std::exchange(shim::last_error, {});
  return cudaErrorLaunchFailure;
}

const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : told.c_str(); }

extern "C" {
__attribute__((visibility("default"))) void shim_seed(uint64_t seed) { shim::random_state = seed; }
__attribute__((visibility("default"))) uint64_t shim_switches() { return shim::switches; }
// From now on launches are written down and not run; what was written before is forgotten.
__attribute__((visibility("default"))) void shim_record(int on) {
  shim::recording = on != 0;
  shim::recorded.clear();
}
__attribute__((visibility("default"))) int shim_recorded() { return static_cast<int>(shim::recorded.size()); }
// size: grid (3), block (3), bytes of shared memory, number of arguments. Returns the kernel's address.
__attribute__((visibility("default"))) const void* shim_launch(int index, uint64_t* size) {
  const shim::Launch& l = shim::recorded[static_cast<size_t>(index)];
  const uint64_t values[8] = {l.grid.x,  l.grid.y,  l.grid.z,       l.block.x,
                              l.block.y, l.block.z, l.shared_bytes, l.arguments.size()};
  std::copy_n(values, 8, size);
  return l.kernel;
}
__attribute__((visibility("default"))) const unsigned char* shim_argument(int index, int argument, uint64_t* bytes) {
  const auto& a = shim::recorded[static_cast<size_t>(index)].arguments[static_cast<size_t>(argument)];
  *bytes = a.size();
  return a.data();
}
}
