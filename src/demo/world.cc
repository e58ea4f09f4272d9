#include "demo/world.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <numbers>

#include "tensor/check.h"

namespace tendon::demo {
namespace {

constexpr std::array<std::string_view, kColours> kColourNames = {"red",    "green",   "blue",
                                                                 "yellow", "magenta", "cyan"};
constexpr std::array<std::string_view, kShapes> kShapeNames = {"disc", "square", "triangle"};
constexpr std::array<std::string_view, kEdges> kEdgeNames = {"left", "right", "top", "bottom"};

constexpr double kReached = 0.05;  // gripper to object's centre

// On the table, at least `margin` away from its edges.
Point clamped(Point p, double margin) {
  return {std::clamp(p.x, margin, 1 - margin), std::clamp(p.y, margin, 1 - margin)};
}

bool touching(Point gripper, Point object) {
  return length(gripper - object) < kObjectRadius + kGripperRadius;
}

// How far a disc at `object` must go along the unit vector `way` to leave the gripper.
double way_out(Point gripper, Point object, Point way) {
  const Point off = object - gripper;
  const double along = dot(off, way), reach = kObjectRadius + kGripperRadius;
  const double side2 = std::max(0.0, dot(off, off) - along * along);
  return std::max(0.0, std::sqrt(std::max(0.0, reach * reach - side2)) - along) + 1e-9;
}

Point place(Random& random, double low, double high) {
  const double x = random.uniform(low, high);
  return {x, random.uniform(low, high)};
}

Kind any_kind(Random& random, Pairs pairs) {
  for (;;) {
    const auto colour = static_cast<Colour>(random.below(kColours));
    const Kind kind = {colour, static_cast<Shape>(random.below(kShapes))};
    if (held_out(kind) == (pairs == Pairs::held_out)) return kind;
  }
}

// An object of a seen pair that shares colour or shape with the target in half of the cases.
Kind distractor(Random& random, Kind target) {
  const int shared = random.below(4);  // 0: colour, 1: shape
  for (;;) {
    Kind kind = any_kind(random, Pairs::seen);
    if (shared == 0) kind.colour = target.colour;
    if (shared == 1) kind.shape = target.shape;
    if (!held_out(kind) && kind != target) return kind;
  }
}

bool apart(const std::vector<Object>& objects, double least) {
  for (size_t i = 0; i < objects.size(); ++i)
    for (size_t j = 0; j < i; ++j)
      if (length(objects[i].at - objects[j].at) < least) return false;
  return true;
}

// Nothing lies in the way of the push, and there is a way.
bool free_lane(const World& world, const Task& task) {
  const Object& target = world.objects.front();
  const Point u = direction(task.edge);
  if (to_edge(target.at, task.edge) < 0.15) return false;
  const Point behind = target.at - 0.16 * u;
  if (behind.x < 0 || behind.x > 1 || behind.y < 0 || behind.y > 1) return false;
  for (size_t i = 1; i < world.objects.size(); ++i) {
    const Point off = world.objects[i].at - target.at;
    const double along = dot(off, u), side = std::abs(off.x * -u.y + off.y * u.x);
    if (along > -0.3 && side < 2 * kObjectRadius + 0.01) return false;
  }
  return true;
}

}  // namespace

double dot(Point a, Point b) { return a.x * b.x + a.y * b.y; }
double length(Point p) { return std::hypot(p.x, p.y); }

Point limited(Point p, double longest) {
  const double l = length(p);
  return l <= longest ? p : Point{p.x * longest / l, p.y * longest / l};
}

Point direction(Edge edge) {
  constexpr std::array<Point, kEdges> kDirections = {{{-1, 0}, {1, 0}, {0, -1}, {0, 1}}};
  return kDirections[static_cast<size_t>(edge)];
}

double to_edge(Point p, Edge edge) {
  const double end = edge == Edge::right || edge == Edge::bottom ? 1 : 0;
  return end - dot(p, direction(edge)) - kObjectRadius;
}

std::string_view name(Verb verb) { return verb == Verb::reach ? "reach" : "push"; }
std::string_view name(Colour colour) { return kColourNames[static_cast<size_t>(colour)]; }
std::string_view name(Shape shape) { return kShapeNames[static_cast<size_t>(shape)]; }
std::string_view name(Edge edge) { return kEdgeNames[static_cast<size_t>(edge)]; }

bool held_out(Kind kind) {
  return kind == Kind{Colour::red, Shape::triangle} || kind == Kind{Colour::green, Shape::disc} ||
         kind == Kind{Colour::blue, Shape::square} || kind == Kind{Colour::yellow, Shape::triangle};
}

std::string Task::prompt() const {
  if (verb == Verb::reach)
    return fmt::format("reach the {} {}", name(target.colour), name(target.shape));
  return fmt::format("push the {} {} to the {} edge", name(target.colour), name(target.shape),
                     name(edge));
}

void World::step(const Action& action) {
  const Point v = limited({action[0], action[1]}, kTopSpeed);
  const Point from = gripper.at;
  gripper.opening = std::clamp(
      gripper.opening + kStep * std::clamp(action[2], -kTopOpeningSpeed, kTopOpeningSpeed), 0.0,
      1.0);
  gripper.at = clamped(from + kStep * v, 0);
  const Point moved = gripper.at - from;
  const double way = length(moved);
  if (!gripper.down() || way < 1e-12) return;
  for (Object& object : objects) {
    // A gripper that came down on top of an object stays on top of it.
    if (touching(from, object.at) || !touching(gripper.at, object.at)) continue;
    const Point unit = {moved.x / way, moved.y / way};
    const double out = way_out(gripper.at, object.at, unit);
    object.at = clamped(object.at + out * unit, kObjectRadius);
  }
}

const Object* World::find(Kind kind) const {
  for (const Object& object : objects)
    if (object.kind == kind) return &object;
  return nullptr;
}

bool solved(const World& world, const Task& task) {
  const Object* target = world.find(task.target);
  if (target == nullptr) return false;
  if (task.verb == Verb::push) return to_edge(target->at, task.edge) < kAtEdge;
  return length(world.gripper.at - target->at) < kReached && world.gripper.down();
}

uint64_t Random::bits() {
  uint64_t z = state_ += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

double Random::uniform(double low, double high) {
  return low + (high - low) * static_cast<double>(bits() >> 11) * 0x1p-53;
}

int Random::below(int count) { return static_cast<int>(uniform(0, count)); }

Episode new_episode(Random& random, Verb verb, Pairs pairs) {
  Task task = {.verb = verb, .target = any_kind(random, pairs)};
  if (verb == Verb::push) task.edge = static_cast<Edge>(random.below(kEdges));
  return new_episode(random, task);
}

Episode new_episode(Random& random, const Task& task) {
  Episode e = {.task = task};
  std::vector<Object>& objects = e.world.objects;
  objects = {{task.target, {}}, {distractor(random, task.target), {}}, {}};
  do {
    objects[2].kind = distractor(random, task.target);
  } while (objects[2].kind == objects[1].kind);
  do {
    for (Object& object : objects) object.at = place(random, 0.13, 0.87);
  } while (!apart(objects, 0.24) || (task.verb == Verb::push && !free_lane(e.world, task)));
  do {
    e.world.gripper.at = place(random, 0.05, 0.95);
  } while (length(e.world.gripper.at - objects.front().at) < 0.2);
  // Which one is the target does not follow from the order.
  std::swap(objects[0], objects[static_cast<size_t>(random.below(3))]);
  return e;
}

Episode Trial::episode() const {
  Random random(seed);
  return task ? new_episode(random, *task) : new_episode(random, verb, pairs);
}

std::vector<Trial> trials(int count, uint64_t seed, const std::vector<Verb>& verbs,
                          const std::vector<Pairs>& pairs) {
  std::vector<Trial> all;
  for (int i = 0; i < count; ++i) {
    const auto verb = static_cast<size_t>(i) % verbs.size();
    const auto pair = static_cast<size_t>(i) / verbs.size() % pairs.size();
    all.push_back(
        {.seed = seed + static_cast<uint64_t>(i), .verb = verbs[verb], .pairs = pairs[pair]});
  }
  return all;
}

std::string kind_of(const Trial& trial) {
  const std::string verb(name(trial.verb));
  return trial.pairs == Pairs::seen ? verb : verb + ", unseen pair";
}

Task other_task(const Episode& episode) {
  Task task = episode.task;
  for (const Object& object : episode.world.objects)
    if (object.kind != episode.task.target) task.target = object.kind;
  return task;
}

Task parse_task(std::string_view prompt) {
  std::string words;  // lower case, single spaces, no punctuation
  for (const char c : prompt) {
    if (std::isalpha(static_cast<unsigned char>(c)))
      words += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    else if (!words.empty() && words.back() != ' ')
      words += ' ';
  }
  while (words.ends_with(' ')) words.pop_back();
  for (int c = 0; c < kColours; ++c)
    for (int s = 0; s < kShapes; ++s) {
      Task task = {.target = {static_cast<Colour>(c), static_cast<Shape>(s)}};
      if (words == task.prompt()) return task;
      task.verb = Verb::push;
      for (int e = 0; e < kEdges; ++e) {
        task.edge = static_cast<Edge>(e);
        if (words == task.prompt()) return task;
      }
    }
  fail(Fault::usage,
       "'{}' is no task of the demo: 'reach the COLOUR SHAPE' or 'push the COLOUR SHAPE to the "
       "left|right|top|bottom edge', with red, green, blue, yellow, magenta or cyan and disc, "
       "square or triangle",
       prompt);
}

}  // namespace tendon::demo
