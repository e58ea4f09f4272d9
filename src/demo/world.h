// A table with coloured objects and a gripper above it: the world in which the demo policies are
// trained and judged. Deterministic: the same seed and actions give the same bytes everywhere.
//
// Lengths are in sides of the square table; x runs to the right, y down, as the top camera sees it.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tendon::demo {

enum class Verb { reach, push };
enum class Colour { red, green, blue, yellow, magenta, cyan };
enum class Shape { disc, square, triangle };
enum class Edge { left, right, top, bottom };
inline constexpr int kColours = 6, kShapes = 3, kEdges = 4;

std::string_view name(Verb verb);
std::string_view name(Colour colour);
std::string_view name(Shape shape);
std::string_view name(Edge edge);

struct Point {
  double x = 0, y = 0;
  friend Point operator+(Point a, Point b) { return {a.x + b.x, a.y + b.y}; }
  friend Point operator-(Point a, Point b) { return {a.x - b.x, a.y - b.y}; }
  friend Point operator*(double s, Point p) { return {s * p.x, s * p.y}; }
};
double dot(Point a, Point b);
double length(Point p);
Point limited(Point p, double longest);  // not longer than that

struct Kind {
  Colour colour = Colour::red;
  Shape shape = Shape::disc;
  friend bool operator==(const Kind&, const Kind&) = default;
};

// Pairs that no training picture shows: red triangle, green disc, blue square, yellow triangle.
bool held_out(Kind kind);

// An object. For contact all shapes are discs of kObjectRadius.
struct Object {
  Kind kind;
  Point at;
};

// Above 0.5 the gripper is open and hovers above the objects; below, it is closed and down: it
// pushes what it meets.
struct Gripper {
  Point at;
  double opening = 1;  // 0 closed, 1 open
  bool down() const { return opening < 0.5; }
};

struct Task {
  Verb verb = Verb::reach;
  Kind target;
  Edge edge = Edge::left;  // push only

  std::string prompt() const;  // "reach the red disc", "push the blue square to the left edge"
  friend bool operator==(const Task&, const Task&) = default;
};

// Reads what Task::prompt() writes, in any case and spacing. Fault::usage for other words, naming
// those that are known.
Task parse_task(std::string_view prompt);

// Velocities: x and y in table sides per second, opening per second.
using Action = std::array<double, 3>;

inline constexpr double kStep = 0.1;  // seconds
inline constexpr double kTopSpeed = 0.5, kTopOpeningSpeed = 4;
inline constexpr double kObjectRadius = 0.085, kGripperRadius = 0.03;
inline constexpr double kAtEdge = 0.04;  // object to edge, when it has been pushed there
inline constexpr int kReachSteps = 40, kPushSteps = 80;  // an episode's limits

Point direction(Edge edge);          // of length 1
double to_edge(Point p, Edge edge);  // from an object at `p`

struct World {
  std::vector<Object> objects;
  Gripper gripper;

  // Moves the gripper for kStep, and what it pushes. Actions beyond the top speeds are clipped.
  void step(const Action& action);
  const Object* find(Kind kind) const;
  std::array<double, 3> state() const { return {gripper.at.x, gripper.at.y, gripper.opening}; }
};

// Reach: the gripper has closed around the object. Push: the object lies at the edge.
bool solved(const World& world, const Task& task);

// SplitMix64: the same numbers in every standard library.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits();
  double uniform(double low, double high);  // [low, high)
  int below(int count);                     // 0 .. count - 1

 private:
  uint64_t state_;
};

enum class Pairs { seen, held_out };

struct Episode {
  World world;
  Task task;
  int steps_max() const { return task.verb == Verb::reach ? kReachSteps : kPushSteps; }
};

// Three objects of different kinds, of which one is the target; a target of Pairs::held_out lies
// among objects of seen pairs. `task`: what to do instead of drawing it.
Episode new_episode(Random& random, Verb verb, Pairs pairs);
Episode new_episode(Random& random, const Task& task);

// What is drawn for an episode of a judgement: the same for every policy.
struct Trial {
  uint64_t seed = 0;
  Verb verb = Verb::reach;
  Pairs pairs = Pairs::seen;
  std::optional<Task> task;  // instead of drawing it

  Episode episode() const;
};

// Reach and push in turn; `count` trials from `seed` on, in the kinds that are wanted.
std::vector<Trial> trials(int count, uint64_t seed, const std::vector<Verb>& verbs,
                          const std::vector<Pairs>& pairs);

// "reach", "push", "reach, unseen pair", "push, unseen pair"
std::string kind_of(const Trial& trial);

// A task that names another object of `episode` than its own: what a policy does that reads only
// half of the prompt.
Task other_task(const Episode& episode);

}  // namespace tendon::demo
