#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "demo/film.h"
#include "demo/picture.h"
#include "tensor/xml.h"

namespace tendon::demo {
namespace {

constexpr double kSide = 440, kLeft = 20, kTop = 65;  // the table on the page
constexpr size_t kTitleCharacters = 46;
constexpr double kMoved = 0.005;  // less is no push worth drawing

double x_of(Point p) { return kLeft + kSide * p.x; }
double y_of(Point p) { return kTop + kSide * p.y; }

// The first characters of UTF-8 text.
std::string shortened(const std::string& text) {
  size_t characters = 0;
  for (size_t i = 0; i < text.size(); ++i)
    if ((text[i] & 0xc0) != 0x80 && characters++ == kTitleCharacters)
      return text.substr(0, i) + "…";
  return text;
}

std::string hex_of(Colour colour) {
  std::string hex = "#";
  for (const double part : kPaints[static_cast<size_t>(colour)])
    hex += fmt::format("{:02x}", static_cast<int>(part));
  return hex;
}

// The outline that draw() gives it; `style` are further attributes.
std::string outline(Kind kind, Point at, double inset, std::string_view style) {
  const double x = x_of(at), y = y_of(at), radius = kSide * kObjectRadius - inset;
  switch (kind.shape) {
    case Shape::disc:
      return fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{:.1f}\" {}/>\n", x, y, radius,
                         style);
    case Shape::square: {
      const double half = kSide * kSquareHalf - inset;
      return fmt::format(
          "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" {}/>\n", x - half,
          y - half, 2 * half, 2 * half, style);
    }
    case Shape::triangle: {
      const double inner = kSide * kTriangleInner - inset, half = inner * std::sqrt(3.0);
      return fmt::format("<polygon points=\"{:.1f},{:.1f} {:.1f},{:.1f} {:.1f},{:.1f}\" {}/>\n", x,
                         y - 2 * inner, x + half, y + inner, x - half, y + inner, style);
    }
  }
  return "";
}

std::string polyline(const std::vector<Point>& points, std::string_view style) {
  std::string svg = "<polyline fill=\"none\" points=\"";
  for (const Point p : points) svg += fmt::format("{:.1f},{:.1f} ", x_of(p), y_of(p));
  svg.pop_back();
  return svg + fmt::format("\" {}/>\n", style);
}

std::string fingers(const Gripper& gripper, std::string_view style) {
  std::string svg;
  for (const double side : {-1.0, 1.0}) {
    const Point corner =
        gripper.at + Point{side * finger_distance(gripper) - kFingerHalfWidth, -kFingerHalfLength};
    svg += fmt::format(
        "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" rx=\"2\" {}/>\n",
        x_of(corner), y_of(corner), kSide * 2 * kFingerHalfWidth, kSide * 2 * kFingerHalfLength,
        style);
  }
  return svg;
}

// From light to dark over the episode; share in [0, 1].
std::string time_grey(double share) {
  const int level = static_cast<int>(std::lround(235 - 215 * share));
  return fmt::format("#{0:02x}{0:02x}{0:02x}", level);
}

std::string goal(const Task& task) {
  if (task.verb == Verb::reach) return "";
  const bool upright = task.edge == Edge::left || task.edge == Edge::right;
  const double far = task.edge == Edge::right || task.edge == Edge::bottom ? kSide : -6;
  return fmt::format("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" rx=\"3\" fill=\"{}\"/>\n",
                     upright ? kLeft + far : kLeft, upright ? kTop : kTop + far,
                     upright ? 6 : kSide, upright ? kSide : 6, hex_of(task.target.colour));
}

// Where objects lie, and of those that were pushed where they began.
std::string objects(const Record& record) {
  const std::vector<Object>&begin = record.episode.world.objects, &end = record.world().objects;
  std::string ghosts, solid;
  for (size_t i = 0; i < end.size(); ++i) {
    const Kind kind = end[i].kind;
    const std::string colour = hex_of(kind.colour);
    solid += outline(kind, end[i].at, 0.75,
                     fmt::format("fill=\"{}\" stroke=\"#20242c\" stroke-width=\"1.5\"", colour));
    if (length(end[i].at - begin[i].at) < kMoved) continue;
    std::vector<Point> way = {begin[i].at};
    for (const World& world : record.worlds) way.push_back(world.objects[i].at);
    ghosts += outline(kind, begin[i].at, 1,
                      fmt::format("class=\"ghost\" fill=\"{0}\" fill-opacity=\"0.12\" "
                                  "stroke=\"{0}\" stroke-width=\"2\" stroke-dasharray=\"5 4\"",
                                  colour));
    ghosts += polyline(way, fmt::format("class=\"pushed\" stroke=\"{}\" stroke-width=\"5\" "
                                        "stroke-opacity=\"0.35\" stroke-linecap=\"round\"",
                                        colour));
  }
  return ghosts + solid;
}

std::string gripper_way(const Record& record) {
  const Gripper& begin = record.episode.world.gripper;
  std::vector<Point> way = {begin.at};
  for (const World& world : record.worlds) way.push_back(world.gripper.at);
  std::string svg = fingers(begin, "fill=\"white\" stroke=\"#20242c\"");
  svg += fingers(record.world().gripper, "fill=\"#20242c\" stroke=\"white\"");
  svg += polyline(way, "class=\"way\" stroke=\"#20242c\" stroke-opacity=\"0.6\"");
  for (size_t i = 0; i < way.size(); ++i) {
    const double share = static_cast<double>(i) / std::max(1, record.steps());
    svg += fmt::format(
        "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.2\" fill=\"{}\" stroke=\"{}\" "
        "stroke-width=\"0.8\"/>\n",
        x_of(way[i]), y_of(way[i]), time_grey(share), share < 0.6 ? "#20242c" : "white");
  }
  return svg;
}

std::string count(int number, std::string_view thing) {
  return fmt::format("{} {}{}", number, thing, number == 1 ? "" : "s");
}

}  // namespace

