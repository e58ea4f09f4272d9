// Pictures on their way into the model: files (PNG, JPEG and PPM), the two resizers of the
// reference implementations, scaling to [-1, 1], and patches. Formulas: openpi's image_tools
// (Pillow), lerobot's resize_with_pad.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "policy/family.h"
#include "tendon/types.h"

namespace tendon {

constexpr int kImageSideMax = 8192;

// Three channels of 8 bits; at most 64 MB of file and 8,192 pixels per side. Throws
// Error(Fault::input) naming the file for anything else, also for grey or transparent pictures.
Image load_image(const std::string& path);
// Of a peer's file at most `pixels_max` are reserved for.
Image decode_image(std::span<const std::byte> file, const std::string& name,
                   int64_t pixels_max = INT64_MAX);

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

// Pillow's resize with padding, bit-exact. Keeps its memory for the next picture.
class PilResizer {
 public:
  // Interleaved; the picture itself when the size already fits. Valid until the next call. Throws
  // as PatchWriter::write does.
  const Image& resize_with_pad(const Image& image, int height, int width,
                               std::string_view camera = {});

 private:
  // The triangle filter: fixed-point weights (times 2^22), `width` per output pixel, of the inputs
  // from first[pixel] on.
  struct Taps {
    int width = 0;
    std::vector<int> first, weights;
    std::vector<double> exact;  // weights of one pixel, while they are made
    void make(int in, int out);
  };
  const Image& pass(const Image& in, int size, bool horizontal, Image& out);

  Taps taps_;
  Image wide_, small_, padded_;
};

// Writes pictures of one size as the model reads them. Keeps its memory for the next picture.
class PatchWriter {
 public:
  PatchWriter(Family resizer, PatchLayout layout) : resizer_(resizer), layout_(layout) {}

  // Writes an interleaved or planar picture as layout.values() numbers in [-1, 1]. The aspect ratio
  // is kept, the rest is padding. openpi resizes by Pillow's bilinear filter on bytes, antialiased
  // when shrinking, with black padding; lerobot by torch's bilinear interpolation on floats, not
  // antialiased, with layout.bars around it. Throws Error(Fault::input), naming the camera: no
  // pixels, more than kImageSideMax per side, another number of bytes than pixels say, or so thin
  // that a side becomes 0.
  void write(const Image& image, std::string_view camera, std::span<float> to);

  // Whether every number is 2 k / 255 - 1 of a byte k: openpi resizes bytes to bytes, lerobot does
  // so only where nothing is to be resized.
  bool keeps_bytes(const Image& image) const {
    return resizer_ == Family::openpi ||
           (image.height == layout_.side && image.width == layout_.side);
  }
  const PatchLayout& layout() const { return layout_; }

 private:
  // torch's source coordinate.
  struct Sample {
    int low, high;
    float weight;  // of high
  };
  static void sample(int in, int out, std::vector<Sample>& samples);
  void write_torch(const Image& image, std::string_view camera, std::span<float> to);

  Family resizer_;
  PatchLayout layout_;
  PilResizer pil_;
  std::vector<Sample> rows_, columns_;
};

}  // namespace tendon
