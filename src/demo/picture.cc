#include "demo/picture.h"

#include <algorithm>
#include <cmath>

namespace tendon::demo {
namespace {

constexpr double kGripperView = 0.25;  // half of its side, in sides of the table
constexpr Shade kRoom = {14, 16, 20}, kTableTop = {64, 68, 76}, kRim = {238, 238, 232};
constexpr Shade kFinger = {196, 200, 208}, kFingerDown = {255, 255, 255};
constexpr double kRimWidth = 0.016;

double length(double x, double y) { return std::sqrt(x * x + y * y); }

double box(Point p, double half_x, double half_y) {
  const double x = std::abs(p.x) - half_x, y = std::abs(p.y) - half_y;
  return length(std::max(x, 0.0), std::max(y, 0.0)) + std::min(std::max(x, y), 0.0);
}

// Signed distance to the outline, negative inside. Triangles point up.
double distance(Shape shape, Point p) {
  switch (shape) {
    case Shape::disc: return length(p.x, p.y) - kObjectRadius;
    case Shape::square: return box(p, kSquareHalf, kSquareHalf);
    case Shape::triangle:
      return std::max(std::abs(p.x) * 0.8660254037844386 - p.y * 0.5, p.y) - kTriangleInner;
  }
  return 0;
}

// `pixel`: its side on the table.
Shade colour_at(const World& world, Point p, double pixel) {
  Shade colour = kRoom;
  const auto cover = [&](double signed_distance, const Shade& paint) {
    const double share = std::clamp(0.5 - signed_distance / pixel, 0.0, 1.0);
    for (size_t c = 0; c < 3; ++c) colour[c] += share * (paint[c] - colour[c]);
  };
  cover(box({p.x - 0.5, p.y - 0.5}, 0.5, 0.5), kTableTop);
  for (const Object& object : world.objects) {
    const Point local = p - object.at;
    if (std::max(std::abs(local.x), std::abs(local.y)) > 2 * kObjectRadius) continue;
    const double d = distance(object.kind.shape, local);
    cover(d, kRim);
    cover(d + kRimWidth, kPaints[static_cast<size_t>(object.kind.colour)]);
  }
  const Point local = p - world.gripper.at;
  if (std::max(std::abs(local.x), std::abs(local.y)) > kObjectRadius) return colour;
  const double d = box({std::abs(local.x) - finger_distance(world.gripper), local.y},
                       kFingerHalfWidth, kFingerHalfLength);
  cover(d - 0.008, kRoom);
  cover(d, world.gripper.down() ? kFingerDown : kFinger);
  return colour;
}

}  // namespace

Image draw(const World& world, View view, int size) {
  const bool top = view == View::top;
  const double side = top ? 1 + 2 * kRoomAround : 2 * kGripperView, pixel = side / size;
  const Point corner = top ? Point{-kRoomAround, -kRoomAround}
                           : world.gripper.at - Point{kGripperView, kGripperView};
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
