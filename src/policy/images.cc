#include "policy/images.h"

#include <algorithm>
#include <cmath>

#include "tensor/check.h"

namespace tendon {
namespace {

void check_image(const Image& image, const std::string& name) {
  const auto fits = [](int side) { return side >= 1 && side <= kImageSideMax; };
  ensure(fits(image.height) && fits(image.width), Fault::input,
         "{} has {} by {} pixels, expected 1 to {} rows and columns", name, image.height,
         image.width, kImageSideMax);
  const int64_t bytes = int64_t{3} * image.height * image.width;
  ensure(std::ssize(image.rgb.bytes()) == bytes, Fault::input,
         "{} of {} by {} pixels has {} bytes, expected {} (three channels of 8 bits)", name,
         image.height, image.width, image.rgb.size(), bytes);
}

// How far apart neighbours stand, in bytes.
struct Steps {
  size_t row, column, channel;
  size_t at(int r, int c, int ch) const {
    return static_cast<size_t>(r) * row + static_cast<size_t>(c) * column +
           static_cast<size_t>(ch) * channel;
  }
};

Steps steps(const Image& image) {
  const auto height = static_cast<size_t>(image.height), width = static_cast<size_t>(image.width);
  return image.planar ? Steps{width, 1, height * width} : Steps{3 * width, 3, 1};
}

Image black(int height, int width) {
  return {height, width, std::vector<uint8_t>(static_cast<size_t>(3 * height * width), 0)};
}

// Where the picture lands inside the padded target.
struct Placement {
  int height, width, top, left;
};

Placement place(const Image& image, int height, int width, const std::string& name) {
  const double ratio = std::max(static_cast<double>(image.width) / width,
                                static_cast<double>(image.height) / height);
  const int h = static_cast<int>(image.height / ratio), w = static_cast<int>(image.width / ratio);
  ensure(h > 0 && w > 0, Fault::input, "{} of {} by {} pixels is too thin for {} by {}", name,
         image.height, image.width, height, width);
  return {h, w, (height - h) / 2, (width - w) / 2};
}

// Pillow's triangle filter: fixed-point weights (times 2^22), `width` per output pixel, of the
// inputs from first[pixel] on.
struct Taps {
  int width;
  std::vector<int> first, weights;
};

Taps pil_taps(int in, int out) {
  const double scale = static_cast<double>(in) / out, support = std::max(scale, 1.0);
  const int width = std::min(in, 2 * static_cast<int>(std::ceil(support)) + 1);
  const auto pixels = static_cast<size_t>(out);
  Taps taps{width, std::vector<int>(pixels), std::vector<int>(pixels * static_cast<size_t>(width))};
  std::vector<double> w(static_cast<size_t>(width));
  for (int i = 0; i < out; ++i) {
    const double centre = (i + 0.5) * scale;
    const int low = std::max(0, static_cast<int>(centre - support + 0.5));
    const int high = std::min(in, static_cast<int>(centre + support + 0.5));
    const int first = std::min(low, in - width);  // weights before `low` and from `high` on are 0
    std::ranges::fill(w, 0.0);
    double sum = 0;
    for (int k = low; k < high; ++k) {
      double& v = w[static_cast<size_t>(k - first)];
      v = std::max(0.0, 1.0 - std::abs((k - centre + 0.5) / support));
      sum += v;
    }
    taps.first[static_cast<size_t>(i)] = first;
    std::ranges::transform(w, taps.weights.begin() + int64_t{i} * width,
                           [&](double v) { return static_cast<int>(v / sum * (1 << 22) + 0.5); });
  }
  return taps;
}

// One pass of Pillow's resize, which gives every row (or column) `size` pixels. Interleaved.
Image pil_pass(const Image& in, int size, bool horizontal) {
  const Taps taps = pil_taps(horizontal ? in.width : in.height, size);
  Image out = horizontal ? black(in.height, size) : black(size, in.width);
  const Steps from = steps(in), to = steps(out);
  const size_t in_pixel = horizontal ? from.column : from.row;
  const size_t in_line = horizontal ? from.row : from.column;
  const size_t out_pixel = horizontal ? to.column : to.row;
  const size_t out_line = horizontal ? to.row : to.column;
  const auto lines = static_cast<size_t>(horizontal ? in.height : in.width);
  const auto width = static_cast<size_t>(taps.width);
  const uint8_t* bytes = in.rgb.data();
  uint8_t* written = out.rgb.owned().data();
  for (size_t line = 0; line < lines; ++line)
    for (size_t p = 0; p < taps.first.size(); ++p)
      for (size_t c = 0; c < 3; ++c) {
        const uint8_t* seen = bytes + line * in_line +
                              static_cast<size_t>(taps.first[p]) * in_pixel + c * from.channel;
        const int* weights = &taps.weights[p * width];
        int64_t sum = 1 << 21;
        for (size_t k = 0; k < width; ++k) sum += int64_t{seen[k * in_pixel]} * weights[k];
        written[line * out_line + p * out_pixel + c] =
            static_cast<uint8_t>(std::clamp<int64_t>(sum >> 22, 0, 255));
      }
  return out;
}

// A side that already fits is no pass; when both do, a view of the picture as it is.
Image resize_pil(const Image& image, int height, int width) {
  Image wide = width == image.width
                   ? Image{image.height, width, Pixels::view(image.rgb.bytes()), image.planar}
                   : pil_pass(image, width, true);
  if (height == wide.height) return wide;
  return pil_pass(wide, height, false);
}

// torch's source coordinate, in float as torch computes it: one rounding for scale · (i + 0.5) −
// 0.5.
struct Sample {
  int low, high;
  float weight;  // of high
};

std::vector<Sample> torch_samples(int in, int out) {
  const float scale = static_cast<float>(in) / static_cast<float>(out);
  std::vector<Sample> samples;
  samples.reserve(static_cast<size_t>(out));
  for (int i = 0; i < out; ++i) {
    const float at = std::max(std::fma(scale, static_cast<float>(i) + 0.5f, -0.5f), 0.f);
    const int low = std::min(static_cast<int>(at), in - 1);
    samples.push_back({low, std::min(low + 1, in - 1), at - static_cast<float>(low)});
  }
  return samples;
}

void write_torch(const Image& image, PatchLayout layout, const std::string& name,
                 std::span<float> to) {
  const Placement p = place(image, layout.side, layout.side, name);
  const std::vector<Sample> rows = torch_samples(image.height, p.height);
  const std::vector<Sample> columns = torch_samples(image.width, p.width);
  const Steps from = steps(image);
  const uint8_t* bytes = image.rgb.data();
  const auto value = [&](int r, int c, int ch) {
    return static_cast<float>(bytes[from.at(r, c, ch)]) / 255.f;
  };
  in_patch_order(layout, [&, next = to.begin()](int row, int column, int ch) mutable {
    const int r = row - p.top, c = column - p.left;
    float v = layout.bars;
    if (r >= 0 && r < p.height && c >= 0 && c < p.width) {
      const auto& [top, bottom, wy] = rows[static_cast<size_t>(r)];
      const auto& [left, right, wx] = columns[static_cast<size_t>(c)];
      const float upper = (1.f - wx) * value(top, left, ch) + wx * value(top, right, ch);
      const float lower = (1.f - wx) * value(bottom, left, ch) + wx * value(bottom, right, ch);
      v = std::clamp((1.f - wy) * upper + wy * lower, 0.f, 1.f) * 2.f - 1.f;
    }
    *next++ = v;
  });
}

}  // namespace

Image resize_with_pad_pil(const Image& image, int height, int width, const std::string& name) {
  check_image(image, name);
  if (image.height == height && image.width == width) return image;
  const Placement p = place(image, height, width, name);
  Image small = resize_pil(image, p.height, p.width);
  if (p.height == height && p.width == width) return small;
  Image out = black(height, width);
  const Steps from = steps(small), to = steps(out);
  uint8_t* corner = out.rgb.owned().data() + static_cast<size_t>(p.top) * to.row +
                    static_cast<size_t>(p.left) * to.column;
  for (int r = 0; r < p.height; ++r)
    for (int c = 0; c < p.width; ++c)
      for (int ch = 0; ch < 3; ++ch) corner[to.at(r, c, ch)] = small.rgb.data()[from.at(r, c, ch)];
  return out;
}

void write_patches(const Image& image, Family resizer, PatchLayout layout, const std::string& name,
                   std::span<float> to) {
  const int side = layout.side;
  ensure(to.size() == layout.values() && side % layout.patch == 0, Fault::internal,
         "{} values for patches of {} in a square of {}", to.size(), layout.patch, side);
  check_image(image, name);
  if (resizer == Family::lerobot) return write_torch(image, layout, name, to);
  const bool fits = image.height == side && image.width == side;
  const Image resized = fits ? Image{} : resize_with_pad_pil(image, side, side, name);
  const Image& square = fits ? image : resized;
  const Steps from = steps(square);
  const uint8_t* bytes = square.rgb.data();
  in_patch_order(layout, [&, next = to.begin()](int r, int c, int ch) mutable {
    *next++ = static_cast<float>(bytes[from.at(r, c, ch)]) / 255.f * 2.f - 1.f;
  });
}

}  // namespace tendon
