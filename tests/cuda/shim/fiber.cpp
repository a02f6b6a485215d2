// Compiled without -fsanitize: what the runtime does is no business of the kernels' sanitizers. DIF_SHIM_ADDRESS and
// DIF_SHIM_THREAD say which of them the kernels are built with.
#include "fiber.hpp"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#if defined(DIF_SHIM_ADDRESS)
extern "C" {
void __sanitizer_start_switch_fiber(void**, const void*, size_t);
void __sanitizer_finish_switch_fiber(void*, const void**, size_t*);
void __asan_poison_memory_region(const volatile void*, size_t);
void __asan_unpoison_memory_region(const volatile void*, size_t);
}
#elif defined(DIF_SHIM_THREAD)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void*);
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
}
#endif

#if !DIF_SHIM_USES_UCONTEXT
// Pushes what a callee must preserve, stores the stack pointer, takes the other one, pops.
extern "C" void dif_shim_switch(void** from, void* to);
asm(R"(.text
.globl dif_shim_switch
.hidden dif_shim_switch
.type dif_shim_switch,@function
dif_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size dif_shim_switch,.-dif_shim_switch
)");
#endif

namespace shim {
namespace {

constexpr size_t page = 4096;
#if defined(DIF_SHIM_ADDRESS) || defined(DIF_SHIM_THREAD)
constexpr size_t stack_size = 256 * 1024;
#else
constexpr size_t stack_size = 64 * 1024;
#endif

Fiber* running = nullptr;  // null: the main stack
void* main_place = nullptr;
#if DIF_SHIM_USES_UCONTEXT
ucontext_t main_context;
#endif
#if defined(DIF_SHIM_ADDRESS)
void* main_fake_stack = nullptr;
const void* main_stack = nullptr;
size_t main_stack_size = 0;
#elif defined(DIF_SHIM_THREAD)
void* main_identity = nullptr;
constexpr unsigned no_order = 1;  // a switch by itself orders nothing
#endif

}  // namespace

void release([[maybe_unused]] void* object) {
#if defined(DIF_SHIM_THREAD)
  __tsan_release(object);
#endif
}

void acquire([[maybe_unused]] void* object) {
#if defined(DIF_SHIM_THREAD)
  __tsan_acquire(object);
#endif
}

void forbid([[maybe_unused]] const void* at, [[maybe_unused]] size_t bytes) {
#if defined(DIF_SHIM_ADDRESS)
  __asan_poison_memory_region(at, bytes);
#endif
}

void permit([[maybe_unused]] const void* at, [[maybe_unused]] size_t bytes) {
#if defined(DIF_SHIM_ADDRESS)
  __asan_unpoison_memory_region(at, bytes);
#endif
}

size_t stack_distance() { return page + stack_size; }

char* stacks(size_t count) {
  static void* region = nullptr;
  static size_t room = 0;
#if defined(DIF_SHIM_THREAD)
  // A stack that served another block would carry its accesses, which this block is not ordered after.
  constexpr bool keep = false;
#else
  constexpr bool keep = true;
#endif
  const size_t bytes = count * stack_distance();
  if (!keep || bytes > room) {
    if (region) munmap(region, room);
    region = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (region == MAP_FAILED) throw std::bad_alloc();
    room = bytes;
    for (size_t i = 0; keep && i < count; ++i) {
      mprotect(static_cast<char*>(region) + i * stack_distance(), page, PROT_NONE);
    }
  }
  return static_cast<char*>(region);
}

Fiber::~Fiber() {
#if defined(DIF_SHIM_THREAD)
  if (identity_) __tsan_destroy_fiber(identity_);
#endif
}

void Fiber::start(void (*entry)(), void* stack) {
#if defined(DIF_SHIM_THREAD)
  if (identity_) __tsan_destroy_fiber(identity_);
  identity_ = __tsan_create_fiber(0);
#endif
  stack_ = stack;
  permit(static_cast<char*>(stack_) + page, stack_size);
  entry_ = entry;
  fake_stack_ = nullptr;
#if DIF_SHIM_USES_UCONTEXT
  getcontext(&context_);
  context_.uc_stack.ss_sp = static_cast<char*>(stack_) + page;
  context_.uc_stack.ss_size = stack_size;
  context_.uc_link = nullptr;
  makecontext(&context_, &Fiber::begin, 0);
#else
  // As if `begin` had been called with a return address and had left once: six registers above it.
  void** top = reinterpret_cast<void**>(static_cast<char*>(stack_) + page + stack_size - 64);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&Fiber::begin);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  place_ = top;
#endif
}

void Fiber::begin() {
#if defined(DIF_SHIM_ADDRESS)
  __sanitizer_finish_switch_fiber(nullptr, &main_stack, &main_stack_size);
#endif
  running->entry_();
  __builtin_trap();
}

void Fiber::enter() {
  running = this;
#if defined(DIF_SHIM_ADDRESS)
  __sanitizer_start_switch_fiber(&main_fake_stack, static_cast<char*>(stack_) + page, stack_size);
#elif defined(DIF_SHIM_THREAD)
  main_identity = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(identity_, no_order);
#endif
#if DIF_SHIM_USES_UCONTEXT
  swapcontext(&main_context, &context_);
#else
  dif_shim_switch(&main_place, place_);
#endif
#if defined(DIF_SHIM_ADDRESS)
  __sanitizer_finish_switch_fiber(main_fake_stack, nullptr, nullptr);
#endif
  running = nullptr;
}

void Fiber::leave([[maybe_unused]] bool last) {
#if defined(DIF_SHIM_ADDRESS)
  __sanitizer_start_switch_fiber(last ? nullptr : &fake_stack_, main_stack, main_stack_size);
#elif defined(DIF_SHIM_THREAD)
  __tsan_switch_to_fiber(main_identity, no_order);
#endif
#if DIF_SHIM_USES_UCONTEXT
  swapcontext(&context_, &main_context);
#else
  dif_shim_switch(&place_, main_place);
#endif
#if defined(DIF_SHIM_ADDRESS)
  __sanitizer_finish_switch_fiber(fake_stack_, &main_stack, &main_stack_size);
#endif
}

}  // namespace shim
