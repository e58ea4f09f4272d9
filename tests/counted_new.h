// Counts what a test program allocates, and lets allocations fail. For one file of a program.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace tendon::heap {

inline std::atomic<int64_t> allocations{0}, bytes_allocated{0}, blocks_held{0};
inline thread_local bool may_fail = false;  // whether allocations of this thread may fail

inline std::atomic<bool> failing{false};
inline std::atomic<int64_t> blocks_until_failure{-1};  // below 0: never again
inline std::atomic<int64_t> blocks_between{0};         // two failures; 0: only one fails
inline std::atomic<int64_t> failures{0};

// Lets allocation n, from 1 on, of threads that may fail fail; or every n-th.
inline void fail_from_now_on(int64_t n, bool every) {
  failures = 0;
  blocks_between = every ? n : 0;
  blocks_until_failure = n - 1;
  failing = true;
}
// How many failed.
inline int64_t fail_no_more() {
  failing = false;
  return failures;
}

struct FailedCalls {
  int64_t count = 0, leaked = 0;
};
// Calls `call` with the number of the allocation that it lets fail, from 1 on, until none did.
template <class Call>
FailedCalls with_every_failure(const Call& call) {
  constexpr int64_t kCallsMax = 2000;
  FailedCalls calls;
  do {
    const int64_t before = blocks_held;
    call(++calls.count);
    calls.leaked += blocks_held - before;
  } while (fail_no_more() > 0 && calls.count < kCallsMax);
  EXPECT_LT(calls.count, kCallsMax) << "more allocations than were tried";
  return calls;
}

inline void* counted(size_t bytes, size_t alignment = 1) {
  if (may_fail && failing && blocks_until_failure >= 0 && blocks_until_failure-- == 0) {
    ++failures;
    if (blocks_between > 0) blocks_until_failure = blocks_between - 1;
    throw std::bad_alloc();
  }
  void* block = alignment > 16
                    ? std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment)
                    : std::malloc(bytes);
  if (!block) throw std::bad_alloc();
  ++allocations;
  bytes_allocated += static_cast<int64_t>(bytes);
  ++blocks_held;
  return block;
}

inline void release(void* block) {
  if (block) --blocks_held;
  std::free(block);
}

}  // namespace tendon::heap

// Never inlined: gcc takes the halves of an inlined pair for a mismatch.
[[gnu::noinline]] void* operator new(size_t bytes) { return tendon::heap::counted(bytes); }
[[gnu::noinline]] void* operator new[](size_t bytes) { return tendon::heap::counted(bytes); }
[[gnu::noinline]] void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  return tendon::heap::counted(bytes);
}
[[gnu::noinline]] void* operator new(size_t bytes, std::align_val_t a) {
  return tendon::heap::counted(bytes, static_cast<size_t>(a));
}
[[gnu::noinline]] void operator delete(void* p) noexcept { tendon::heap::release(p); }
[[gnu::noinline]] void operator delete[](void* p) noexcept { tendon::heap::release(p); }
[[gnu::noinline]] void operator delete(void* p, size_t) noexcept { tendon::heap::release(p); }
[[gnu::noinline]] void operator delete[](void* p, size_t) noexcept { tendon::heap::release(p); }
[[gnu::noinline]] void operator delete(void* p, std::align_val_t) noexcept {
  tendon::heap::release(p);
}
[[gnu::noinline]] void operator delete(void* p, size_t, std::align_val_t) noexcept {
  tendon::heap::release(p);
}
