// What the table's cameras see. Drawn with anti-aliased edges; the same bytes on every machine of
// one instruction set.
#pragma once

#include "demo/world.h"
#include "tendon/types.h"

namespace tendon::demo {

enum class View {
  top,      // the whole table with a little of the room around it
  gripper,  // a quarter of it, centred on the gripper
};

// In sides of the table: the room that the top camera sees around it, squares, the inscribed circle
// of triangles, and the two bars of the gripper, which stand apart as far as it is open.
inline constexpr double kRoomAround = 0.05;
inline constexpr double kSquareHalf = 0.88 * kObjectRadius, kTriangleInner = 0.62 * kObjectRadius;
inline constexpr double kFingerHalfWidth = 0.011, kFingerHalfLength = 0.034;
inline double finger_distance(const Gripper& gripper) { return 0.012 + 0.034 * gripper.opening; }

// Red, green and blue, 0 to 255; what the objects are painted with, by Colour.
using Shade = std::array<double, 3>;
inline constexpr std::array<Shade, kColours> kPaints = {
    {{226, 40, 44}, {40, 170, 60}, {40, 84, 230}, {244, 208, 36}, {208, 56, 196}, {36, 196, 214}}};

inline constexpr int kImageSize = 63;  // pixels, what the demo policies were trained on

// size x size pixels, RGB.
Image draw(const World& world, View view, int size = kImageSize);

// {"top", "gripper"} pictures, state and prompt, as the demo policies take them.
Observation observe(const World& world, const std::string& prompt);

}  // namespace tendon::demo
