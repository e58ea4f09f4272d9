#include "policy/image_file.h"

#include <jpeglib.h>
#include <png.h>

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>

#include "policy/images.h"
#include "tensor/check.h"

namespace tendon {
namespace {

constexpr uint64_t kFileBytesMax = 64 << 20;

using Bytes = std::span<const std::byte>;

const unsigned char* raw(Bytes file) { return reinterpret_cast<const unsigned char*>(file.data()); }

// What is read, by name, and how much of it.
struct Source {
  Bytes file;
  const std::string& name;
  int64_t pixels_max;
};

Image blank(int64_t height, int64_t width, const Source& from) {
  const std::string& name = from.name;
  ensure(height >= 1 && width >= 1 && height <= kImageSideMax && width <= kImageSideMax,
         Fault::input, "{}: {} by {} pixels; at most {} per side are read", name, height, width,
         kImageSideMax);
  ensure(height * width <= from.pixels_max, Fault::input, "{}: {} by {} pixels; {} more are read",
         name, height, width, from.pixels_max);
  return {static_cast<int>(height), static_cast<int>(width),
          std::vector<uint8_t>(static_cast<size_t>(3 * height * width))};
}

void ensure_colour(int channels, const std::string& name) {
  ensure(channels == 3, Fault::input, "{} has {} channel{}, expected 3 (red, green, blue)", name,
         channels, channels == 1 ? "" : "s");
}

Image decode_png(const Source& from) {
  const Bytes file = from.file;
  const std::string& name = from.name;
  png_image png{};
  png.version = PNG_IMAGE_VERSION;
  const std::unique_ptr<png_image, void (*)(png_image*)> owner(&png, png_image_free);
  const auto refuse = [&] { fail(Fault::input, "{}: {}", name, png.message); };
  if (!png_image_begin_read_from_memory(&png, file.data(), file.size())) refuse();
  // A palette of colours counts as three channels; libpng expands it.
  const int channels = 1 + (png.format & PNG_FORMAT_FLAG_COLOR ? 2 : 0) +
                       (png.format & PNG_FORMAT_FLAG_ALPHA ? 1 : 0);
  const bool deep = (png.format & PNG_FORMAT_FLAG_LINEAR) != 0;
  const int64_t height = png.height, width = png.width;
  ensure_colour(channels, name);
  ensure(!deep, Fault::input, "{} has 16 bits per channel, expected 8", name);
  Image image = blank(height, width, from);
  png.format = PNG_FORMAT_RGB;
  if (!png_image_finish_read(&png, nullptr, image.rgb.owned().data(), 0, nullptr)) refuse();
  ensure((png.warning_or_error & PNG_IMAGE_ERROR) == 0, Fault::input, "{}: {}", name, png.message);
  return image;
}

struct JpegErrors {
  jpeg_error_mgr table;
  std::jmp_buf jump;
  char message[JMSG_LENGTH_MAX];
};

[[noreturn]] void jpeg_refuse(j_common_ptr info) {
  auto* errors = reinterpret_cast<JpegErrors*>(info->err);
  (*info->err->format_message)(info, errors->message);
  std::longjmp(errors->jump, 1);
}

// libjpeg warns about a cut file and then invents the rest; here that is an error.
void jpeg_warn(j_common_ptr info, int level) {
  if (level < 0) jpeg_refuse(info);
}

// Between setjmp and longjmp only libjpeg's own structures are touched: no C++ object may be
// skipped. `image` is sized by `begin`, which is called once the header is known.
template <class Begin>
bool read_jpeg(Bytes file, JpegErrors& errors, Begin begin) {
  jpeg_decompress_struct info{};
  info.err = jpeg_std_error(&errors.table);
  errors.table.error_exit = jpeg_refuse;
  errors.table.emit_message = jpeg_warn;
  if (setjmp(errors.jump)) {
    jpeg_destroy_decompress(&info);
    return false;
  }
  jpeg_create_decompress(&info);
  jpeg_mem_src(&info, raw(file), static_cast<unsigned long>(file.size()));
  jpeg_read_header(&info, TRUE);
  if (uint8_t* rows = begin(info)) {
    info.out_color_space = JCS_RGB;
    jpeg_start_decompress(&info);
    while (info.output_scanline < info.output_height) {
      JSAMPROW row = rows + size_t{3} * info.output_width * info.output_scanline;
      jpeg_read_scanlines(&info, &row, 1);
    }
    jpeg_finish_decompress(&info);
  }
  jpeg_destroy_decompress(&info);
  return true;
}

Image decode_jpeg(const Source& from) {
  const Bytes file = from.file;
  const std::string& name = from.name;
  JpegErrors errors{};
  Image image;
  int channels = 0;
  int64_t height = 0, width = 0;
  const bool header = read_jpeg(file, errors, [&](jpeg_decompress_struct& info) -> uint8_t* {
    channels = info.num_components;
    height = info.image_height;
    width = info.image_width;
    return nullptr;
  });
  ensure(header, Fault::input, "{}: {}", name, errors.message);
  ensure_colour(channels, name);
  image = blank(height, width, from);
  const bool read = read_jpeg(
      file, errors, [&](jpeg_decompress_struct&) -> uint8_t* { return image.rgb.owned().data(); });
  ensure(read, Fault::input, "{}: {}", name, errors.message);
  return image;
}

// P6: width, height and largest value as text, then bytes.
Image decode_ppm(const Source& from) {
  const Bytes file = from.file;
  const std::string& name = from.name;
  size_t at = 2;
  const auto character = [&](size_t i) { return static_cast<char>(file[i]); };
  const auto space = [&](size_t i) {
    return character(i) == ' ' || (character(i) >= '\t' && character(i) <= '\r');
  };
  const auto number = [&] {
    while (at < file.size() && (space(at) || character(at) == '#'))
      if (character(at++) == '#')
        while (at < file.size() && character(at) != '\n') ++at;
    int64_t value = 0;
    const size_t first = at;
    while (at < file.size() && at < first + 6 && character(at) >= '0' && character(at) <= '9')
      value = 10 * value + (character(at++) - '0');
    ensure(at > first, Fault::input, "{}: the PPM header has no number at byte {}", name, at);
    return value;
  };
  const int64_t width = number(), height = number(), largest = number();
  ensure(largest == 255, Fault::input, "{}: largest value {}, expected 255", name, largest);
  ++at;  // one white space
  Image image = blank(height, width, from);
  ensure(file.size() - std::min(file.size(), at) >= image.rgb.size(), Fault::input,
         "{}: {} by {} pixels need {} bytes, the file has {}", name, width, height,
         image.rgb.size(), file.size() - std::min(file.size(), at));
  std::copy_n(raw(file) + at, image.rgb.size(), image.rgb.owned().begin());
  return image;
}

}  // namespace

Image decode_image(Bytes file, const std::string& name, int64_t pixels_max) {
  const Source from{file, name, pixels_max};
  const auto begins = [&](std::string_view magic) {
    return file.size() > magic.size() &&
           std::string_view(reinterpret_cast<const char*>(file.data()), magic.size()) == magic;
  };
  if (begins("\x89PNG")) return decode_png(from);
  if (begins("\xFF\xD8\xFF")) return decode_jpeg(from);
  if (begins("P6")) return decode_ppm(from);
  ensure(!begins("P5"), Fault::input, "{} has 1 channel, expected 3 (red, green, blue)", name);
  fail(Fault::input, "{} is neither PNG, JPEG nor PPM (P6)", name);
}

Image load_image(const std::string& path) {
  std::error_code error;
  ensure(std::filesystem::is_regular_file(path, error), Fault::input, "cannot open image {}", path);
  const uint64_t size = std::filesystem::file_size(path, error);
  ensure(!error && size <= kFileBytesMax, Fault::input, "{} has {} bytes, at most {} are read",
         path, size, kFileBytesMax);
  std::vector<std::byte> bytes(size);
  std::ifstream file(path, std::ios::binary);
  file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(size));
  ensure(file.gcount() == static_cast<std::streamsize>(size), Fault::input,
         "{} could not be read to its end", path);
  return decode_image(bytes, path);
}

}  // namespace tendon
