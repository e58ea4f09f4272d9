// labels: timing
// Two threads cost no more than they bring, whatever else the machine does. Every bound is a ratio
// of times that were measured in turns within this run; the tests take the cores themselves.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <thread>
#include <vector>

#include "backends/cpu/cpu.h"
#include "backends/cpu/isa.h"
#include "backends/cpu/linear.h"
#include "tendon/tendon.h"
#include "tensor/parallel.h"
#include "tensor/random.h"

namespace tendon {
namespace {

using Clock = std::chrono::steady_clock;
using Ms = std::chrono::duration<double, std::milli>;

// Processes that do nothing but take a core each.
class Takers {
 public:
  explicit Takers(int count) {
    for (int i = 0; i < count; ++i) {
      ids_.push_back(fork());
      if (ids_.back() == 0)
        for (;;) asm volatile("");
    }
  }
  ~Takers() {
    for (const pid_t id : ids_) {
      kill(id, SIGKILL);
      waitpid(id, nullptr, 0);
    }
  }
  Takers(const Takers&) = delete;
  Takers& operator=(const Takers&) = delete;

 private:
  std::vector<pid_t> ids_;
};

struct Times {
  std::vector<double> ms;
  double at(double part) const {
    std::vector<double> sorted = ms;
    std::ranges::sort(sorted);
    return sorted[static_cast<size_t>(part * static_cast<double>(sorted.size() - 1))];
  }
  double median() const { return at(0.5); }
};

Engine demo(int threads) { return Engine::open("demo", {.threads = threads}); }

double call_ms(Engine& engine, const Observation& seen) {
  const auto begin = Clock::now();
  engine.infer(seen);
  return Ms(Clock::now() - begin).count();
}

// One and two threads in turns of ten calls, `pause` before each.
std::array<Times, 2> in_turns(int turns, std::chrono::milliseconds pause = {}) {
  std::array<Engine, 2> engines{demo(1), demo(2)};
  const Observation seen = demo_observation();
  std::array<Times, 2> times;
  for (Engine& engine : engines) engine.infer(seen);
  for (int turn = 0; turn < turns; ++turn)
    for (size_t i = 0; i < 2; ++i)
      for (int call = 0; call < 10; ++call) {
        std::this_thread::sleep_for(pause);
        times[i].ms.push_back(call_ms(engines[i], seen));
      }
  return times;
}

// Two threads take at most so many times as long as one.
void expect_at_most(double ratio, const std::string& situation, const std::array<Times, 2>& times) {
  fmt::print("{:24}", situation);
  for (size_t i = 0; i < 2; ++i)
    fmt::print("  {} thread{}: median {:6.2f}, p90 {:6.2f}, worst {:6.2f} ms", i + 1,
               i == 0 ? " " : "s", times[i].median(), times[i].at(0.9), times[i].at(1));
  fmt::print("\n");
  EXPECT_LE(times[1].median(), ratio * times[0].median()) << situation;
}

// The slowest call, unless one thread alone met as slow a one: then the machine was not idle.
void expect_no_outlier(const std::array<Times, 2>& times) {
  EXPECT_LE(times[1].at(1), std::max(2 * times[1].median(), 1.5 * times[0].at(1)));
}

struct CpuThreads : testing::Test {
  void SetUp() override {
    if (hardware_threads() < 2) GTEST_SKIP() << "needs two cores";
  }
};

TEST_F(CpuThreads, pay_in_steady_state) { expect_at_most(1, "steady state", in_turns(20)); }

TEST_F(CpuThreads, cost_nothing_after_a_pause) {
  for (const int pause : {20, 50}) {
    const auto times = in_turns(4, std::chrono::milliseconds(pause));
    expect_at_most(1.05, fmt::format("a call every {} ms", pause), times);
    expect_no_outlier(times);
  }
}

// Of a process of its own.
TEST_F(CpuThreads, cost_nothing_in_the_first_call) {
  std::array<Times, 2> times;
  for (int child_number = 0; child_number < 20; ++child_number)
    for (size_t i = 0; i < 2; ++i) {
      int ends[2];
      ASSERT_EQ(pipe(ends), 0);
      const pid_t child = fork();
      if (child == 0) {
        Engine engine = demo(static_cast<int>(i) + 1);
        const double ms = call_ms(engine, demo_observation());
        _exit(write(ends[1], &ms, sizeof(ms)) == sizeof(ms) ? 0 : 1);
      }
      double ms = 0;
      ASSERT_EQ(read(ends[0], &ms, sizeof(ms)), static_cast<ssize_t>(sizeof(ms)));
      waitpid(child, nullptr, 0);
      close(ends[0]);
      close(ends[1]);
      times[i].ms.push_back(ms);
    }
  expect_at_most(1.05, "first call of a process", times);
  expect_no_outlier(times);
}

TEST_F(CpuThreads, cost_little_where_others_take_the_cores) {
  for (const int taken : {hardware_threads() - 1, hardware_threads()}) {
    const Takers takers(taken);
    expect_at_most(1.2, fmt::format("{} of {} cores taken", taken, hardware_threads()),
                   in_turns(20));
  }
}

// Products of the published sizes, a call's share of each: with a core taken, two threads cost at
// most a tenth more than one does in the same situation; on an idle machine they pay.
TEST_F(CpuThreads, pay_in_products_of_full_size_and_cost_little_with_a_core_taken) {
  struct Product {
    int64_t rows, inputs, outputs;
    int calls;
  };
  constexpr auto kForm = cpu::Form::bf16;
  const cpu::SimdKernels& isa = cpu::isa_for("", kForm);
  const int64_t speed = cpu::macs_per_ns(isa, kForm);
  cpu::ThreadPool one(1), two(2);
  for (const Product& p :
       {Product{785, 2048, 8192, 4}, {768, 1152, 4304, 6}, {51, 1024, 8192, 50}}) {
    std::vector<float> matrix(static_cast<size_t>(p.inputs * p.outputs)),
        x(static_cast<size_t>(p.rows * p.inputs)), y(static_cast<size_t>(p.rows * p.outputs));
    normal_noise(1, 0, matrix);
    normal_noise(2, 0, x);
    const auto weight = cpu::pack_weight(
        {.name = "w", .matrices = {host_tensor("w", {p.outputs, p.inputs}, matrix)}}, kForm, two);
    std::array<cpu::Products, 2> products{{{isa, one, speed}, {isa, two, speed}}};
    for (const int taken : {0, hardware_threads() - 1}) {
      const Takers takers(taken);
      std::array<Times, 2> times;
      for (int turn = 0; turn < 21; ++turn)
        for (size_t i = 0; i < 2; ++i) {
          const auto begin = Clock::now();
          for (int call = 0; call < p.calls; ++call)
            products[i].product(x.data(), p.rows, *weight, {.y = y.data(), .columns = p.outputs});
          times[i].ms.push_back(Ms(Clock::now() - begin).count() / p.calls);
        }
      expect_at_most(taken > 0 ? 1.1 : 0.9,
                     fmt::format("[{}, {}] x {}, {} taken", p.rows, p.inputs, p.outputs, taken),
                     times);
    }
  }
}

// Nor is any limit understated that results are compared with.
TEST(CpuLimits, are_not_below_the_best_product) {
  for (const Precision precision : {Precision::f32, Precision::bf16, Precision::int8})
    for (const cpu::IsaSpeed& speed : cpu::isa_speeds(static_cast<cpu::Form>(precision))) {
      double peak = 0;  // others on the machine can only lower it
      for (int attempt = 0; attempt < 10 && speed.gflops > 1.02 * peak; ++attempt)
        peak = std::max(peak,
                        cpu_peak({.threads = 1, .precision = precision, .isa = speed.isa->name}));
      fmt::print("{} {}: product {:.0f}, limit {:.0f} GFLOP/s\n", speed.isa->name, name(precision),
                 speed.gflops, peak);
      EXPECT_LE(speed.gflops, 1.02 * peak) << speed.isa->name << " " << name(precision);
    }
}

}  // namespace
}  // namespace tendon
