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

constexpr size_t kNumberBytesMax = 16 << 20;

std::string read_text(const std::string& path, const std::string& what) {
  std::ifstream file(path, std::ios::binary);
  ensure(file.good(), Fault::input, "{}: cannot open '{}'", what, path);
  ensure(fs::file_size(path) <= kNumberBytesMax, Fault::input, "{}: '{}' is larger than 16 MB",
         what, path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

void flatten(const nlohmann::json& json, std::vector<double>& to, const std::string& what) {
  if (json.is_array()) {
    for (const nlohmann::json& item : json) flatten(item, to, what);
  } else {
    ensure(json.is_number(), Fault::input, "{}: expected numbers in the JSON, got {}", what,
           json.type_name());
    to.push_back(json.get<double>());
  }
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

std::vector<double> read_numbers(const std::string& text, const std::string& what) {
  if (text.ends_with(".npy")) return parse_npy(read_text(text, what), what);
  if (text.ends_with(".json")) {
    const nlohmann::json json = nlohmann::json::parse(read_text(text, what), nullptr, false);
    ensure(!json.is_discarded(), Fault::input, "{}: '{}' is not valid JSON", what, text);
    std::vector<double> numbers;
    flatten(json.is_object() && json.contains("state") ? json.at("state") : json, numbers, what);
    return numbers;
  }
  return parse_text(fs::is_regular_file(text) ? read_text(text, what) : text, what);
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
  nlohmann::json json{{"names", names}, {"actions", nlohmann::json::array()}};
  for (int64_t r = 0; r < actions.horizon; ++r)
    json["actions"].push_back(std::vector<double>(actions.values.begin() + r * actions.dim,
                                                  actions.values.begin() + (r + 1) * actions.dim));
  write_file(path, json.dump(1) + "\n");
}

std::string plot_svg(const Actions& a, const std::vector<std::string>& names) {
  constexpr int kWidth = 300, kHeight = 110, kColumns = 3, kLeft = 50, kTop = 24;
  const int64_t rows = (a.dim + kColumns - 1) / kColumns;
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" "
      "font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" "
      "fill=\"white\"/>\n",
      kColumns * kWidth + 10, rows * kHeight + 10);
  for (int64_t d = 0; d < a.dim; ++d) {
    const auto value = [&](int64_t r) { return a.values[static_cast<size_t>(r * a.dim + d)]; };
    double low = value(0), high = value(0);
    for (int64_t r = 0; r < a.horizon; ++r) {
      low = std::min(low, value(r));
      high = std::max(high, value(r));
    }
    const double span = high > low ? high - low : 1.0;
    const int64_t x0 = d % kColumns * kWidth + kLeft, y0 = d / kColumns * kHeight + kTop;
    const int64_t w = kWidth - kLeft - 10, h = kHeight - kTop - 20;
    svg += fmt::format("<text x=\"{}\" y=\"{}\" font-weight=\"bold\">{}</text>\n", x0, y0 - 6,
                       names[static_cast<size_t>(d)]);
    svg += fmt::format(
        "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"none\" "
        "stroke=\"#ccc\"/>\n",
        x0, y0, w, h);
    svg += fmt::format(
        "<text x=\"{0}\" y=\"{1}\" text-anchor=\"end\">{2:.3g}</text>\n"
        "<text x=\"{0}\" y=\"{3}\" text-anchor=\"end\">{4:.3g}</text>\n",
        x0 - 4, y0 + 10, high, y0 + h, low);
    svg += fmt::format("<text x=\"{}\" y=\"{}\" fill=\"#666\">0 … {} steps</text>\n", x0,
                       y0 + h + 14, a.horizon - 1);
    svg += "<polyline fill=\"none\" stroke=\"#1565c0\" stroke-width=\"1.5\" points=\"";
    for (int64_t r = 0; r < a.horizon; ++r) {
      const double steps = static_cast<double>(std::max<int64_t>(a.horizon - 1, 1));
      const double x = static_cast<double>(x0) + static_cast<double>(w * r) / steps;
      const double y = static_cast<double>(y0 + h) -
                       static_cast<double>(h) * (0.05 + 0.9 * (value(r) - low) / span);
      svg += fmt::format("{:.1f},{:.1f} ", x, y);
    }
    svg += "\"/>\n";
  }
  return svg + "</svg>\n";
}

}  // namespace tendon::cli
