// labels: server
// Chunks replace each other without a jump: every action that is popped is the one that was planned
// for that moment.
#include <gtest/gtest.h>

#include <limits>
#include <thread>

#include "tendon/client.h"
#include "test_files.h"

namespace tendon {
namespace {

// Row r of the chunk for an observation after `observed` actions says observed + r, in both dims.
RemoteActions chunk(int64_t observed, int64_t horizon, double round_trip_ms = 0) {
  RemoteActions actions{{.rows = horizon, .dim = 2}};
  actions.round_trip_ms = round_trip_ms;
  for (int64_t row = 0; row < horizon; ++row)
    actions.values.insert(actions.values.end(), 2, static_cast<double>(observed + row));
  return actions;
}

double pop_one(ActionQueue& queue) {
  const auto action = queue.pop();
  EXPECT_TRUE(action.has_value());
  if (!action) return -1;
  EXPECT_EQ(action->size(), 2);
  return action->at(1);
}

TEST(ActionQueue, gives_the_rows_in_turn_and_then_nothing) {
  ActionQueue queue;
  EXPECT_FALSE(queue.pop().has_value());
  EXPECT_EQ(queue.push(chunk(0, 3), queue.mark()), 3);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(pop_one(queue), i);
  EXPECT_EQ(queue.size(), 0);
  for (int i = 0; i < 5; ++i) EXPECT_FALSE(queue.pop().has_value());
  EXPECT_EQ(queue.mark().consumed, 3);
}

TEST(ActionQueue, a_chunk_begins_where_the_robot_has_come_to_since_its_observation) {
  ActionQueue queue;
  queue.push(chunk(0, 10), queue.mark());
  for (int i = 0; i < 4; ++i) pop_one(queue);
  const auto mark = queue.mark();
  for (int i = 0; i < 3; ++i) pop_one(queue);
  EXPECT_EQ(queue.consumed_since(mark), 3);
  EXPECT_EQ(queue.push(chunk(4, 10), mark), 7);
  EXPECT_EQ(pop_one(queue), 7);
}

// The robot held: no action was executed, so none is dropped.
TEST(ActionQueue, time_without_actions_drops_nothing) {
  ActionQueue queue;
  const auto mark = queue.mark();
  for (int i = 0; i < 20; ++i) EXPECT_FALSE(queue.pop().has_value());
  EXPECT_EQ(queue.push(chunk(0, 5), mark), 5);
  EXPECT_EQ(pop_one(queue), 0);
}

TEST(ActionQueue, a_chunk_that_comes_after_its_time_leaves_nothing_to_do) {
  ActionQueue queue;
  queue.push(chunk(0, 10), queue.mark());
  const auto mark = queue.mark();
  for (int i = 0; i < 6; ++i) pop_one(queue);
  EXPECT_EQ(queue.push(chunk(0, 4), mark), 0);
  EXPECT_EQ(queue.size(), 0);
  EXPECT_FALSE(queue.pop().has_value());
  EXPECT_EQ(queue.left_over().rows, 0);
}

TEST(ActionQueue, a_chunk_of_an_older_observation_is_ignored) {
  ActionQueue queue;
  queue.push(chunk(0, 10), queue.mark());
  const auto old = queue.mark();
  for (int i = 0; i < 2; ++i) pop_one(queue);
  queue.push(chunk(2, 10), queue.mark());
  RemoteActions stale = chunk(0, 10);
  stale.values.assign(20, -99);
  EXPECT_EQ(queue.push(stale, old), 10);
  EXPECT_EQ(pop_one(queue), 2);
}

TEST(ActionQueue, clearing_voids_requests_under_way) {
  ActionQueue queue;
  const auto before = queue.mark();
  queue.push(chunk(0, 5), before);
  queue.clear();
  EXPECT_FALSE(queue.pop().has_value());
  EXPECT_EQ(queue.push(chunk(0, 5), before), 0);
  EXPECT_FALSE(queue.pop().has_value());
  EXPECT_EQ(queue.left_over(before).rows, 0);
  EXPECT_EQ(queue.push(chunk(0, 5), queue.mark()), 5);
  EXPECT_EQ(pop_one(queue), 0);
}

TEST(ActionQueue, at_most_rows_max_of_a_chunk_are_executed) {
  ActionQueue queue(3);
  EXPECT_EQ(queue.push(chunk(0, 10), queue.mark()), 3);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(pop_one(queue), i);
  EXPECT_FALSE(queue.pop().has_value());
  EXPECT_EQ(queue.left_over().rows, 7);  // still a plan to be guided by
  EXPECT_EQ(queue.push(chunk(3, 2), queue.mark()), 2);
}

TEST(ActionQueue, the_left_over_is_as_of_the_observation) {
  ActionQueue queue;
  EXPECT_EQ(queue.left_over().rows, 0);
  queue.push(chunk(0, 8), queue.mark());
  for (int i = 0; i < 3; ++i) pop_one(queue);
  const auto mark = queue.mark();
  for (int i = 0; i < 2; ++i) pop_one(queue);
  const ActionChunk then = queue.left_over(mark), now = queue.left_over();
  EXPECT_EQ(then.rows, 5);
  EXPECT_EQ(then.dim, 2);
  EXPECT_EQ(then.values, (std::vector<double>{3, 3, 4, 4, 5, 5, 6, 6, 7, 7}));
  EXPECT_EQ(now.rows, 3);
  EXPECT_EQ(now.values, (std::vector<double>{5, 5, 6, 6, 7, 7}));
}

TEST(ActionQueue, the_delay_is_that_of_the_slowest_request_but_the_first) {
  ActionQueue queue;
  EXPECT_EQ(queue.delay_steps(50), 0);
  queue.push(chunk(0, 5, 5000), queue.mark());
  EXPECT_EQ(queue.delay_steps(50), 0);
  queue.push(chunk(0, 5, 61), queue.mark());
  EXPECT_EQ(queue.delay_steps(50), 4);  // 3.05
  queue.push(chunk(0, 5, 20), queue.mark());
  EXPECT_EQ(queue.delay_steps(50), 4);
  queue.push(chunk(0, 5, 100), queue.mark());
  EXPECT_EQ(queue.delay_steps(50), 5);  // exactly
  for (const double hz : {0.0, -1.0, std::numeric_limits<double>::quiet_NaN()})
    EXPECT_EQ(refused([&] { queue.delay_steps(hz); }).fault(), Fault::usage);
}

TEST(ActionQueue, guidance_is_what_a_server_accepts) {
  ActionQueue queue;
  EXPECT_EQ(queue.guidance(50, queue.mark()).prev_chunk.rows, 0);
  EXPECT_FALSE(queue.guidance(50, queue.mark()).inference_delay.has_value());
  queue.push(chunk(0, 8, 0), queue.mark());
  queue.push(chunk(0, 8, 45), queue.mark());
  for (int i = 0; i < 3; ++i) pop_one(queue);
  const auto mark = queue.mark();
  pop_one(queue);
  const RemoteOptions options = queue.guidance(50, mark);
  EXPECT_EQ(options.prev_chunk.rows, 5);
  EXPECT_EQ(options.prev_chunk.values[0], 3);
  EXPECT_EQ(options.inference_delay, 3);
  // Never more than there are rows.
  EXPECT_EQ(queue.guidance(1000, mark).inference_delay, 5);
}

TEST(ActionQueue, a_chunk_that_is_none_is_refused) {
  ActionQueue queue;
  RemoteActions torn = chunk(0, 4);
  torn.values.pop_back();
  EXPECT_EQ(refused([&] { queue.push(torn, {}); }).fault(), Fault::usage);
  EXPECT_EQ(refused([&] { queue.push(chunk(0, 4), {.consumed = 1}); }).fault(), Fault::usage);
}

// One thread pops as fast as it can while another observes, waits and pushes. Whatever the order,
// the k-th action is the one that was planned for moment k.
TEST(ActionQueue, threads_never_see_a_jump) {
  constexpr int64_t kActions = 5000;
  ActionQueue queue;
  std::thread network([&] {
    while (queue.mark().consumed < kActions) {
      const auto mark = queue.mark();
      std::this_thread::yield();
      queue.push(chunk(mark.consumed, 20, 1), mark);
    }
  });
  int64_t popped = 0, jumps = 0;
  while (popped < kActions) {
    if (const auto action = queue.pop())
      jumps += (*action)[0] != static_cast<double>(popped++);
    else
      std::this_thread::yield();
  }
  network.join();
  EXPECT_EQ(jumps, 0);
  EXPECT_EQ(queue.mark().consumed, kActions);
}

}  // namespace
}  // namespace tendon
