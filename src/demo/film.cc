#include "demo/film.h"

#include <gif_lib.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>

#include "demo/picture.h"
#include "tensor/check.h"

namespace tendon::demo {
namespace {

using Rgb = std::array<uint8_t, 3>;
using Indices = std::vector<GifPixelType>;  // [kHeight, kWidth], into the palette

constexpr int kMargin = 12, kGap = 8, kTextLine = 16, kLetter = 8;
constexpr int kEye = 158;  // a picture of the policy, 63 pixels, 2.5 times as large
constexpr int kTable = 2 * kEye + kGap;
constexpr int kWidth = kMargin + kTable + kGap + kEye + kMargin;
constexpr int kPictures = kMargin + kTextLine;  // their upper edge
constexpr int kHeight = kPictures + kTable + kTextLine + kMargin;
constexpr int kBorder = 5;
constexpr int kPromptLetters = 44, kFrameDelay = 10, kLastDelay = 150;  // 1/100 s

// Of a pixel in a page.
constexpr size_t place(int x, int y) {
  return static_cast<size_t>(y) * size_t{kWidth} + static_cast<size_t>(x);
}

constexpr Rgb kPage = {32, 35, 42}, kPale = {150, 156, 168}, kBright = {240, 240, 236};
constexpr Rgb kGreen = {46, 190, 80}, kRed = {230, 60, 56};

struct Rect {
  int left = 0, top = 0, width = 0, height = 0;
};

// What is drawn on: kWidth x kHeight pixels.
struct Page {
  std::vector<Rgb> pixels = std::vector<Rgb>(size_t{kWidth} * kHeight);

  explicit Page(Rgb border) {
    fill({0, 0, kWidth, kHeight}, border);
    fill({kBorder, kBorder, kWidth - 2 * kBorder, kHeight - 2 * kBorder}, kPage);
  }

  void fill(Rect r, Rgb colour) {
    for (int y = r.top; y < r.top + r.height; ++y)
      for (int x = r.left; x < r.left + r.width; ++x) at(x, y) = colour;
  }

  // Nearest neighbour: the policy's pixels stay visible.
  void paste(const Image& image, int left, int top, int size) {
    for (int y = 0; y < size; ++y)
      for (int x = 0; x < size; ++x) {
        const int row = y * image.height / size, column = x * image.width / size;
        const uint8_t* pixel = image.rgb.data() + 3 * (row * image.width + column);
        at(left + x, top + y) = {pixel[0], pixel[1], pixel[2]};
      }
  }

  void write(std::string_view ascii, int left, int top, Rgb colour) {
    for (const char c : ascii) {
      for (int y = 0; y < kLetter; ++y)
        for (int x = 0; x < kLetter; ++x)
          if (GifAsciiTable8x8[static_cast<uint8_t>(c)][y] >> (7 - x) & 1)
            at(left + x, top + y) = colour;
      left += kLetter;
    }
  }

  Rgb& at(int x, int y) { return pixels[place(x, y)]; }
};

// What the font has, cut to what has room beside the time.
std::string in_ascii(const std::string& prompt) {
  std::string ascii;
  for (const char c : prompt) {
    if ((c & 0xc0) == 0x80) continue;  // within a character of UTF-8
    ascii += c >= ' ' && c <= '~' ? c : '?';
  }
  if (ascii.size() > kPromptLetters) ascii.replace(kPromptLetters - 2, std::string::npos, "..");
  return ascii;
}

// The page after so many steps.
Page page(const Record& record, int steps, const std::string& prompt) {
  const bool last = steps == record.steps();
  const World& world = record.world_after(steps);
  const Observation seen = observe(world, prompt);
  const int eyes = kMargin + kTable + kGap, right = kWidth - kMargin, below = kPictures + kTable;

  const Rgb verdict = record.solved ? kGreen : kRed;
  Page page(last ? verdict : kPage);
  page.paste(draw(world, View::top, kTable), kMargin, kPictures, kTable);
  page.paste(seen.images.at("top"), eyes, kPictures, kEye);
  page.paste(seen.images.at("gripper"), eyes, kPictures + kEye + kGap, kEye);
  page.write(in_ascii(prompt), kMargin, kMargin, kBright);
  page.write("the table", kMargin, below + kGap, kPale);
  page.write("what the policy sees", right - 20 * kLetter, below + kGap, kPale);

  std::string time = fmt::format("{:.1f} s", steps * kStep);
  if (last) time = record.solved ? "solved in " + time : "not solved";
  page.write(time, right - static_cast<int>(time.size()) * kLetter, kMargin,
             last ? verdict : kPale);
  return page;
}

// The largest difference in red, green or blue.
int apart(const Rgb& a, const Rgb& b) {
  return std::max({std::abs(a[0] - b[0]), std::abs(a[1] - b[1]), std::abs(a[2] - b[2])});
}

// At most 255 colours for a film, the most frequent ones first, none within `merge` of another:
// plain areas keep their colour, and no pixel is off by more than `merge`, the least that fits.
class Palette {
 public:
  static constexpr GifPixelType kUnchanged = 255;  // the transparent entry

