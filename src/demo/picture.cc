#include "demo/picture.h"

#include <algorithm>
#include <cmath>

namespace tendon::demo {
namespace {

using Shade = std::array<double, 3>;

constexpr double kRoomAround = 0.05, kGripperView = 0.25;  // sides of the table
constexpr Shade kRoom = {14, 16, 20}, kTableTop = {64, 68, 76}, kRim = {238, 238, 232};
constexpr Shade kFinger = {196, 200, 208}, kFingerDown = {255, 255, 255};
constexpr double kRimWidth = 0.016;

Shade paint(Colour colour) {
  switch (colour) {
    case Colour::red: return {226, 40, 44};
    case Colour::green: return {40, 170, 60};
    case Colour::blue: return {40, 84, 230};
    case Colour::yellow: return {244, 208, 36};
    case Colour::magenta: return {208, 56, 196};
    case Colour::cyan: return {36, 196, 214};
  }
  return {};
}

double length(double x, double y) { return std::sqrt(x * x + y * y); }

double box(Point p, double half_x, double half_y) {
  const double x = std::abs(p.x) - half_x, y = std::abs(p.y) - half_y;
  return length(std::max(x, 0.0), std::max(y, 0.0)) + std::min(std::max(x, y), 0.0);
}

// Signed distance to the outline, negative inside. Triangles point up.
double distance(Shape shape, Point p) {
  switch (shape) {
    case Shape::disc: return length(p.x, p.y) - kObjectRadius;
    case Shape::square: return box(p, 0.88 * kObjectRadius, 0.88 * kObjectRadius);
    case Shape::triangle: {
      const double inner = 0.62 * kObjectRadius;  // radius of the inscribed circle
      const double lean = std::abs(p.x) * 0.8660254037844386 - p.y * 0.5;
      return std::max(lean, p.y) - inner;
    }
  }
  return 0;
}

// What a finger covers: two bars that stand apart as far as the gripper is open.
double fingers(const Gripper& gripper, Point p) {
  const double apart = 0.012 + 0.034 * gripper.opening;
  return box({std::abs(p.x) - apart, p.y}, 0.011, 0.034);
}

struct Brush {
  double pixel;  // its side on the table
  Shade colour;

  void cover(double signed_distance, const Shade& paint) {
    const double share = std::clamp(0.5 - signed_distance / pixel, 0.0, 1.0);
    for (size_t c = 0; c < 3; ++c) colour[c] += share * (paint[c] - colour[c]);
  }
};

Shade colour_at(const World& world, Point p, double pixel) {
  Brush brush = {pixel, kRoom};
  brush.cover(box({p.x - 0.5, p.y - 0.5}, 0.5, 0.5), kTableTop);
  for (const Object& object : world.objects) {
    const Point local = {p.x - object.at.x, p.y - object.at.y};
    if (std::max(std::abs(local.x), std::abs(local.y)) > 2 * kObjectRadius) continue;
    const double d = distance(object.kind.shape, local);
    brush.cover(d, kRim);
    brush.cover(d + kRimWidth, paint(object.kind.colour));
  }
  const Point local = {p.x - world.gripper.at.x, p.y - world.gripper.at.y};
  if (std::max(std::abs(local.x), std::abs(local.y)) > kObjectRadius) return brush.colour;
  const double d = fingers(world.gripper, local);
  brush.cover(d - 0.008, kRoom);
  brush.cover(d, world.gripper.opening < 0.5 ? kFingerDown : kFinger);
  return brush.colour;
}

}  // namespace

Image draw(const World& world, View view, int size) {
  const bool top = view == View::top;
  const double side = top ? 1 + 2 * kRoomAround : 2 * kGripperView, pixel = side / size;
  const Point corner =
      top ? Point{-kRoomAround, -kRoomAround}
          : Point{world.gripper.at.x - kGripperView, world.gripper.at.y - kGripperView};
  std::vector<uint8_t> rgb;
  rgb.reserve(size_t{3} * static_cast<size_t>(size) * static_cast<size_t>(size));
  for (int row = 0; row < size; ++row)
    for (int column = 0; column < size; ++column) {
      const Point p = {corner.x + (column + 0.5) * pixel, corner.y + (row + 0.5) * pixel};
      for (const double value : colour_at(world, p, pixel))
        rgb.push_back(static_cast<uint8_t>(value + 0.5));
    }
  return {.height = size, .width = size, .rgb = std::move(rgb)};
}

Observation observe(const World& world, const std::string& prompt) {
  Observation o;
  o.images["top"] = draw(world, View::top);
  o.images["gripper"] = draw(world, View::gripper);
  o.prompt = prompt;
  const auto state = world.state();
  o.state.assign(state.begin(), state.end());
  return o;
}

}  // namespace tendon::demo
