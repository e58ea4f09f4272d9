// labels: unit
// The worker process with a stand-in for the library: messages, refusals, deaths, deadlines.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "test_files.h"
#include "ttnn_board.h"
#include "ttnn_processes.h"

namespace tendon::tt {
namespace {

constexpr Dims kDims{1, 2, 33, 40};

// Opens the stand-in in tests/data/ttnn/stub; variables of a real installation are switched off.
WorkerOptions stub_options(const std::vector<std::string>& more = {}) {
  WorkerOptions options{.python = "python3", .open_deadline_s = 60, .call_deadline_s = 60};
  options.environment = {"PYTHONPATH=" + test_data("ttnn/stub").string(), "TT_METAL_SIMULATOR=",
                         "TT_METAL_MOCK_CLUSTER_DESC_PATH=", "TT_METAL_SLOW_DISPATCH_MODE="};
  options.environment.insert(options.environment.end(), more.begin(), more.end());
  return options;
}

std::string refusal_to_open(const WorkerOptions& options) {
  const Error e = refused([&] { open_worker(options); });
  EXPECT_EQ(e.fault(), Fault::backend);
  EXPECT_TRUE(below(getpid()).empty());
  return e.what();
}

// A device with one tensor, and whatever is still running when it is gone.
struct TtnnWorker : testing::Test {
  Board open(const std::vector<std::string>& more = {}, double call_deadline_s = 60) {
    WorkerOptions options = stub_options(more);
    options.call_deadline_s = call_deadline_s;
    Board board(open_worker(options));
    x = board.put(kDims, 1.5F);
    const bool simulated = std::ranges::any_of(
        more, [](const std::string& v) { return v.starts_with("TT_METAL_SIMULATOR="); });
    family = await_running(getpid(), simulated ? "sleep" : "python3");
    EXPECT_GE(family.size(), simulated ? 3U : 2U);
    return board;
  }
  std::string lose(Board& board, Call call, pid_t killed = 0) {
    return tt::lose(board, {.call = call, .inputs = {x}}, family, [=] {
      if (killed > 0) kill(killed, SIGKILL);
    });
  }
  void TearDown() override { EXPECT_TRUE(below(getpid()).empty()); }