  explicit Palette(const std::vector<Page>& film) {
    std::map<Rgb, int64_t> pixels;
    auto run = pixels.try_emplace(kPage).first;  // neighbours mostly have one colour
    for (const Page& page : film)
      for (const Rgb& pixel : page.pixels) {
        if (pixel != run->first) run = pixels.try_emplace(pixel).first;
        ++run->second;
      }
    std::vector<Rgb> sorted;
    sorted.reserve(pixels.size());
    for (const auto& [colour, count] : pixels) sorted.push_back(colour);
    std::ranges::stable_sort(sorted, std::greater{}, [&](const Rgb& c) { return pixels.at(c); });
    for (int merge = 0; entries_.empty(); ++merge) choose(sorted, merge);
    for (const Rgb& colour : sorted) {
      const auto nearest = std::ranges::min_element(
          entries_, {}, [&colour](const Rgb& entry) { return apart(entry, colour); });
      entry_of_[colour] = static_cast<GifPixelType>(nearest - entries_.begin());
    }
  }

  Indices indices(const Page& page) const {
    Indices indices;
    auto run = entry_of_.begin();
    for (const Rgb& pixel : page.pixels) {
      if (pixel != run->first) run = entry_of_.find(pixel);
      indices.push_back(run->second);
    }
    return indices;
  }

  std::array<GifColorType, 256> colours() const {
    std::array<GifColorType, 256> colours = {};
    for (size_t i = 0; i < entries_.size(); ++i) {
      const auto [r, g, b] = entries_[i];
      colours[i] = {r, g, b};
    }
    return colours;
  }

 private:
  // Leaves entries_ empty when there are too many.
  void choose(const std::vector<Rgb>& sorted, int merge) {
    for (const Rgb& colour : sorted) {
      if (std::ranges::any_of(entries_, [&](const Rgb& e) { return apart(e, colour) <= merge; }))
        continue;
      if (entries_.size() == kUnchanged) return entries_.clear();
      entries_.push_back(colour);
    }
  }

  std::vector<Rgb> entries_;
  std::map<Rgb, GifPixelType> entry_of_;
};

// The smallest rectangle with all differences; one pixel when there is none, as GIF has no empty
// frame.
Rect changed(const Indices& before, const Indices& now) {
  int left = kWidth, right = -1, top = kHeight, bottom = -1;
  for (int y = 0; y < kHeight; ++y)
    for (int x = 0; x < kWidth; ++x)
      if (const size_t i = place(x, y); before[i] != now[i]) {
        left = std::min(left, x);
        right = std::max(right, x);
        top = std::min(top, y);
        bottom = std::max(bottom, y);
      }
  if (right < 0) return {0, 0, 1, 1};
  return {left, top, right - left + 1, bottom - top + 1};
}

struct Close {
  void operator()(GifFileType* gif) const { EGifCloseFile(gif, nullptr); }
};

int append(GifFileType* gif, const GifByteType* bytes, int count) {
  static_cast<std::string*>(gif->UserData)
      ->append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(count));
  return count;
}

// `error` is a reference: the call whose result this is has set it.
void need(int result, const int& error) {
  ensure(result == GIF_OK, Fault::internal, "giflib does not encode: {}", error);
}

// Shows `page` for delay / 100 s. Only what differs from the page before, if any, is written.
void put(GifFileType& gif, const Indices& before, const Indices& page, int delay) {
  Indices lines = page;
  Rect r = {0, 0, kWidth, kHeight};
  if (!before.empty()) {
    r = changed(before, page);
    for (size_t i = 0; i < page.size(); ++i)
      if (page[i] == before[i]) lines[i] = Palette::kUnchanged;
  }
  const GraphicsControlBlock control = {DISPOSE_DO_NOT, false, delay, Palette::kUnchanged};
  std::array<GifByteType, 4> block = {};
  EGifGCBToExtension(&control, block.data());
  need(EGifPutExtension(&gif, GRAPHICS_EXT_FUNC_CODE, 4, block.data()), gif.Error);
  need(EGifPutImageDesc(&gif, r.left, r.top, r.width, r.height, false, nullptr), gif.Error);
  for (int y = r.top; y < r.top + r.height; ++y)
    need(EGifPutLine(&gif, lines.data() + y * kWidth + r.left, r.width), gif.Error);
}

}  // namespace

std::string film_gif(const Record& record, const std::string& prompt) {
  std::vector<Page> film;
  for (int steps = 0; steps <= record.steps(); ++steps) film.push_back(page(record, steps, prompt));
  const Palette palette(film);
  const std::unique_ptr<ColorMapObject, decltype(&GifFreeMapObject)> colours(
      GifMakeMapObject(256, palette.colours().data()), &GifFreeMapObject);
  std::string bytes;
  int error = 0;
  std::unique_ptr<GifFileType, Close> gif(EGifOpen(&bytes, append, &error));
  ensure(gif != nullptr && colours != nullptr, Fault::internal, "giflib does not open: {}", error);
  EGifSetGifVersion(gif.get(), true);
  need(EGifPutScreenDesc(gif.get(), kWidth, kHeight, 8, 0, colours.get()), gif->Error);
  need(EGifPutExtensionLeader(gif.get(), APPLICATION_EXT_FUNC_CODE), gif->Error);
  need(EGifPutExtensionBlock(gif.get(), 11, "NETSCAPE2.0"), gif->Error);
  need(EGifPutExtensionBlock(gif.get(), 3, "\x01\x00\x00"), gif->Error);  // loop for ever
  need(EGifPutExtensionTrailer(gif.get()), gif->Error);
  Indices before;
  for (const Page& shown : film) {
    Indices now = palette.indices(shown);
    put(*gif, before, now, &shown == &film.back() ? kLastDelay : kFrameDelay);
    before = std::move(now);
  }
  need(EGifCloseFile(gif.release(), &error), error);
  return bytes;
}

}  // namespace tendon::demo
