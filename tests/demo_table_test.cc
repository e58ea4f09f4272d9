// labels: unit
// The demo's table, its teacher, its pictures and the loop around a policy.
#include <algorithm>
#include <cmath>
#include <set>

#include "../tools/train_demo/teacher.h"
#include "demo/closed_loop.h"
#include "demo/picture.h"
#include "test_files.h"

namespace tendon::demo {
namespace {

constexpr Kind kRedDisc = {Colour::red, Shape::disc}, kCyanSquare = {Colour::cyan, Shape::square};

World world_with(std::vector<Object> objects, Point gripper, double opening) {
  World world;
  world.objects = std::move(objects);
  world.gripper = {gripper, opening};
  return world;
}

std::array<int, 3> pixel(const Image& image, int column, int row) {
  const uint8_t* p = image.rgb.data() + 3 * (row * image.width + column);
  return {p[0], p[1], p[2]};
}

// Chunks of ten actions that go to the right at a speed of their own: 0.01 for the first, 0.02 ...
struct Scripted {
  int calls = 0;
  std::vector<std::optional<PreviousChunk>> left;
  std::vector<Observation> seen;

  Policy policy() {
    return [this](const Observation& now, const auto& left_over, uint64_t) {
      left.push_back(left_over);
      seen.push_back(now);
      ++calls;
      std::vector<double> chunk;
      for (int row = 0; row < 10; ++row) {
        chunk.push_back(0.01 * calls);
        chunk.push_back(0.001 * row);
        chunk.push_back(0);
      }
      return chunk;
    };
  }
};

Episode hopeless() {
  return {.world = world_with({{kRedDisc, {0.9, 0.9}}}, {0.1, 0.1}, 1),
          .task = {.verb = Verb::reach, .target = kRedDisc}};
}

}  // namespace

TEST(Table, the_same_seed_gives_the_same_episode) {
  for (const Trial& trial :
       trials(40, 7, {Verb::reach, Verb::push}, {Pairs::seen, Pairs::held_out})) {
    const Episode a = trial.episode(), b = trial.episode();
    EXPECT_EQ(a.task, b.task);
    EXPECT_EQ(draw(a.world, View::top).rgb, draw(b.world, View::top).rgb);
    EXPECT_EQ(a.task.verb, trial.verb);
    EXPECT_EQ(held_out(a.task.target), trial.pairs == Pairs::held_out);
    ASSERT_NE(a.world.find(a.task.target), nullptr);
    for (const Object& object : a.world.objects)
      EXPECT_TRUE(object.kind == a.task.target || !held_out(object.kind));
  }
  EXPECT_FALSE(Trial{.seed = 1}.episode().world.gripper.at.x ==
               Trial{.seed = 2}.episode().world.gripper.at.x);
}

TEST(Table, the_target_is_not_always_the_first_object) {
  std::set<size_t> places;
  for (const Trial& trial : trials(60, 0, {Verb::reach}, {Pairs::seen})) {
    const Episode e = trial.episode();
    places.insert(static_cast<size_t>(e.world.find(e.task.target) - e.world.objects.data()));
  }
  EXPECT_EQ(places.size(), 3u);
}

TEST(Table, the_teacher_solves_every_task) {
  for (const Trial& trial :
       trials(800, 100, {Verb::reach, Verb::push}, {Pairs::seen, Pairs::held_out})) {
    const Episode e = trial.episode();
    World world = e.world;
    int steps = 0;
    while (!solved(world, e.task) && steps < e.steps_max()) {
      world.step(expert(world, e.task));
      ++steps;
    }
    EXPECT_TRUE(solved(world, e.task)) << e.task.prompt() << ", seed " << trial.seed;
    EXPECT_FALSE(solved(e.world, e.task));
  }
}

TEST(Table, a_closed_gripper_pushes_what_it_meets_and_an_open_one_does_not) {
  for (const double opening : {0.0, 1.0}) {
    World world =
        world_with({{kRedDisc, {0.5, 0.5}}, {kCyanSquare, {0.5, 0.8}}}, {0.3, 0.5}, opening);
    for (int i = 0; i < 4; ++i) world.step({0.5, 0, 0});
    EXPECT_DOUBLE_EQ(world.gripper.at.x, 0.5);
    const double pushed = 0.5 + kObjectRadius + kGripperRadius;
    EXPECT_NEAR(world.objects[0].at.x, opening < 0.5 ? pushed : 0.5, 1e-6);
    EXPECT_DOUBLE_EQ(world.objects[0].at.y, 0.5);
    EXPECT_DOUBLE_EQ(world.objects[1].at.x, 0.5);
  }
}

TEST(Table, coming_down_on_an_object_does_not_push_it) {
  World world = world_with({{kRedDisc, {0.5, 0.5}}}, {0.49, 0.5}, 0.1);
  world.step({0.5, 0, 0});
  EXPECT_DOUBLE_EQ(world.objects[0].at.x, 0.5);
}

TEST(Table, nothing_leaves_it_and_speeds_are_clipped) {
  World world = world_with({{kRedDisc, {0.9, 0.5}}}, {0.7, 0.5}, 0);
  world.step({100, 0, 100});
  EXPECT_NEAR(world.gripper.at.x, 0.75, 1e-12);
  EXPECT_NEAR(world.gripper.opening, 0.4, 1e-12);
  for (int i = 0; i < 20; ++i) world.step({0.5, 0, -1});
  EXPECT_DOUBLE_EQ(world.objects[0].at.x, 1 - kObjectRadius);
  EXPECT_LE(world.gripper.at.x, 1);
}

TEST(Table, solved_means_closed_at_the_target_or_pushed_to_its_edge) {
  const Task reach = {.verb = Verb::reach, .target = kRedDisc};
  const std::vector<Object> there = {{kRedDisc, {0.5, 0.5}}};
  EXPECT_TRUE(solved(world_with(there, {0.52, 0.5}, 0.2), reach));
  EXPECT_FALSE(solved(world_with(there, {0.52, 0.5}, 0.9), reach));
  EXPECT_FALSE(solved(world_with(there, {0.6, 0.5}, 0.2), reach));
  EXPECT_FALSE(solved(world_with({{kCyanSquare, {0.5, 0.5}}}, {0.5, 0.5}, 0), reach));
  const Task push = {.verb = Verb::push, .target = kRedDisc, .edge = Edge::top};
  EXPECT_TRUE(solved(world_with({{kRedDisc, {0.5, 0.1}}}, {0.9, 0.9}, 1), push));
  EXPECT_FALSE(solved(world_with({{kRedDisc, {0.5, 0.9}}}, {0.9, 0.9}, 1), push));
  EXPECT_FALSE(solved(world_with({{kRedDisc, {0.1, 0.5}}}, {0.9, 0.9}, 1), push));
}

TEST(Table, every_prompt_is_read_back) {
  int prompts = 0;
  for (int c = 0; c < kColours; ++c)
    for (int s = 0; s < kShapes; ++s) {
      Task task = {.target = {static_cast<Colour>(c), static_cast<Shape>(s)}};
      EXPECT_EQ(parse_task(task.prompt()), task);
      task.verb = Verb::push;
      for (int e = 0; e < kEdges; ++e, ++prompts) {
        task.edge = static_cast<Edge>(e);
        EXPECT_EQ(parse_task(task.prompt()), task);
      }
    }
  EXPECT_EQ(prompts, 72);
  EXPECT_EQ(parse_task("  Push the RED  disc, to the left edge! ").prompt(),
            "push the red disc to the left edge");
  for (const char* prompt : {"", "reach the mauve disc", "reach the red", "push the red disc"})
    EXPECT_TRUE(refuses(Fault::usage, "reach the COLOUR SHAPE", [&] { parse_task(prompt); }));
}

TEST(Table, pictures_show_colours_edges_and_the_gripper) {
  const World world =
      world_with({{kRedDisc, {0.25, 0.5}}, {kCyanSquare, {0.75, 0.5}}}, {0.5, 0.25}, 1);
  const Image top = draw(world, View::top);
  ASSERT_EQ(top.rgb.size(), static_cast<size_t>(3 * kImageSize * kImageSize));
  const auto at = [&](double x, double y) {
    return pixel(top, static_cast<int>((x + 0.05) / 1.1 * kImageSize),
                 static_cast<int>((y + 0.05) / 1.1 * kImageSize));
  };
  EXPECT_GT(at(0.25, 0.5)[0], 200);
  EXPECT_LT(at(0.25, 0.5)[2], 60);
  EXPECT_GT(at(0.75, 0.5)[2], 200);
  EXPECT_LT(pixel(top, 0, 0)[0], 20);  // the room
  EXPECT_EQ(at(0.5, 0.75), (std::array<int, 3>{64, 68, 76}));
  EXPECT_GT(pixel(draw(world, View::gripper), kImageSize / 2, kImageSize / 2)[0], 60);
  World moved = world;
  moved.gripper.at.x += 0.1;
  EXPECT_NE(draw(moved, View::gripper).rgb, draw(world, View::gripper).rgb);
  for (const double opening : {0.0, 0.8}) {  // closed: other fingers; half open: nearer ones
    moved = world;
    moved.gripper.opening = opening;
    EXPECT_NE(draw(moved, View::top).rgb, top.rgb);
  }
}

TEST(Loop, executes_rows_of_each_chunk) {
  Scripted scripted;
  const Record record = run_episode(hopeless(), scripted.policy(), {.rows = 4}, 1);
  EXPECT_FALSE(record.solved);
  EXPECT_EQ(record.steps(), kReachSteps);
  EXPECT_EQ(record.chunks, 10);
  EXPECT_EQ(scripted.calls, 10);
  EXPECT_EQ(record.actions[3], (Action{0.01, 0.003, 0}));
  EXPECT_EQ(record.actions[4], (Action{0.02, 0, 0}));
  EXPECT_FALSE(scripted.left[1]);
}

TEST(Loop, latency_skips_rows_whose_time_has_passed) {
  Scripted scripted;
  const Record record = run_episode(hopeless(), scripted.policy(), {.rows = 5, .delay = 2}, 1);
  EXPECT_EQ(record.actions[0], (Action{0, 0, 0}));  // nothing has arrived yet
  EXPECT_EQ(record.actions[1], (Action{0, 0, 0}));
  EXPECT_EQ(record.actions[2], (Action{0.01, 0.002, 0}));
  EXPECT_EQ(record.actions[6], (Action{0.01, 0.006, 0}));  // the old chunk while the new one comes
  EXPECT_EQ(record.actions[7], (Action{0.02, 0.002, 0}));
  EXPECT_NEAR(record.largest_jump, std::hypot(0.01, 0.005), 1e-12);
}

TEST(Loop, real_time_chunking_tells_what_is_left) {
  Scripted scripted;
  run_episode(hopeless(), scripted.policy(), {.rows = 5, .delay = 2, .guided = true}, 1);
  EXPECT_FALSE(scripted.left[0]);
  const PreviousChunk left = scripted.left[1].value();
  ASSERT_EQ(left.rows, 5);  // of ten, rows 2 to 4 were executed
  EXPECT_EQ(left.delay, 2);
  EXPECT_EQ(left.execution_horizon, 3);
  EXPECT_DOUBLE_EQ(left.actions[1], 0.005);
}

TEST(Loop, blanks_what_it_is_told_to_blank) {
  Scripted scripted;
  run_episode(hopeless(), scripted.policy(), {.prompt = "reach the sky", .blank_images = true}, 1);
  EXPECT_EQ(scripted.seen[0].prompt, "reach the sky");
  EXPECT_EQ(std::ranges::count(scripted.seen[0].images.at("top").rgb, 0), 3 * 63 * 63);
  EXPECT_EQ(scripted.seen[0].state, (std::vector<double>{0.1, 0.1, 1}));
  run_episode(hopeless(), scripted.policy(), {.zero_state = true}, 1);
  EXPECT_EQ(scripted.seen.back().state, (std::vector<double>{0, 0, 0}));
  EXPECT_EQ(scripted.seen.back().prompt, "reach the red disc");
}

TEST(Loop, refuses_chunks_that_are_too_short) {
  Scripted scripted;
  EXPECT_TRUE(refuses(
      Fault::input, "a chunk has 10 actions, but 2 of latency and 9 to execute were asked for",
      [&] { run_episode(hopeless(), scripted.policy(), {.rows = 9, .delay = 2}, 1); }));
}

TEST(Judging, intervals_are_wilsons) {
  const Rate rate = {.episodes = 200, .successes = 190};
  EXPECT_NEAR(rate.low(), 0.9104, 5e-4);
  EXPECT_NEAR(rate.high(), 0.9726, 5e-4);
  EXPECT_NEAR((Rate{.episodes = 10, .successes = 10}.high()), 1, 1e-12);
  EXPECT_GT((Rate{.episodes = 10, .successes = 0}.high()), 0.2);
  EXPECT_EQ(Rate{}.low(), 0);
}

TEST(Judging, the_other_task_names_another_object_on_the_table) {
  for (const Trial& trial : trials(20, 0, {Verb::push}, {Pairs::held_out})) {
    const Episode e = trial.episode();
    const Task other = other_task(e);
    EXPECT_FALSE(other.target == e.task.target);
    EXPECT_NE(e.world.find(other.target), nullptr);
    EXPECT_EQ(other.edge, e.task.edge);
  }
}

}  // namespace tendon::demo
