#include "policy/images.h"

#include <algorithm>
#include <cmath>

#include "tensor/check.h"

namespace tendon {
namespace {

void check_image(const Image& image) {
  ensure(image.height > 0 && image.width > 0, Fault::input, "an image of {} by {} pixels",
         image.height, image.width);
  const int64_t bytes = int64_t{3} * image.height * image.width;
  ensure(std::ssize(image.rgb) == bytes, Fault::input,
         "an image of {} by {} pixels with {} bytes, expected {} (three channels of 8 bits)",
         image.height, image.width, image.rgb.size(), bytes);
}

// Where the picture lands inside the padded target.
struct Placement {
  int height, width, top, left;
};

Placement place(const Image& image, int height, int width) {
  const double ratio = std::max(static_cast<double>(image.width) / width,
                                static_cast<double>(image.height) / height);
  const int h = static_cast<int>(image.height / ratio), w = static_cast<int>(image.width / ratio);
  ensure(h > 0 && w > 0, Fault::input, "an image of {} by {} pixels is too thin for {} by {}",
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

// One pass of Pillow's resize. Pixel p of line l stands at (l * line + p * step) * 3.
void pil_pass(const std::vector<uint8_t>& in, std::vector<uint8_t>& out, const Taps& taps,
              int lines, bool horizontal, int in_width, int out_width) {
  for (int line = 0; line < lines; ++line)
    for (size_t p = 0; p < taps.first.size(); ++p)
      for (int c = 0; c < 3; ++c) {
        int64_t sum = 1 << 21;
        for (int k = 0; k < taps.width; ++k) {
          const int at = taps.first[p] + k;
          const int pixel = horizontal ? line * in_width + at : at * in_width + line;
          sum += int64_t{in[static_cast<size_t>(3 * pixel + c)]} *
                 taps.weights[p * static_cast<size_t>(taps.width) + static_cast<size_t>(k)];
        }
        const int to = horizontal ? line * out_width + static_cast<int>(p)
                                  : static_cast<int>(p) * out_width + line;
        out[static_cast<size_t>(3 * to + c)] =
            static_cast<uint8_t>(std::clamp<int64_t>(sum >> 22, 0, 255));
      }
}

Image resize_pil(const Image& image, int height, int width) {
  Image current = image;
  if (width != current.width) {
    Image next{current.height, width,
               std::vector<uint8_t>(static_cast<size_t>(3 * current.height * width))};
    pil_pass(current.rgb, next.rgb, pil_taps(current.width, width), current.height, true,
             current.width, width);
    current = std::move(next);
  }
  if (height != current.height) {
    Image next{height, width, std::vector<uint8_t>(static_cast<size_t>(3 * height * width))};
    pil_pass(current.rgb, next.rgb, pil_taps(current.height, height), width, false, width, width);
    current = std::move(next);
  }
  return current;
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
  for (int i = 0; i < out; ++i) {
    const float at = std::max(std::fma(scale, static_cast<float>(i) + 0.5f, -0.5f), 0.f);
    const int low = std::min(static_cast<int>(at), in - 1);
    samples.push_back({low, std::min(low + 1, in - 1), at - static_cast<float>(low)});
  }
  return samples;
}

std::vector<float> torch_pixels(const Image& image, int side) {
  const Placement p = place(image, side, side);
  const std::vector<Sample> rows = torch_samples(image.height, p.height);
  const std::vector<Sample> columns = torch_samples(image.width, p.width);
  const auto value = [&](int r, int c, int ch) {
    return static_cast<float>(image.rgb[static_cast<size_t>(3 * (r * image.width + c) + ch)]) /
           255.f;
  };
  std::vector<float> pixels(static_cast<size_t>(3 * side * side), -1.f);
  for (int r = 0; r < p.height; ++r)
    for (int c = 0; c < p.width; ++c)
      for (int ch = 0; ch < 3; ++ch) {
        const auto& [top, bottom, wy] = rows[static_cast<size_t>(r)];
        const auto& [left, right, wx] = columns[static_cast<size_t>(c)];
        const float upper = (1.f - wx) * value(top, left, ch) + wx * value(top, right, ch);
        const float lower = (1.f - wx) * value(bottom, left, ch) + wx * value(bottom, right, ch);
        const float v = std::clamp((1.f - wy) * upper + wy * lower, 0.f, 1.f);
        pixels[static_cast<size_t>(3 * ((r + p.top) * side + c + p.left) + ch)] = v * 2.f - 1.f;
      }
  return pixels;
}

}  // namespace

Image resize_with_pad_pil(const Image& image, int height, int width) {
  check_image(image);
  if (image.height == height && image.width == width) return image;
  const Placement p = place(image, height, width);
  const Image small = resize_pil(image, p.height, p.width);
  Image out{height, width, std::vector<uint8_t>(static_cast<size_t>(3 * height * width), 0)};
  for (int r = 0; r < p.height; ++r)
    std::copy_n(small.rgb.begin() + 3 * r * p.width, 3 * p.width,
                out.rgb.begin() + 3 * ((r + p.top) * width + p.left));
  return out;
}

std::vector<float> model_pixels(const Image& image, int side, Resizer resizer) {
  check_image(image);
  if (resizer == Resizer::lerobot) return torch_pixels(image, side);
  const Image resized = resize_with_pad_pil(image, side, side);
  std::vector<float> pixels;
  pixels.reserve(resized.rgb.size());
  for (const uint8_t v : resized.rgb) pixels.push_back(static_cast<float>(v) / 255.f * 2.f - 1.f);
  return pixels;
}

std::vector<float> patches(std::span<const float> pixels, int side, int patch) {
  ensure(std::ssize(pixels) == int64_t{3} * side * side && side % patch == 0, Fault::internal,
         "{} values for patches of {} in a square of {}", pixels.size(), patch, side);
  std::vector<float> rows;
  rows.reserve(pixels.size());
  const int grid = side / patch;
  for (int p = 0; p < grid * grid; ++p)
    for (int c = 0; c < 3; ++c)
      for (int i = 0; i < patch; ++i)
        for (int j = 0; j < patch; ++j) {
          const int r = p / grid * patch + i, column = p % grid * patch + j;
          rows.push_back(pixels[static_cast<size_t>(3 * (r * side + column) + c)]);
        }
  return rows;
}

}  // namespace tendon