std::string sketch_svg(const Record& record, const std::string& prompt) {
  const double seconds = record.steps() * kStep;
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"480\" height=\"540\" "
      "viewBox=\"0 0 480 540\" font-family=\"system-ui, sans-serif\" font-size=\"13\">\n"
      "<title>{}</title>\n"
      "<defs><linearGradient id=\"time\"><stop stop-color=\"{}\"/>"
      "<stop offset=\"1\" stop-color=\"{}\"/></linearGradient></defs>\n"
      "<rect width=\"480\" height=\"540\" rx=\"10\" fill=\"white\"/>\n",
      xml_text(prompt), time_grey(0), time_grey(1));
  svg += fmt::format(
      "<text x=\"{}\" y=\"31\" font-size=\"16\" font-weight=\"600\" fill=\"#16181d\">{}</text>\n",
      kLeft, xml_text(shortened(prompt)));
  svg += fmt::format("<text x=\"{}\" y=\"52\" fill=\"{}\">{} in {} ({:.1f} s), {}</text>\n", kLeft,
                     record.solved ? "#1a7f37" : "#c4281c", record.solved ? "solved" : "not solved",
                     count(record.steps(), "step"), seconds, count(record.chunks, "chunk"));
  svg += fmt::format(
      "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"#eceef2\" stroke=\"#b4bac6\"/>\n",
      kLeft, kTop, kSide, kSide);
  svg += goal(record.episode.task) + objects(record) + gripper_way(record);
  svg += fmt::format(
      "<g fill=\"#5a606c\"><text x=\"{}\" y=\"530\">the gripper, a dot every 0.1 s</text>\n"
      "<text x=\"312\" y=\"530\" text-anchor=\"end\">0 s</text>\n"
      "<rect x=\"320\" y=\"520\" width=\"100\" height=\"10\" rx=\"5\" fill=\"url(#time)\" "
      "stroke=\"#5a606c\" stroke-width=\"0.7\"/>\n"
      "<text x=\"460\" y=\"530\" text-anchor=\"end\">{:.1f} s</text></g>\n",
      kLeft, seconds);
  return svg + "</svg>\n";
}

}  // namespace tendon::demo
