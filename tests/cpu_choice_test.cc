// labels: unit
// How the cpu backend hands out work and which instruction set it takes.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "backends/cpu/isa.h"
#include "backends/cpu/thread_pool.h"

namespace tendon::cpu {
namespace {

TEST(ThreadPool, does_every_task_once_with_threads_awake_and_asleep) {
  ThreadPool pool(4);
  for (int round = 0; round < 2000; ++round) {
    std::array<std::atomic<int>, 100> done{};
    pool.run(100, ThreadPool::kLong, [&](int64_t task, int) { ++done[static_cast<size_t>(task)]; });
    for (const std::atomic<int>& times : done) ASSERT_EQ(times, 1);
    if (round % 100 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// Every other thread is held up in a task; the caller does all the others and returns as soon as
// they are done.
TEST(ThreadPool, waits_only_for_tasks_that_were_taken) {
  ThreadPool pool(3);
  std::atomic<int> others = 0, by_caller = 0;
  pool.run(50, ThreadPool::kLong, [&](int64_t, int thread) {
    if (thread == 0) {
      ++by_caller;
      return;
    }
    ++others;
    while (by_caller + others < 50) std::this_thread::yield();
  });
  EXPECT_EQ(by_caller + others, 50);
  EXPECT_LE(others, 2);
}

TEST(ThreadPool, returns_when_what_others_took_is_done_too) {
  ThreadPool pool(3);
  std::array<std::atomic<int>, 20> done{};
  std::atomic<int> others = 0;
  pool.run(20, ThreadPool::kLong, [&](int64_t task, int thread) {
    std::this_thread::sleep_for(std::chrono::milliseconds(thread == 0 ? 5 : 40));
    others += thread != 0;
    ++done[static_cast<size_t>(task)];
  });
  for (const std::atomic<int>& times : done) EXPECT_EQ(times, 1);
  EXPECT_GT(others, 0);
}

TEST(ThreadPool, leaves_small_work_to_the_caller) {
  ThreadPool pool(4);
  for (int round = 0; round < 100; ++round)
    pool.run(8, 100, [&](int64_t, int thread) { ASSERT_EQ(thread, 0); });
}

SimdKernels called(const char* name) {
  SimdKernels kernels = *plain_kernels();
  kernels.name = name;
  return kernels;
}

TEST(IsaChoice, takes_the_fastest_that_is_right_and_among_equals_goes_in_order) {
  const SimdKernels avx2 = called("avx2"), avx512 = called("avx512"), bf16 = called("avx512bf16");
  const auto taken = [](std::vector<IsaSpeed> speeds) {
    return std::string_view(fastest(speeds).name);
  };
  EXPECT_EQ(taken({{&avx2, 90, true}, {&avx512, 170, true}, {&bf16, 340, true}}), "avx512bf16");
  EXPECT_EQ(taken({{&avx2, 90, true}, {&avx512, 170, true}, {&bf16, 85, true}}), "avx512");
  EXPECT_EQ(taken({{&avx2, 90, true}, {&avx512, 170, true}, {&bf16, 340, false}}), "avx512");
  EXPECT_EQ(taken({{&avx2, 90, true}, {&avx512, 170, false}}), "avx2");
  // Within the margin in either direction: the same.
  EXPECT_EQ(taken({{&avx2, 100, true}, {&avx512, 95, true}}), "avx512");
  EXPECT_EQ(taken({{&avx2, 95, true}, {&avx512, 100, true}}), "avx512");
  EXPECT_EQ(taken({{&avx2, 100, true}, {&avx512, 80, true}}), "avx2");
}

TEST(IsaChoice, measures_every_instruction_set_and_finds_it_right) {
  for (const Form form : {Form::f32, Form::bf16, Form::int8}) {
    EXPECT_EQ(isa_speeds(form).size(), available_isas().size());
    for (const IsaSpeed& speed : isa_speeds(form)) {
      EXPECT_TRUE(speed.right) << speed.isa->name;
      EXPECT_GT(speed.gflops, 0) << speed.isa->name;
    }
    EXPECT_EQ(&isa_for("", form), &isa_for("", form));
  }
}

void twice_the_product(const TileProduct& product) {
  plain_kernels()->tiles[0][1](product);
  for (int i = 0; i < kPanel; ++i) product.c[i] *= 2;
}

TEST(IsaChoice, sees_a_wrong_product) {
  EXPECT_TRUE(agrees_with_plain(*plain_kernels(), Form::f32));
  SimdKernels wrong = *plain_kernels();
  const std::array<SimdKernels::Tile, 2> tiles{nullptr, &twice_the_product};
  wrong.tile_rows[0] = 1;
  wrong.tiles[0] = tiles.data();
  EXPECT_FALSE(agrees_with_plain(wrong, Form::f32));
}

}  // namespace
}  // namespace tendon::cpu
