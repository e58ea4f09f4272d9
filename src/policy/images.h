// Pictures on their way into the model: the two resizers of the reference implementations, scaling
// to [-1, 1], and patches. Formulas: openpi's image_tools (Pillow), lerobot's resize_with_pad.
#pragma once

#include <span>
#include <vector>

#include "tendon/types.h"

namespace tendon {

enum class Resizer {
  openpi,   // Pillow's bilinear filter on bytes, antialiased when shrinking; black padding
  lerobot,  // torch's bilinear interpolation on floats, no antialias; padding -1
};

// [side, side, 3] in [-1, 1], row-major, channels last. The aspect ratio is kept, the rest is
// padding. Throws Error(Fault::input) for an empty picture or one so thin that a side becomes 0.
std::vector<float> model_pixels(const Image& image, int side, Resizer resizer);

// Pillow's resize with padding, bit-exact; unchanged when the size already fits.
Image resize_with_pad_pil(const Image& image, int height, int width);

// [tokens, 3 * patch * patch]: patches row by row; columns in the order of a torch convolution
// weight (channel, row, column). `pixels` is [side, side, 3].
std::vector<float> patches(std::span<const float> pixels, int side, int patch);

}  // namespace tendon
