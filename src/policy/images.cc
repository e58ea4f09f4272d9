#include "policy/images.h"

#include <algorithm>
#include <cmath>

#include "tensor/check.h"

namespace tendon {
namespace {

std::string picture_of(std::string_view camera) {
  return camera.empty() ? "the picture" : fmt::format("camera '{}': the picture", camera);
}

void check_image(const Image& image, std::string_view camera) {
  const auto fits = [](int side) { return side >= 1 && side <= kImageSideMax; };
  if (!fits(image.height) || !fits(image.width))
    fail(Fault::input, "{} has {} by {} pixels, expected 1 to {} rows and columns",
         picture_of(camera), image.height, image.width, kImageSideMax);
  const int64_t bytes = int64_t{3} * image.height * image.width;
  if (std::ssize(image.rgb.bytes()) != bytes)
    fail(Fault::input, "{} of {} by {} pixels has {} bytes, expected {} (three channels of 8 bits)",
         picture_of(camera), image.height, image.width, image.rgb.size(), bytes);
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

// Makes it an interleaved picture of this size, whose bytes are still to be written.
std::vector<uint8_t>& with_size(Image& image, int height, int width) {
  image.height = height;
  image.width = width;
  image.rgb.owned().resize(static_cast<size_t>(int64_t{3} * height * width));
  return image.rgb.owned();
}

// Where the picture lands inside the padded target.
struct Placement {
  int height, width, top, left;
};

Placement place(const Image& image, int height, int width, std::string_view camera) {
  const double ratio = std::max(static_cast<double>(image.width) / width,
                                static_cast<double>(image.height) / height);
  const int h = static_cast<int>(image.height / ratio), w = static_cast<int>(image.width / ratio);
  if (h <= 0 || w <= 0)
    fail(Fault::input, "{} of {} by {} pixels is too thin for {} by {}", picture_of(camera),
         image.height, image.width, height, width);
  return {h, w, (height - h) / 2, (width - w) / 2};
}

}  // namespace

void PilResizer::Taps::make(int in, int out) {
  const double scale = static_cast<double>(in) / out, support = std::max(scale, 1.0);
  width = std::min(in, 2 * static_cast<int>(std::ceil(support)) + 1);
  first.resize(static_cast<size_t>(out));
  weights.resize(static_cast<size_t>(out) * static_cast<size_t>(width));
  exact.resize(static_cast<size_t>(width));
  for (int i = 0; i < out; ++i) {
    const double centre = (i + 0.5) * scale;
    const int low = std::max(0, static_cast<int>(centre - support + 0.5));
    const int high = std::min(in, static_cast<int>(centre + support + 0.5));
    const int begin = std::min(low, in - width);  // weights before `low` and from `high` on are 0
    std::ranges::fill(exact, 0.0);
    double sum = 0;
    for (int k = low; k < high; ++k) {
      double& v = exact[static_cast<size_t>(k - begin)];
      v = std::max(0.0, 1.0 - std::abs((k - centre + 0.5) / support));
      sum += v;
    }
    first[static_cast<size_t>(i)] = begin;
    std::ranges::transform(exact, weights.begin() + int64_t{i} * width,
                           [&](double v) { return static_cast<int>(v / sum * (1 << 22) + 0.5); });
  }
}

// One pass of the resize, which gives every row (or column) `size` pixels.
const Image& PilResizer::pass(const Image& in, int size, bool horizontal, Image& out) {
  taps_.make(horizontal ? in.width : in.height, size);
  uint8_t* written =
      (horizontal ? with_size(out, in.height, size) : with_size(out, size, in.width)).data();
  const Steps from = steps(in), to = steps(out);
  const size_t in_pixel = horizontal ? from.column : from.row;
  const size_t in_line = horizontal ? from.row : from.column;
  const size_t out_pixel = horizontal ? to.column : to.row;
  const size_t out_line = horizontal ? to.row : to.column;
  const auto lines = static_cast<size_t>(horizontal ? in.height : in.width);
  const auto width = static_cast<size_t>(taps_.width);
  const std::span<const int> firsts = taps_.first, all_weights = taps_.weights;
  const uint8_t* bytes = in.rgb.data();
  for (size_t line = 0; line < lines; ++line)
    for (size_t p = 0; p < firsts.size(); ++p)
      for (size_t c = 0; c < 3; ++c) {
        const uint8_t* seen =
            bytes + line * in_line + static_cast<size_t>(firsts[p]) * in_pixel + c * from.channel;
        const int* weights = &all_weights[p * width];
        int64_t sum = 1 << 21;
        for (size_t k = 0; k < width; ++k) sum += int64_t{seen[k * in_pixel]} * weights[k];
        written[line * out_line + p * out_pixel + c] =
            static_cast<uint8_t>(std::clamp<int64_t>(sum >> 22, 0, 255));
      }
  return out;
}

const Image& PilResizer::resize_with_pad(const Image& image, int height, int width,
                                         std::string_view camera) {
  check_image(image, camera);
  if (image.height == height && image.width == width) return image;
  const Placement p = place(image, height, width, camera);
  // A side that already fits is no pass.
  const Image& wide = image.width == p.width ? image : pass(image, p.width, true, wide_);
  const Image& small = wide.height == p.height ? wide : pass(wide, p.height, false, small_);
  if (p.height == height && p.width == width) return small;
  std::vector<uint8_t>& square = with_size(padded_, height, width);
  std::ranges::fill(square, uint8_t{0});
  const Steps from = steps(small), to = steps(padded_);
  uint8_t* corner =
      square.data() + static_cast<size_t>(p.top) * to.row + static_cast<size_t>(p.left) * to.column;
  for (int r = 0; r < p.height; ++r)
    for (int c = 0; c < p.width; ++c)
      for (int ch = 0; ch < 3; ++ch) corner[to.at(r, c, ch)] = small.rgb.data()[from.at(r, c, ch)];
  return padded_;
}

// In float as torch computes it: one rounding for scale · (i + 0.5) − 0.5.
void PatchWriter::sample(int in, int out, std::vector<Sample>& samples) {
  const float scale = static_cast<float>(in) / static_cast<float>(out);
  samples.clear();
  for (int i = 0; i < out; ++i) {
    const float at = std::max(std::fma(scale, static_cast<float>(i) + 0.5f, -0.5f), 0.f);
    const int low = std::min(static_cast<int>(at), in - 1);
    samples.push_back({low, std::min(low + 1, in - 1), at - static_cast<float>(low)});
  }
}

void PatchWriter::write_torch(const Image& image, std::string_view camera, std::span<float> to) {
  check_image(image, camera);
  const Placement p = place(image, layout_.side, layout_.side, camera);
  sample(image.height, p.height, rows_);
  sample(image.width, p.width, columns_);
  const Steps from = steps(image);
  const uint8_t* bytes = image.rgb.data();
  const auto value = [&](int r, int c, int ch) {
    return static_cast<float>(bytes[from.at(r, c, ch)]) / 255.f;
  };
  in_patch_order(layout_, [&, next = to.begin()](int row, int column, int ch) mutable {
    const int r = row - p.top, c = column - p.left;
    float v = layout_.bars;
    if (r >= 0 && r < p.height && c >= 0 && c < p.width) {
      const auto& [top, bottom, wy] = rows_[static_cast<size_t>(r)];
      const auto& [left, right, wx] = columns_[static_cast<size_t>(c)];
      const float upper = (1.f - wx) * value(top, left, ch) + wx * value(top, right, ch);
      const float lower = (1.f - wx) * value(bottom, left, ch) + wx * value(bottom, right, ch);
      v = std::clamp((1.f - wy) * upper + wy * lower, 0.f, 1.f) * 2.f - 1.f;
    }
    *next++ = v;
  });
}

void PatchWriter::write(const Image& image, std::string_view camera, std::span<float> to) {
  const int side = layout_.side;
  ensure(to.size() == layout_.values() && side % layout_.patch == 0, Fault::internal,
         "{} values for patches of {} in a square of {}", to.size(), layout_.patch, side);
  if (resizer_ == Family::lerobot) return write_torch(image, camera, to);
  const Image& square = pil_.resize_with_pad(image, side, side, camera);
  const Steps from = steps(square);
  const uint8_t* bytes = square.rgb.data();
  in_patch_order(layout_, [&, next = to.begin()](int r, int c, int ch) mutable {
    *next++ = static_cast<float>(bytes[from.at(r, c, ch)]) / 255.f * 2.f - 1.f;
  });
}

}  // namespace tendon
