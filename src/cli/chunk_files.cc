#include "cli/chunk_files.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tensor/check.h"

namespace tendon::cli {
namespace fs = std::filesystem;
namespace {

constexpr size_t kTextBytesMax = 16 << 20;

std::vector<double> parse_json(const std::string& text, const std::string& what) {
  const auto json = nlohmann::ordered_json::parse(text, nullptr, false);
  ensure(!json.is_discarded(), Fault::input, "{}: the file is not valid JSON", what);
  const bool observation = json.is_object() && json.contains("state");
  const auto flat = (observation ? json.at("state") : json).flatten();
  std::vector<double> numbers;
  for (const auto& [path, value] : flat.items()) {
    ensure(value.is_number(), Fault::input, "{}: expected numbers in the JSON, got {} at '{}'",
           what, value.type_name(), path);
    numbers.push_back(value.get<double>());
  }
  return numbers;
}

std::vector<double> parse_text(std::string text, const std::string& what) {
  std::ranges::replace_if(
      text, [](char c) { return c == ',' || c == '[' || c == ']'; }, ' ');
  std::vector<double> numbers;
  std::stringstream words(text);
  for (std::string word; words >> word;) {
    char* end = nullptr;
    numbers.push_back(std::strtod(word.c_str(), &end));
    ensure(*end == '\0', Fault::input, "{}: '{}' is not a number", what, word);
  }
  return numbers;
}

// NumPy's format 1.0: magic, version, header length, a Python literal, raw data.
std::vector<double> parse_npy(const std::string& bytes, const std::string& what) {
  ensure(bytes.size() >= 10 && bytes.starts_with("\x93NUMPY\x01"), Fault::input,
         "{}: not a NumPy file of version 1", what);
  const size_t header = static_cast<uint8_t>(bytes[8]) + 256u * static_cast<uint8_t>(bytes[9]);
  ensure(10 + header <= bytes.size(), Fault::input, "{}: the NumPy file is cut short", what);
  const std::string head = bytes.substr(10, header);
  const bool f4 = head.find("'<f4'") != std::string::npos;
  const bool f8 = head.find("'<f8'") != std::string::npos;
  ensure((f4 || f8) && head.find("'fortran_order': False") != std::string::npos, Fault::input,
         "{}: expected a C-ordered NumPy array of <f4 or <f8, got {}", what, head);
  const size_t width = f4 ? 4 : 8, count = (bytes.size() - 10 - header) / width;
  std::vector<double> numbers(count);
  for (size_t i = 0; i < count; ++i) {
    float narrow = 0;
    std::memcpy(f4 ? static_cast<void*>(&narrow) : &numbers[i],
                bytes.data() + 10 + header + i * width, width);
    if (f4) numbers[i] = double{narrow};
  }
  return numbers;
}

std::string npy(const Actions& actions) {
  std::string head = fmt::format("{{'descr': '<f8', 'fortran_order': False, 'shape': ({}, {}), }}",
                                 actions.horizon, actions.dim);
  head.append(64 - (11 + head.size()) % 64, ' ');
  head += '\n';
  std::string bytes("\x93NUMPY\x01\x00", 8);
  bytes += static_cast<char>(head.size() & 255);
  bytes += static_cast<char>(head.size() >> 8);
  bytes += head;
  const char* data = reinterpret_cast<const char*>(actions.values.data());
  return bytes.append(data, actions.values.size() * sizeof(double));
}

}  // namespace

std::string read_text(const std::string& path, const std::string& what) {
  std::ifstream file(path, std::ios::binary);
  ensure(file.good(), Fault::input, "{}: cannot open '{}'", what, path);
  ensure(fs::file_size(path) <= kTextBytesMax, Fault::input, "{}: '{}' is larger than 16 MB", what,
         path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<std::vector<double>> rows_of(const Actions& a) {
  std::vector<std::vector<double>> rows;
  for (auto row = a.values.begin(); row != a.values.end(); row += a.dim)
    rows.emplace_back(row, row + a.dim);
  return rows;
}

std::vector<double> column_of(const Actions& a, size_t column) {
  std::vector<double> values;
  for (size_t i = column; i < a.values.size(); i += static_cast<size_t>(a.dim))
    values.push_back(a.values[i]);
  return values;
}

std::vector<double> read_numbers(const std::string& text, const std::string& what) {
  if (text.ends_with(".npy")) return parse_npy(read_text(text, what), what);
  if (text.ends_with(".json")) return parse_json(read_text(text, what), what);
  std::error_code none;  // numbers may be too long for a name of a file
  return parse_text(fs::is_regular_file(text, none) ? read_text(text, what) : text, what);
}

void write_file(const std::string& path, const std::string& bytes) {
  const std::string temporary = path + ".part";
  errno = 0;
  std::ofstream file(temporary, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  std::error_code wrong(file.good() ? 0 : errno, std::generic_category());
  if (file.good()) fs::rename(temporary, path, wrong);
  if (!wrong) return;
  std::error_code ignored;  // there may be nothing to remove
  fs::remove(temporary, ignored);
  fail(Fault::input, "cannot write '{}': {}", path, wrong.message());
}

void write_actions(const std::string& path, const Actions& actions,
                   const std::vector<std::string>& names) {
  if (path.ends_with(".npy")) return write_file(path, npy(actions));
  ensure(path.ends_with(".json"), Fault::usage, "--out {}: expected a name ending in .json or .npy",
         path);
  write_file(path, nlohmann::json{{"names", names}, {"actions", rows_of(actions)}}.dump(1) + "\n");
}

std::string plot_svg(const Actions& a, const std::vector<std::string>& names) {
  constexpr int kWidth = 300, kHeight = 110, kColumns = 3, kLeft = 50, kTop = 24;
  constexpr int kInnerWidth = kWidth - kLeft - 10, kInnerHeight = kHeight - kTop - 20;
  const int count = static_cast<int>(names.size());
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" "
      "font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" "
      "fill=\"white\"/>\n",
      kColumns * kWidth + 10, (count + kColumns - 1) / kColumns * kHeight + 10);
  for (int d = 0; d < count; ++d) {
    const std::vector<double> values = column_of(a, static_cast<size_t>(d));
    const auto [low, high] = std::ranges::minmax(values);
    const double span = high > low ? high - low : 1.0;
    svg += fmt::format(
        "<g transform=\"translate({x},{y})\">\n"
        "<text y=\"-6\" font-weight=\"bold\">{name}</text>\n"
        "<rect width=\"{width}\" height=\"{height}\" fill=\"none\" stroke=\"#ccc\"/>\n"
        "<text x=\"-4\" y=\"10\" text-anchor=\"end\">{high:.3g}</text>\n"
        "<text x=\"-4\" y=\"{height}\" text-anchor=\"end\">{low:.3g}</text>\n"
        "<text y=\"{below}\" fill=\"#666\">0 … {last} steps</text>\n"
        "<polyline fill=\"none\" stroke=\"#1565c0\" stroke-width=\"1.5\" points=\"",
        fmt::arg("x", d % kColumns * kWidth + kLeft), fmt::arg("y", d / kColumns * kHeight + kTop),
        fmt::arg("name", names[static_cast<size_t>(d)]), fmt::arg("width", kInnerWidth),
        fmt::arg("height", kInnerHeight), fmt::arg("high", high), fmt::arg("low", low),
        fmt::arg("below", kInnerHeight + 14), fmt::arg("last", a.horizon - 1));
    const double steps = static_cast<double>(std::max<int64_t>(a.horizon - 1, 1));
    for (size_t r = 0; r < values.size(); ++r)
      svg += fmt::format("{:.1f},{:.1f} ", kInnerWidth * static_cast<double>(r) / steps,
                         kInnerHeight * (0.95 - 0.9 * (values[r] - low) / span));
    svg += "\"/>\n</g>\n";
  }
  return svg + "</svg>\n";
}

}  // namespace tendon::cli
