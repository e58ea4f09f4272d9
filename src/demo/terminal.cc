#include "demo/terminal.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "demo/picture.h"

namespace tendon::demo {
namespace {

constexpr int kRows = 22, kColumns = 44;

// Rows of an RGB picture, two pixels above each other per character.
std::vector<std::string> half_blocks(const Image& image) {
  std::vector<std::string> rows;
  for (int y = 0; y + 1 < image.height; y += 2) {
    std::string& row = rows.emplace_back();
    std::string ink, last;
    for (int x = 0; x < image.width; ++x) {
      const uint8_t* up = image.rgb.data() + 3 * (y * image.width + x);
      const uint8_t* down = up + 3 * image.width;
      ink = fmt::format("\x1b[38;2;{};{};{};48;2;{};{};{}m", up[0], up[1], up[2], down[0], down[1],
                        down[2]);
      if (ink != last) row += ink;
      row += "▀";
      last = ink;
    }
    row += "\x1b[0m";
  }
  return rows;
}

// "Rd" for a red disc.
std::string letters(Kind kind) {
  return {static_cast<char>(name(kind.colour)[0] - 'a' + 'A'), name(kind.shape)[0]};
}

// The same table in cells of two characters. For letters all shapes are discs, as for contact.
std::vector<std::string> letter_rows(const World& world) {
  constexpr double kCell = (1 + 2 * kRoomAround) / kRows;
  const auto cell_of = [](double at) { return static_cast<int>((at + kRoomAround) / kCell); };
  std::vector<std::string> rows;
  for (int row = 0; row < kRows; ++row) {
    std::string& line = rows.emplace_back();
    for (int column = 0; column < kColumns / 2; ++column) {
      const double x = (column + 0.5) * kCell - kRoomAround, y = (row + 0.5) * kCell - kRoomAround;
      std::string cell = x > 0 && x < 1 && y > 0 && y < 1 ? ". " : "  ";
      for (const Object& object : world.objects)
        if (std::hypot(x - object.at.x, y - object.at.y) < kObjectRadius)
          cell = letters(object.kind);
      line += cell;
    }
  }
  const Gripper& gripper = world.gripper;
  rows[static_cast<size_t>(cell_of(gripper.at.y))].replace(
      size_t{2} * static_cast<size_t>(cell_of(gripper.at.x)), 2, gripper.down() ? "++" : "+ ");
  return rows;
}

// What the gripper does, for the space below its view.
std::vector<std::string> numbers(const Record& record) {
  const Action last = record.actions.empty() ? Action{} : record.actions.back();
  const double speed = std::min(kTopSpeed, std::hypot(last[0], last[1]));
  return {fmt::format("step   {} of {}", record.steps(), record.episode.steps_max()),
          fmt::format("time   {:.1f} s", record.steps() * kStep),
          fmt::format("chunk  {}", record.chunks),
          fmt::format("speed  {:.2f} sides/s", speed),
          record.world().gripper.down() ? "gripper closed" : "gripper open",
          record.solved ? "solved" : ""};
}

std::string on_one_line(std::string text) {
  std::ranges::replace_if(
      text, [](unsigned char c) { return c < ' ' || c == 0x7f; }, ' ');
  return text;
}

}  // namespace

void TerminalView::show(const Record& record, const std::string& prompt,
                        const std::string& status) {
  const World& world = record.world();
  std::vector<std::string> rows, beside;
  if (colours_) {
    rows = half_blocks(draw(world, View::top, kColumns));
    beside = half_blocks(draw(world, View::gripper, kColumns / 2));
    beside.emplace_back();
  } else {
    rows = letter_rows(world);
  }
  std::ranges::copy(numbers(record), std::back_inserter(beside));
  beside.resize(kRows);
  rows.push_back(on_one_line(prompt + (status.empty() ? "" : "  " + status)));

  std::string frame;
  if (colours_) {
    if (shown_) frame += fmt::format("\r\x1b[{}A", kRows);
    frame += "\x1b[?25l\x1b[?7l";  // no cursor and no line breaks while we draw
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    std::string line = i < kRows && !beside[i].empty() ? rows[i] + "  " + beside[i] : rows[i];
    if (colours_)
      line += "\x1b[K";
    else
      line.erase(line.find_last_not_of(' ') + 1);
    frame += line + (i < kRows || !colours_ ? "\n" : "");
  }
  if (colours_) frame += "\x1b[?7h\x1b[?25h";
  std::fwrite(frame.data(), 1, frame.size(), to_);
  std::fflush(to_);
  shown_ = true;
}

TerminalView::~TerminalView() {
  if (shown_ && colours_) std::fputs("\n", to_);
  std::fflush(to_);
}

}  // namespace tendon::demo
