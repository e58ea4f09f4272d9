// Pictures on their way into the model: the two resizers of the reference implementations, scaling
// to [-1, 1], and patches. Formulas: openpi's image_tools (Pillow), lerobot's resize_with_pad.
#pragma once

#include <span>
#include <string>

#include "policy/family.h"
#include "tendon/types.h"

namespace tendon {

constexpr int kImageSideMax = 8192;

struct PatchLayout {
  int side = 0, patch = 0;  // pixels
  bool bands = false;       // patches as wide as the picture: see Pictures
  float bars = -1.f;        // lerobot's resizer: what fills the square around a picture
  size_t values() const { return static_cast<size_t>(3 * int64_t{side} * side); }
};

// Calls use(row, column, channel) for every value of a square picture in the order in which the
// model reads them: patch after patch, in each one as a torch convolution weight (channel, row,
// column).
template <class Use>
void in_patch_order(PatchLayout layout, Use use) {
  const int patch = layout.patch, width = layout.bands ? layout.side : patch;
  for (int top = 0; top < layout.side; top += patch)
    for (int left = 0; left < layout.side; left += width)
      for (int channel = 0; channel < 3; ++channel)
        for (int i = 0; i < patch; ++i)
          for (int j = 0; j < width; ++j) use(top + i, left + j, channel);
}

// Writes an interleaved or planar picture as layout.values() numbers in [-1, 1]. The aspect ratio
// is kept, the rest is padding. openpi resizes by Pillow's bilinear filter on bytes, antialiased
// when shrinking, with black padding; lerobot by torch's bilinear interpolation on floats, not
// antialiased, with layout.bars around it. Throws Error(Fault::input), naming the picture as
// `name`: no pixels, more than kImageSideMax per side, another number of bytes than pixels say, or
// so thin that a side becomes 0.
void write_patches(const Image& image, Family resizer, PatchLayout layout, const std::string& name,
                   std::span<float> to);

// Whether every number is 2 k / 255 - 1 of a byte k: openpi resizes bytes to bytes, lerobot does
// so only where nothing is to be resized.
inline bool keeps_bytes(const Image& image, Family resizer, int side) {
  return resizer == Family::openpi || (image.height == side && image.width == side);
}

// Pillow's resize with padding, bit-exact. Interleaved, but unchanged when the size already fits.
// Throws as write_patches does.
Image resize_with_pad_pil(const Image& image, int height, int width,
                          const std::string& name = "the picture");

}  // namespace tendon
