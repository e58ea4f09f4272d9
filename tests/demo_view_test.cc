// labels: unit
// What shows an episode: the film read back with giflib, the sketch as XML, the terminal's bytes.
#include <fmt/format.h>
#include <gif_lib.h>

#include <cmath>
#include <memory>
#include <regex>

#include "../tools/train_demo/teacher.h"
#include "demo/film.h"
#include "demo/picture.h"
#include "demo/terminal.h"
#include "test_files.h"

namespace tendon::demo {
namespace {

constexpr int kChunk = 5;

Record played(const Episode& episode, const std::function<Action(const World&)>& act,
              const std::function<void(const Record&)>& watch = {}) {
  World ahead = episode.world;  // a policy sees pictures only: it keeps a table of its own
  const Policy policy = [&](const Observation&, const auto&, uint64_t) {
    std::vector<double> chunk;
    for (int i = 0; i < kChunk; ++i) {
      const Action action = act(ahead);
      ahead.step(action);
      chunk.insert(chunk.end(), action.begin(), action.end());
    }
    return chunk;
  };
  return run_episode(episode, policy, {.rows = kChunk, .watch = watch}, 1);
}

Episode episode_of(const std::string& prompt, uint64_t seed = 3) {
  Random random(seed);
  return new_episode(random, parse_task(prompt));
}

// The expert does what the prompt says.
Record expert_record(const std::string& prompt, const std::function<void(const Record&)>& w = {}) {
  const Episode episode = episode_of(prompt);
  return played(
      episode, [&](const World& now) { return expert(now, episode.task); }, w);
}

// All over the table for as long as an episode lasts, without solving it.
Record wandering_record() {
  Episode episode = episode_of("push the red disc to the left edge", 8);
  episode.task.target = {Colour::red, Shape::triangle};  // is not there
  int step = 0;
  return played(episode, [&](const World&) {
    ++step;
    return Action{0.5 * std::cos(0.13 * step), 0.5 * std::sin(0.21 * step),
                  step % 20 < 10 ? -2.0 : 2.0};
  });
}

const std::string kPush = "push the magenta triangle to the bottom edge";

struct Close {
  void operator()(GifFileType* gif) const { DGifCloseFile(gif, nullptr); }
};
using Gif = std::unique_ptr<GifFileType, Close>;

// The film as giflib reads it.
Gif filmed(const Record& record) {
  const Scratch scratch("film");
  const auto path = scratch.write("a.gif", film_gif(record, kPush));
  int error = 0;
  Gif gif(DGifOpenFileName(path.c_str(), &error));
  EXPECT_NE(gif, nullptr) << GifErrorString(error);
  EXPECT_EQ(DGifSlurp(gif.get()), GIF_OK);
  return gif;
}

GraphicsControlBlock control(const Gif& gif, int frame) {
  GraphicsControlBlock block;
  EXPECT_EQ(DGifSavedExtensionToGCB(gif.get(), frame, &block), GIF_OK);
  return block;
}

// Lays a frame over the picture so far.
void lay(const Gif& gif, int frame, Image& picture) {
  const SavedImage& saved = gif->SavedImages[frame];
  const GifImageDesc& d = saved.ImageDesc;
  for (int i = 0; i < d.Width * d.Height; ++i) {
    const int index = saved.RasterBits[i];
    if (index == control(gif, frame).TransparentColor) continue;
    const GifColorType& c = gif->SColorMap->Colors[index];
    const int at = (d.Top + i / d.Width) * picture.width + d.Left + i % d.Width;
    const std::array<uint8_t, 3> rgb = {c.Red, c.Green, c.Blue};
    std::ranges::copy(rgb, picture.rgb.owned().begin() + 3 * at);
  }
}

// The largest difference in a channel to `drawn`, enlarged to size x size pixels at left, top.
int largest_error(const Image& film, const Image& drawn, int left, int top, int size) {
  int largest = 0;
  for (int y = 0; y < size; ++y)
    for (int x = 0; x < 3 * size; ++x) {
      const int row = y * drawn.height / size, column = x / 3 * drawn.width / size;
      const int is = film.rgb[static_cast<size_t>(3 * ((top + y) * film.width + left) + x)];
      const int was = drawn.rgb[static_cast<size_t>(3 * (row * drawn.width + column) + x % 3)];
      largest = std::max(largest, std::abs(is - was));
    }
  return largest;
}

TEST(Film, has_a_frame_per_step_and_loops) {
  const Record record = expert_record(kPush);
  ASSERT_TRUE(record.solved);
  ASSERT_LT(record.steps(), kPushSteps);  // it ended there
  const Gif gif = filmed(record);
  EXPECT_EQ(gif->SWidth, 514);
  EXPECT_EQ(gif->SHeight, 380);
  ASSERT_EQ(gif->ImageCount, record.steps() + 1);
  for (int i = 0; i < gif->ImageCount; ++i)
    EXPECT_EQ(control(gif, i).DelayTime, i == record.steps() ? 150 : 10) << i;
  const SavedImage& first = gif->SavedImages[0];
  ASSERT_GE(first.ExtensionBlockCount, 2);
  const auto text = [&](int block) {
    const ExtensionBlock& b = first.ExtensionBlocks[block];
    return std::string(reinterpret_cast<const char*>(b.Bytes), static_cast<size_t>(b.ByteCount));
  };
  EXPECT_EQ(text(0), "NETSCAPE2.0");
  EXPECT_EQ(text(1), std::string("\x01\x00\x00", 3));
}

TEST(Film, shows_what_the_cameras_see) {
  for (const Record& record : {expert_record(kPush), wandering_record()}) {
    const Gif gif = filmed(record);
    ASSERT_EQ(gif->ImageCount, record.steps() + 1);
    Image picture = {.height = 380, .width = 514, .rgb = std::vector<uint8_t>(3 * 380 * 514)};
    for (int i = 0; i < gif->ImageCount; ++i) {
      lay(gif, i, picture);
      if (i % 8 != 0 && i < record.steps()) continue;
      const World& world =
          i == 0 ? record.episode.world : record.worlds[static_cast<size_t>(i - 1)];
      EXPECT_LE(largest_error(picture, draw(world, View::top, 324), 12, 28, 324), 10) << i;
      EXPECT_LE(largest_error(picture, draw(world, View::top), 344, 28, 158), 10) << i;
      EXPECT_LE(largest_error(picture, draw(world, View::gripper), 344, 194, 158), 10) << i;
    }
    const int red = picture.rgb[0], green = picture.rgb[1];  // of the border
    EXPECT_EQ(green > 2 * red, record.solved);
    EXPECT_EQ(red > 2 * green, !record.solved);
  }
}

TEST(Film, of_the_longest_episode_is_small) {
  const Record record = wandering_record();
  ASSERT_EQ(record.steps(), kPushSteps);
  EXPECT_LT(film_gif(record, kPush).size(), 300'000u);
  const Gif gif = filmed(record);
  for (int i = 1; i + 1 < gif->ImageCount; ++i) {  // the last one has the border
    const GifImageDesc& d = gif->SavedImages[i].ImageDesc;
    EXPECT_LT(d.Width * d.Height, 514 * 380) << i;
  }
}

TEST(Film, writes_only_ascii_and_cuts_long_prompts) {
  const Record record = expert_record("reach the red disc");
  const auto film = [&](const std::string& prompt) { return film_gif(record, prompt); };
  EXPECT_EQ(film("grün\n"), film("gr?n?"));
  EXPECT_NE(film("grün\n"), film("gr?n"));
  EXPECT_EQ(film(std::string(45, 'x')), film(std::string(42, 'x') + ".."));
  EXPECT_NE(film(std::string(44, 'x')), film(std::string(42, 'x') + ".."));
}

TEST(Film, of_nothing_is_one_frame) {
  const Gif gif = filmed({.episode = episode_of(kPush)});
  ASSERT_EQ(gif->ImageCount, 1);
  EXPECT_EQ(control(gif, 0).DelayTime, 150);
}

TEST(Sketch, shows_the_way_of_gripper_and_object) {
  const Record record = expert_record(kPush);
  const std::string svg = sketch_svg(record, kPush);
  EXPECT_EQ(count_of(svg, ">" + kPush + "<"), 2);  // the document's title and the picture's
  EXPECT_TRUE(says(svg, fmt::format("solved in {} steps ({:.1f} s), {} chunks<", record.steps(),
                                    0.1 * record.steps(), record.chunks)));
  EXPECT_EQ(svg.find("not solved"), std::string::npos);
  EXPECT_EQ(count_of(svg, "r=\"3.2\""), record.steps() + 1);
  EXPECT_EQ(count_of(svg, "class=\"way\""), 1);
  EXPECT_EQ(count_of(svg, "class=\"ghost\""), 1);
  EXPECT_EQ(count_of(svg, "class=\"pushed\""), 1);
  const Point end = record.world().gripper.at;
  EXPECT_TRUE(says(svg, fmt::format("cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.2\" fill=\"#141414\"",
                                    20 + 440 * end.x, 65 + 440 * end.y)));
  EXPECT_TRUE(says(svg, "y=\"505\" width=\"440\" height=\"6\" rx=\"3\" fill=\"#d038c4\""))
      << "the edge to push to";
}

TEST(Sketch, of_a_reach_has_neither_ghost_nor_edge) {
  const std::string svg = sketch_svg(expert_record("reach the red disc"), "reach the red disc");
  EXPECT_EQ(count_of(svg, "class=\"ghost\""), 0);
  EXPECT_EQ(count_of(svg, " rx=\"3\""), 0);
}

TEST(Sketch, tells_failure_and_singular) {
  Record record = wandering_record();
  EXPECT_TRUE(says(sketch_svg(record, ""), ">not solved in 80 steps (8.0 s), 16 chunks<"));
  record.actions.resize(1);
  record.worlds.resize(1);
  record.chunks = 1;
  EXPECT_TRUE(says(sketch_svg(record, ""), ">not solved in 1 step (0.1 s), 1 chunk<"));
  EXPECT_TRUE(says(sketch_svg({.episode = record.episode}, ""),
                   ">not solved in 0 steps (0.0 s), 0 chunks<"));
}

TEST(Sketch, escapes_and_cuts_the_prompt) {
  const Record record = {.episode = episode_of(kPush)};
  const std::string svg = sketch_svg(record, "a <b> & \"c\"\x1b\n");
  EXPECT_EQ(count_of(svg, ">a &lt;b&gt; &amp; &quot;c&quot;  <"), 2);
  std::string accents, cut;
  for (int i = 0; i < 60; ++i) accents += "é";
  for (int i = 0; i < 46; ++i) cut += "é";
  EXPECT_EQ(count_of(sketch_svg(record, accents), ">" + cut + "…<"), 1);
  EXPECT_EQ(count_of(sketch_svg(record, cut), ">" + cut + "<"), 2);
}

// Left, top, right, bottom of what is drawn on the table, in pixels.
std::array<double, 4> seen_box(const Image& image, int from) {
  std::array<double, 4> box = {1e9, 1e9, -1e9, -1e9};
  for (int y = from; y < image.height - from; ++y)
    for (int x = from; x < image.width - from; ++x) {
      if (image.rgb[static_cast<size_t>(3 * (y * image.width + x))] < 150) continue;  // the rim
      box = {std::min(box[0], double(x)), std::min(box[1], double(y)), std::max(box[2], x + 1.0),
             std::max(box[3], y + 1.0)};
    }
  return box;
}

TEST(Sketch, outlines_are_those_of_the_picture) {
  for (const Shape shape : {Shape::disc, Shape::square, Shape::triangle}) {
    Record record;
    record.episode.world.objects = {{{Colour::red, shape}, {0.4, 0.7}}};
    // 440 pixels per side as in the sketch; the room around takes 22.
    const auto seen = seen_box(draw(record.episode.world, View::top, 484), 66);
    const std::string svg = sketch_svg(record, "");
    // The numbers of the red shape that has these attributes, each # one number.
    const auto numbers_in = [&](const std::string& attributes) {
      const std::regex pattern(std::regex_replace(attributes, std::regex("#"), "([0-9.]+)") +
                               "\"[^>]* fill=\"#e2282c\"");
      std::vector<double> found;
      if (std::smatch m; std::regex_search(svg, m, pattern))
        for (size_t i = 1; i < m.size(); ++i) found.push_back(std::stod(m[i]));
      return found;
    };
    std::array<double, 4> box = {};
    if (const auto v = numbers_in("cx=\"#\" cy=\"#\" r=\"#"); !v.empty())
      box = {v[0] - v[2], v[1] - v[2], v[0] + v[2], v[1] + v[2]};
    else if (const auto r = numbers_in("x=\"#\" y=\"#\" width=\"#\" height=\"#"); !r.empty())
      box = {r[0], r[1], r[0] + r[2], r[1] + r[3]};
    else if (const auto t = numbers_in("points=\"#,# #,# #,#"); !t.empty())
      box = {t[4], t[1], t[2], t[3]};
    for (size_t i = 0; i < 4; ++i)
      EXPECT_NEAR(box[i] - (i % 2 ? 65 : 20), seen[i] - 22, 1.5) << name(shape) << i;
  }
}

// What the view writes for a whole episode.
std::string terminal_bytes(const std::string& prompt, bool colours) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::tmpfile(), &std::fclose);
  {
    TerminalView view(file.get(), colours);
    expert_record("reach the red disc", [&](const Record& r) { view.show(r, prompt, "3 of 4"); });
  }
  std::string bytes(static_cast<size_t>(std::ftell(file.get())), '\0');
  std::rewind(file.get());
  EXPECT_EQ(std::fread(bytes.data(), 1, bytes.size(), file.get()), bytes.size());
  return bytes;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::stringstream stream(text);
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

TEST(Terminal, draws_every_frame_over_the_one_before) {
  const Record record = expert_record("reach the red disc");
  const std::string bytes = terminal_bytes("hallo\x1b[2J", true);
  const int64_t frames = record.steps();
  EXPECT_EQ(count_of(bytes, "\r\x1b[22A"), frames - 1);
  EXPECT_EQ(count_of(bytes, "hallo [2J  3 of 4\x1b[K"), frames);  // no escape of the prompt
  EXPECT_EQ(count_of(bytes, "\n"), 22 * frames + 1);
  EXPECT_EQ(count_of(bytes, "▀"), (44 * 22 + 22 * 11) * frames);
  EXPECT_EQ(count_of(bytes, "▀\x1b[0m"), (22 + 11) * frames);
  EXPECT_TRUE(bytes.ends_with("\x1b[?7h\x1b[?25h\n"));
  EXPECT_EQ(count_of(bytes, "\x1b[?25l"), count_of(bytes, "\x1b[?25h"));

  const auto lines = lines_of(bytes);
  const Image top = draw(record.worlds[0], View::top, 44);
  EXPECT_EQ(count_of(lines[0], "▀"), 66);
  const auto ink = fmt::format("\x1b[?7l\x1b[38;2;{};{};{};48;2;{};{};{}m▀", top.rgb[0], top.rgb[1],
                               top.rgb[2], top.rgb[132], top.rgb[133], top.rgb[134]);
  EXPECT_TRUE(says(lines[0], ink));
  EXPECT_TRUE(says(lines[12], "step   1 of 40"));
  EXPECT_TRUE(says(lines[lines.size() - 6], "solved"));
}

TEST(Terminal, without_colours_is_plain_text) {
  const Record record = expert_record("reach the red disc");
  const std::string bytes = terminal_bytes("hallo\x1b\t", false);
  for (const char c : bytes) ASSERT_TRUE(c == '\n' || (c >= ' ' && c <= '~')) << int{c};
  const auto lines = lines_of(bytes);
  ASSERT_EQ(lines.size(), 23u * static_cast<size_t>(record.steps()));
  EXPECT_EQ(lines.back(), "hallo    3 of 4");
  // The gripper, and around it the disc that it was to reach, in cells of 1/20 side.
  const World& world = record.world();
  const auto cell = [](double at) { return static_cast<size_t>((at + 0.05) / 0.05); };
  const std::string& row = lines[lines.size() - 23 + cell(world.gripper.at.y)];
  const size_t column = 2 * cell(world.gripper.at.x);
  EXPECT_EQ(row.substr(column, 2), "++");
  EXPECT_EQ(row.substr(column - 2, 2), "Rd");
  EXPECT_EQ(count_of(lines[22 - 22 + cell(record.worlds[0].gripper.at.y)], "++"), 0);
}

TEST(Terminal, without_a_frame_writes_nothing) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::tmpfile(), &std::fclose);
  { TerminalView view(file.get(), true); }
  EXPECT_EQ(std::ftell(file.get()), 0);
}

}  // namespace
}  // namespace tendon::demo
