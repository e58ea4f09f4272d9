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

inline constexpr int kImageSize = 63;  // pixels, what the demo policies were trained on

// size x size pixels, RGB.
Image draw(const World& world, View view, int size = kImageSize);

// {"top", "gripper"} pictures, state and prompt, as the demo policies take them.
Observation observe(const World& world, const std::string& prompt);

}  // namespace tendon::demo
