#include "cli/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <optional>
#include <string_view>

#include "tensor/percentile.h"

namespace tendon::cli {
namespace {

std::vector<std::string> split(std::string_view text, std::string_view separator) {
  std::vector<std::string> parts;
  for (size_t end; (end = text.find(separator)) != text.npos;
       text.remove_prefix(end + separator.size()))
    parts.emplace_back(text.substr(0, end));
  parts.emplace_back(text);
  return parts;
}

std::string number(double value, const std::string& format) {
  const auto scaled = [&](double factor) {
    return fmt::format(fmt::runtime("{:" + format.substr(0, format.size() - 1) + "f}"),
                       factor * value);
  };
  switch (format.back()) {
    case '%': return scaled(1e2) + "%";
    case 'k': return scaled(1e-3);
    case 'M': return scaled(1e-6);
    case 'T': return scaled(1e-12);
    case 'd': return fmt::format("{:.0f}", value);
    default: return fmt::format(fmt::runtime("{:" + format + "}"), value);
  }
}

std::string formatted(const Json& value, const std::string& format) {
  if (value.is_null()) return "–";
  if (value.is_boolean()) return split(format, "|").at(value.get<bool>() ? 0 : 1);
  return format.empty() ? shown(value) : number(value.get<double>(), format);
}

// Nothing when a value is missing.
std::optional<std::string> filled(std::string_view text, const Json& record,
                                  const std::string& name) {
  std::string out;
  for (size_t open; (open = text.find('{')) != text.npos;) {
    const size_t close = text.find('}', open);
    const std::vector<std::string> place = split(text.substr(open + 1, close - open - 1), ":");
    out += text.substr(0, open);
    text.remove_prefix(close + 1);
    const Json::json_pointer path("/" + place[0]);
    if (place[0].empty())
      out += name;
    else if (record.contains(path))
      out += formatted(record.at(path), place.size() > 1 ? place[1] : "");
    else
      return {};
  }
  return out.append(text);
}

// Characters of UTF-8.
size_t width_of(const std::string& text) {
  return static_cast<size_t>(
      std::ranges::count_if(text, [](char c) { return (c & 0xc0) != 0x80; }));
}

}  // namespace

std::string shown(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  const std::string text = value.dump();
  return text.size() <= 100 ? text : text.substr(0, 97) + "...";
}

std::string lines(const std::string& text, const Json& record) {
  std::string out;
  for (const std::string& line : split(text, "\n"))
    if (const auto full = filled(line, record, "")) out += *full + "\n";
  return out;
}

std::string table(const std::string& row, const Json& records) {
  std::vector<std::string> out(static_cast<size_t>(std::ssize(records) + 1));
  for (const std::string& column : split(row, " | ")) {
    const size_t open = column.find('{');
    const std::string title = column.substr(0, open), place = column.substr(open);
    const bool numbers = place.find(':') != place.npos && place.find('|') == place.npos;
    std::vector<std::string> cells = {title.substr(0, title.find_last_not_of(' ') + 1)};
    for (const auto& [name, record] : records.items())
      cells.push_back(filled(place, record, name).value_or(""));
    size_t width = 0;
    for (const std::string& cell : cells) width = std::max(width, width_of(cell));
    for (size_t i = 0; i < cells.size(); ++i) {
      const std::string space(width - width_of(cells[i]), ' ');
      out[i] += (numbers ? space + cells[i] : cells[i] + space) + "  ";
    }
  }
  std::string text;
  for (const std::string& line : out)
    if (const size_t length = line.find_last_not_of(' ') + 1; length > 0)
      text += line.substr(0, length) + "\n";
  return text;
}

void print_report(bool as_json, const Json& json, const std::string& text) {
  fmt::print("{}", as_json ? json.dump() + "\n" : text);
  std::fflush(stdout);  // whole, where standard error goes to the same place
}

Json memory_json(const DeviceMemory& m) {
  Json json{{"size", {{"dram", m.dram_size}, {"l1_of_a_core", m.l1_size}}},
            {"in_use", {{"dram", m.dram}, {"l1_of_a_core", m.l1}}}};
  if (m.dram_peak && m.l1_peak)
    json["peak"] = {{"dram", *m.dram_peak}, {"l1_of_a_core", *m.l1_peak}};
  return json;
}

std::array<double, 3> p50_p90_p99(std::vector<double> values) {
  std::ranges::sort(values);
  const auto at = [&](double part) {
    return values.empty() ? 0.0 : percentile(std::span<const double>(values), part);
  };
  return {at(0.5), at(0.9), at(0.99)};
}

}  // namespace tendon::cli
