// The certificate as one HTML page.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "validate/certificate.h"
#include "validate/page.h"

namespace tendon {
namespace {

constexpr double kPlotWidth = 320, kPlotHeight = 120, kInset = 6;

struct Line {
  std::string css;
  std::vector<double> values;
};

// Lines over the rows of a chunk, on one scale, whose ends stand below.
std::string plot(const std::vector<Line>& lines) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const Line& line : lines)
    for (const double v : line.values) low = std::min(low, v), high = std::max(high, v);
  const double span = high > low ? high - low : 1;
  std::string svg = fmt::format(
      "<svg viewBox='0 0 {0} {1}'><rect width='{0}' height='{1}' "
      "class='frame'/>",
      kPlotWidth, kPlotHeight);
  for (const Line& line : lines) {
    svg += fmt::format("<polyline class='{}' points='", line.css);
    const double step =
        (kPlotWidth - 2 * kInset) / std::max(1.0, static_cast<double>(line.values.size()) - 1);
    for (size_t i = 0; i < line.values.size(); ++i)
      svg += fmt::format(
          "{:.1f},{:.1f} ", kInset + step * static_cast<double>(i),
          kPlotHeight - kInset - (line.values[i] - low) / span * (kPlotHeight - 2 * kInset));
    svg += "'/>";
  }
  return svg + fmt::format("</svg><p class='axis'>{:.4g} to {:.4g}</p>", low, high);
}

// Of one action: both chunks over each other, and the difference of every observation.
std::string action_card(const Certificate& c, const DimensionCheck& check) {
  const auto d =
      static_cast<size_t>(std::ranges::find(c.action_names, check.name) - c.action_names.begin());
  const auto over_rows = [&](const auto& value_at) {
    std::vector<double> values;
    for (int64_t row = 0; row < c.rows; ++row)
      values.push_back(value_at(static_cast<size_t>(row * c.dim) + d));
    return values;
  };
  const ChunkPair& first = c.chunks.front();
  std::vector<Line> errors;
  for (const ChunkPair& chunk : c.chunks)
    errors.push_back(
        {"error", over_rows([&](size_t i) { return chunk.got[i] - chunk.expected[i]; })});
  return fmt::format(
      "<section class='{}'><h2>{}</h2><h3>the chunk of the first observation: what it is compared "
      "with and, over "
      "it, {}</h3>{}<h3>difference over the chunk, every observation</h3>{}<dl><dt>max error</dt>"
      "<dd>{:.3g} of {:.3g}</dd><dt>relative L2</dt><dd>{:.3g}</dd><dt>PCC</dt><dd>{:.8f}</dd>"
      "<dt>normalised, rms</dt><dd>{:.3g}</dd><dt>at most</dt><dd>{:.3g}</dd></dl></section>\n",
      check.passed() ? "passed" : "failed", html_text(check.name), html_text(c.identity.backend),
      plot({{"reference", over_rows([&](size_t i) { return first.expected[i]; })},
            {"got", over_rows([&](size_t i) { return first.got[i]; })}}),
      plot(errors), check.apart.max_error, check.apart.scale, check.apart.relative_l2,
      check.apart.pcc, check.normal_rms, check.normal_rms_max);
}

constexpr const char* kChunkStyle = R"(
h3 { color: #888; font-size: .8rem; font-weight: normal; margin: .6rem 0 .2rem; }
main { grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); }
polyline { fill: none; stroke-width: 1.6; } .reference { stroke: #8888; stroke-width: 4; }
.got { stroke: #2a78d0; } .error { stroke: #c0702a; }
table { border-collapse: collapse; } td, th { padding: .15rem .8rem .15rem 0; text-align: left; }
)";

}  // namespace

std::string html_page(const Certificate& c) {
  const ModelIdentity& id = c.identity;
  std::string page =
      html_head("tendon certificate", kChunkStyle) +
      fmt::format(
          "<h1 class='{0}'><strong>{1}: {0}</strong></h1><p>{2} on {3} in {4} ({5}) against "
          "{6}; {7}; {8}; tendon {9}</p><table>",
          c.passed() ? "passed" : "failed", html_text(c.model), html_text(c.model), id.backend,
          id.precision, html_text(id.method), html_text(c.against), c.observations,
          html_text(id.processor), id.version);
  for (const auto& [what, hash] :
       {std::pair("weights", id.weights), std::pair("statistics", id.statistics),
        std::pair("tokenizer", id.tokenizer)})
    page += fmt::format("<tr><td>{}</td><td>{}</td></tr>", what, hash);
  page += "</table><table><tr><th>stage</th><th>relative L2</th><th>at most</th><th>PCC</th></tr>";
  for (const ModuleCheck& s : c.stages)
    page += fmt::format(
        "<tr class='{}'><td>{}</td><td>{:.3g}</td><td>{:.3g}</td><td>{:.8f}</td>"
        "</tr>",
        s.failed.empty() ? "passed" : "failed", html_text(s.module.substr(s.module.find('.') + 1)),
        s.apart.relative_l2, s.gate.relative_l2, s.apart.pcc);
  page += "</table><main>\n";
  for (const DimensionCheck& d : c.dimensions) page += action_card(c, d);
  return page + "</main></html>\n";
}

}  // namespace tendon
