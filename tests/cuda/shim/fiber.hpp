// A stack of its own and a way to leave and enter it. Under a sanitizer, every switch is told to it.
#pragma once
#include <cstddef>

#if defined(DIF_SHIM_UCONTEXT) || !defined(__x86_64__)
#define DIF_SHIM_USES_UCONTEXT 1
#include <ucontext.h>
#endif

namespace shim {

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber();

  // The next `enter` runs `entry` from its beginning on this stack of `stack_bytes`; `entry` never returns, it leaves
  // with `last`. What the stack held before is forgotten.
  void start(void (*entry)(), void* stack);
  void enter();                   // from the main stack into this one
  void leave(bool last = false);  // from this one back to the main stack

 private:
  void* stack_ = nullptr;
  void (*entry_)() = nullptr;
  void* place_ = nullptr;
  void* fake_stack_ = nullptr;  // address sanitizer
  void* identity_ = nullptr;    // thread sanitizer
#if DIF_SHIM_USES_UCONTEXT
  ucontext_t context_;
#endif
  static void begin();
};

// Stacks for the fibers of a block; those of the block before are gone. An overflow ends the process.
char* stacks(size_t count);
size_t stack_distance();

// What a thread did before `release(o)`, another sees after `acquire(o)`: for the thread sanitizer.
void release(void* object);
void acquire(void* object);
// Bytes that no thread may touch, and that it may: for the address sanitizer.
void forbid(const void* at, size_t bytes);
void permit(const void* at, size_t bytes);

}  // namespace shim
