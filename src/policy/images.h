// Pictures on their way into the model: the two resizers of the reference implementations, scaling
// to [-1, 1], and patches. Formulas: openpi's image_tools (Pillow), lerobot's resize_with_pad.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "tendon/types.h"

namespace tendon {

enum class Resizer {
  openpi,   // Pillow's bilinear filter on bytes, antialiased when shrinking; black padding
  lerobot,  // torch's bilinear interpolation on floats, no antialias; padding -1
};

constexpr int kImageSideMax = 8192;

// [side, side, 3] in [-1, 1], row-major, channels last, of an interleaved or planar picture. The
// aspect ratio is kept, the rest is padding. Throws Error(Fault::input), naming the picture as
// `name`: no pixels, more than kImageSideMax per side, another number of bytes than pixels say, or
// so thin that a side becomes 0.
std::vector<float> model_pixels(const Image& image, int side, Resizer resizer,
                                const std::string& name = "the picture");

// Pillow's resize with padding, bit-exact. Interleaved, but unchanged when the size already fits.
// Throws as model_pixels does.
Image resize_with_pad_pil(const Image& image, int height, int width,
                          const std::string& name = "the picture");

// [tokens, 3 * patch * patch]: patches row by row; columns in the order of a torch convolution
// weight (channel, row, column). `pixels` is [side, side, 3].
std::vector<float> patches(std::span<const float> pixels, int side, int patch);

}  // namespace tendon
