// An episode for a page or a report: as a short film, and as one still picture.
#pragma once

#include <string>

#include "demo/closed_loop.h"

namespace tendon::demo {

// The bytes of an animated GIF of 514 x 380 pixels that loops for ever: the table from above,
// beside it the two pictures that the policy sees; above them the prompt and the time. One frame of
// 0.1 s for the beginning and for every step; the last stands for 1.5 s in a border that is green
// when the task is solved and red when not. Its 255 colours are within 10 of 255 of what the
// cameras show. In the picture, characters of the prompt beyond ASCII are '?' and after 44 it is
// cut.
std::string film_gif(const Record& record, const std::string& prompt);

// A standalone SVG of 480 x 540 with a background of its own: the table with the objects where they
// ended, what was pushed also where it began, the edge that a push aims at, and the gripper's way
// with a dot every 0.1 s, from light to dark. `prompt`, in UTF-8, is the title; its end is cut when
// it is long. The colours are those that the policy sees.
std::string sketch_svg(const Record& record, const std::string& prompt);

}  // namespace tendon::demo
