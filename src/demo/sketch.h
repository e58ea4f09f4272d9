// An episode as one still picture.
#pragma once

#include <string>

#include "demo/closed_loop.h"

namespace tendon::demo {

// A standalone SVG of 480 x 540 with a background of its own: the table with the objects where they
// ended, what was pushed also where it began, the edge that a push aims at, and the gripper's way
// with a dot every 0.1 s, from light to dark. `prompt`, in UTF-8, is the title; its end is cut when
// it is long. The colours are those that the policy sees.
std::string sketch_svg(const Record& record, const std::string& prompt);

}  // namespace tendon::demo
