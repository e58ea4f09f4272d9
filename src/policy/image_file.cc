// Image files of the command line and of requests.
#include <jpeglib.h>
#include <png.h>

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "checkpoint/files.h"
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

// One picture. libjpeg reports an error by a jump out of its calls.
class Jpeg {
 public:
  Jpeg() {
    info.err = jpeg_std_error(&errors_.table);
    errors_.table.error_exit = refuse;
    errors_.table.emit_message = warn;
  }
  ~Jpeg() { jpeg_destroy_decompress(&info); }
  Jpeg(const Jpeg&) = delete;
  Jpeg& operator=(const Jpeg&) = delete;

  // Between setjmp and longjmp only libjpeg's own structures are touched: `calls` makes no C++
  // object that would be skipped.
  template <class Calls>
  void call(const std::string& name, Calls calls) {
    if (setjmp(errors_.jump)) fail(Fault::input, "{}: {}", name, errors_.message);
    calls();
  }

  jpeg_decompress_struct info{};

 private:
  struct Errors {
    jpeg_error_mgr table;
    std::jmp_buf jump;
    char message[JMSG_LENGTH_MAX];
  };
  [[noreturn]] static void refuse(j_common_ptr jpeg) {
    auto* errors = reinterpret_cast<Errors*>(jpeg->err);
    (*errors->table.format_message)(jpeg, errors->message);
    std::longjmp(errors->jump, 1);
  }
  // libjpeg warns about a cut file and then invents the rest; here that is an error.
  static void warn(j_common_ptr jpeg, int level) {
    if (level < 0) refuse(jpeg);
  }

  Errors errors_{};
};

Image decode_jpeg(const Source& from) {
  Jpeg jpeg;
  jpeg_decompress_struct& info = jpeg.info;
  jpeg.call(from.name, [&] {
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, raw(from.file), static_cast<unsigned long>(from.file.size()));
    jpeg_read_header(&info, TRUE);
  });
  ensure_colour(info.num_components, from.name);
  Image image = blank(info.image_height, info.image_width, from);
  uint8_t* const rows = image.rgb.owned().data();
  jpeg.call(from.name, [&] {
    info.out_color_space = JCS_RGB;
    jpeg_start_decompress(&info);
    while (info.output_scanline < info.output_height) {
      JSAMPROW row = rows + size_t{3} * info.output_width * info.output_scanline;
      jpeg_read_scanlines(&info, &row, 1);
    }
    jpeg_finish_decompress(&info);
  });
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
  const std::string bytes = read_file(path, kFileBytesMax, Fault::input);
  return decode_image(std::as_bytes(std::span(bytes)), path);
}

}  // namespace tendon