  TensorId x = 0;
  std::vector<Running> family;
};

TEST_F(TtnnWorker, tensors_travel_as_they_are) {
  Board board = open();
  const Caps& caps = board.api().caps();
  EXPECT_EQ(caps.description, "Tenstorrent hardware");
  EXPECT_EQ(caps.grid_x * caps.grid_y, 4);
  EXPECT_TRUE(caps.fast_dispatch && !caps.simulated);
  const std::vector<float> values = noise(kDims, 1);
  for (const Spec& spec : {Spec{kDims}, Spec{kDims, Format::bfp8},
                           Spec{kDims, Format::bf16, Layout::row_major, Memory::l1}}) {
    SCOPED_TRACE(to_string(spec));
    const Output sent = board.api().upload(spec, values);
    EXPECT_EQ(sent.spec, spec) << to_string(sent.spec);
    EXPECT_EQ(board.get(sent), values);
  }
  const Spec ids{{1, 1, 1, 3}, Format::u32, Layout::row_major};
  EXPECT_EQ(board.get({board.put(ids, {7, 257151, 0}), ids}), (std::vector<float>{7, 257151, 0}));
}

TEST_F(TtnnWorker, calls_take_and_give_tensors) {
  Board board = open();
  const TensorId y = board.put(kDims, -.25F);
  const Output sum = board.run({.call = Call::add, .inputs = {x, y}, .memory = Memory::l1});
  EXPECT_EQ(sum.spec, (Spec{kDims, Format::bf16, Layout::tile, Memory::l1}));
  EXPECT_EQ(board.get(sum), std::vector<float>(size_of(kDims), 1.25F));
  const Output flat = board.run({.call = Call::reshape, .inputs = {sum.id}, .dims{1, 1, 66, 40}});
  EXPECT_EQ(flat.spec.dims, (Dims{1, 1, 66, 40}));
  EXPECT_TRUE(board.run_all({.call = Call::copy, .inputs = {x, y}}).empty());
  EXPECT_EQ(board.get({y, {kDims}}), std::vector<float>(size_of(kDims), 1.5F));
  board.api().release(y);
  EXPECT_SAYS(board.refusal({.call = Call::add, .inputs = {x, y}}), "no tensor has the number");
  std::vector<float> few(3);
  EXPECT_SAYS(refused([&] { board.api().download(x, few); }).what(), "has 2640 values, not 3");
  for (int i = 0; i < 10'000; ++i) board.api().release(1'000'000);
  EXPECT_EQ(board.get({x, {kDims}})[0], 1.5F);
}

TEST_F(TtnnWorker, what_the_library_refuses_is_an_answer) {
  Board board = open();
  EXPECT_EQ(board.refusal({.call = Call::typecast, .inputs = {x}}),
            "[ttnn] typecast: TT_THROW: Invalid format");
  EXPECT_SAYS(
      board.refusal({.call = Call::multiply, .inputs = {x, x}}, Fault::memory),
      "[ttnn] multiply: TT_FATAL: Out of Memory: Not enough space to allocate 2097152 B L1");
  EXPECT_SAYS(refused([&] { board.api().upload({kDims}, {}); }).what(),
              "0 values for [1, 2, 33, 40], expected 2640");
  EXPECT_EQ(board.get(board.run({.call = Call::add, .inputs = {x, x}}))[0], 3.0F);
}

TEST_F(TtnnWorker, traces_need_fast_dispatch) {
  Board fast = open();
  TtApi& api = fast.api();
  EXPECT_EQ(refused([&] { api.end_trace(); }).fault(), Fault::internal);
  api.begin_trace();
  const TensorId trace = api.end_trace();
  api.replay_trace(trace);
  api.release(trace);
  EXPECT_EQ(refused([&] { api.replay_trace(trace); }).fault(), Fault::internal);
  Board slow = open({"TT_METAL_SLOW_DISPATCH_MODE=1"});
  EXPECT_FALSE(slow.api().caps().fast_dispatch);
  const Error e = refused([&] { slow.api().begin_trace(); });
  EXPECT_EQ(e.fault(), Fault::backend);
  EXPECT_SAYS(e.what(), "fast dispatch");
}

TEST_F(TtnnWorker, a_crash_in_the_library_is_an_error_of_the_call) {
  Board board = open();
  const std::string error = lose(board, Call::pad);
  EXPECT_SAYS(error, "the worker ended during pad (signal 11 (Segmentation fault))");
  EXPECT_SAYS(error, "last words");
  EXPECT_EQ(error.find("DEADLOCK"), error.npos);
}

TEST_F(TtnnWorker, an_exit_of_the_library_is_an_error_of_the_call) {
  Board board = open();
  EXPECT_SAYS(lose(board, Call::concat), "(exit code 3)");
}

TEST_F(TtnnWorker, a_worker_killed_in_the_middle_of_a_call_is_a_lost_device) {
  Board board = open({"TT_METAL_SIMULATOR=x"});
  EXPECT_SAYS(lose(board, Call::slice, family[1].id), "signal 9 (Killed)");
}

TEST_F(TtnnWorker, the_end_of_the_simulator_ends_the_call) {
  Board board = open({"TT_METAL_SIMULATOR=x"});
  const Running simulator = find_running(family, "sleep");
  ASSERT_GT(simulator.id, 0);
  EXPECT_SAYS(lose(board, Call::slice, simulator.id), "the simulator (process");
}

TEST_F(TtnnWorker, a_call_past_its_deadline_ends_the_worker_and_the_simulator) {
  Board board = open({"TT_METAL_SIMULATOR=x"}, 1);
  EXPECT_SAYS(lose(board, Call::slice), "slice took longer than 1 s");
}

TEST_F(TtnnWorker, nothing_runs_on_when_tendon_is_killed) {
  expect_all_end_with_tendon(stub_options({"TT_METAL_SIMULATOR=x"}), "sleep");
}

TEST_F(TtnnWorker, nothing_runs_on_when_the_keeper_is_killed) {
  std::filesystem::path folder;
  {
    Board board = open({"TMPDIR=/no/such"});
    folder = std::filesystem::read_symlink(fmt::format("/proc/{}/cwd", family[1].id));
    EXPECT_EQ(folder.parent_path(), "/tmp") << "a variable decides where it is";
    kill(family[0].id, SIGKILL);
    EXPECT_TRUE(all_end(family));
    EXPECT_EQ(refused([&] { board.api().begin_trace(); }).fault(), Fault::backend);
  }
  EXPECT_FALSE(std::filesystem::exists(folder));  // tendon removes the worker's folder
}

TEST_F(TtnnWorker, tells_what_the_library_says_of_the_device) {
  WorkerOptions second = stub_options();
  second.device = 1;
  {
    Board board(open_worker(second));
    const Caps& caps = board.api().caps();
    EXPECT_EQ(caps.arch, "wormhole_b0");
    EXPECT_EQ(caps.version, "0.81.1");
    EXPECT_EQ(caps.dram_bytes, 12LL << 30);
    const DeviceMemory memory = board.api().memory();
    EXPECT_EQ(memory.dram, 12 * (3 << 20));
    EXPECT_EQ(memory.l1, 3 << 20);
    EXPECT_EQ(memory.l1_size, 1'499'136);
    EXPECT_FALSE(memory.dram_peak || memory.l1_peak);
  }
  second.environment.push_back("STUB_OPEN=fail");
  EXPECT_SAYS(refusal_to_open(second), "cannot open device 1: TT_FATAL: No chip with id 1");
}

TEST_F(TtnnWorker, a_missing_piece_is_named_when_it_opens) {
  WorkerOptions wrong = stub_options();
  wrong.python = "/nonexistent/python";
  EXPECT_SAYS(refusal_to_open(wrong), "'/nonexistent/python' is not a Python interpreter (No such");
  wrong.python = "/bin/true";
  EXPECT_SAYS(refusal_to_open(wrong), "'/bin/true' is not a Python interpreter");
  WorkerOptions bare = stub_options();
  bare.environment[0] = "PYTHONPATH=";
  EXPECT_SAYS(refusal_to_open(bare), "has no ttnn; scripts/ttnn-sim makes");
  EXPECT_SAYS(refusal_to_open(stub_options({"STUB_OPEN=fail"})),
              "ttnn 0.81.1 cannot open device 0: TT_FATAL: No chip with id 0");
  WorkerOptions slow = stub_options({"STUB_OPEN=hang"});
  slow.open_deadline_s = 1;
  EXPECT_SAYS(refusal_to_open(slow), "was not open after 1 s");
  EXPECT_SAYS(refusal_to_open(stub_options({"STUB_LACKS=get_memory_view"})),
              "lacks get_memory_view");
  EXPECT_THROW(simulator_options("/nonexistent"), Error);
}

TEST_F(TtnnWorker, another_version_of_the_library_opens_if_it_has_everything) {
  EXPECT_SAYS(
      refusal_to_open(stub_options({"STUB_VERSION=0.99", "STUB_LACKS=add slice"})),
      "ttnn 0.99 of python3 lacks slice, add; install a version that tendon knows (0.81.1)");
  EXPECT_SAYS(open({"STUB_VERSION=0.99"}).api().caps().description,
              "ttnn 0.99 is not a version that tendon was tried with");
}

}  // namespace
}  // namespace tendon::tt
