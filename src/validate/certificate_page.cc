// The certificate as one HTML page.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "tensor/xml.h"
#include "validate/certificate.h"
#include "validate/page.h"

namespace tendon {
namespace {

constexpr double kPlotWidth = 320, kPlotHeight = 120, kInset = 6;

struct Line {
  std::string css;
  std::vector<double> values;
};

// Lines over the rows of a chunk, on one scale, whose ends stand below; with a line at 0 when that
// belongs to the scale.
std::string plot(const std::vector<Line>& lines, bool with_zero = false) {
  double low = with_zero ? 0 : std::numeric_limits<double>::infinity();
  double high = with_zero ? 0 : -low;
  for (const Line& line : lines)
    for (const double v : line.values) low = std::min(low, v), high = std::max(high, v);
  const double span = high > low ? high - low : 1;
  const auto y_of = [&](double v) {
    return kPlotHeight - kInset - (v - low) / span * (kPlotHeight - 2 * kInset);
  };
  std::string svg = fmt::format(
      "<svg viewBox='0 0 {0} {1}'><rect width='{0}' height='{1}' "
      "class='frame'/>",
      kPlotWidth, kPlotHeight);
  if (with_zero)
    svg += fmt::format("<line class='zero' x1='0' x2='{}' y1='{:.1f}' y2='{:.1f}'/>", kPlotWidth,
                       y_of(0), y_of(0));
  for (const Line& line : lines) {
    svg += fmt::format("<polyline class='{}' points='", line.css);
    const double step =
        (kPlotWidth - 2 * kInset) / std::max(1.0, static_cast<double>(line.values.size()) - 1);
    for (size_t i = 0; i < line.values.size(); ++i)
      svg += fmt::format("{:.1f},{:.1f} ", kInset + step * static_cast<double>(i),
                         y_of(line.values[i]));
    svg += "'/>";
  }
  return svg + fmt::format("</svg><p class='axis'>{:.4g} to {:.4g}</p>", low, high);
}

// Of one action: both chunks over each other, and the difference of every observation.
std::string action_card(const Certificate& c, const Compared& other, const DimensionCheck& check) {
  const auto d =
      static_cast<size_t>(std::ranges::find(c.action_names, check.name) - c.action_names.begin());
  const auto over_rows = [&](const auto& value_at) {
    std::vector<double> values;
    for (int64_t row = 0; row < c.rows; ++row)
      values.push_back(value_at(static_cast<size_t>(row * c.dim) + d));
    return values;
  };
  std::vector<Line> errors;
  for (size_t o = 0; o < c.chunks.size(); ++o)
    errors.push_back(
        {"error", over_rows([&](size_t i) { return c.chunks[o][i] - other.chunks[o][i]; })});
  return fmt::format(
      "<section class='{}'><h2>{}</h2><h3>the chunk of the first observation: what it is compared "
      "with and, over "
      "it, {}</h3>{}<h3>difference over the chunk, every observation</h3>{}<dl><dt>max error</dt>"
      "<dd>{:.3g} of {:.3g}</dd><dt>relative L2</dt><dd>{:.3g}</dd><dt>PCC</dt><dd>{:.8f}</dd>"
      "<dt>normalised, rms</dt><dd>{:.3g}</dd><dt>at most</dt><dd>{:.3g}</dd></dl></section>\n",
      check.passed() ? "passed" : "failed", xml_text(check.name), xml_text(c.identity.backend),
      plot({{"reference", over_rows([&](size_t i) { return other.chunks[0][i]; })},
            {"got", over_rows([&](size_t i) { return c.chunks[0][i]; })}}),
      plot(errors, true), check.apart.max_error, check.apart.scale, check.apart.relative_l2,
      check.apart.pcc, check.normal_rms, check.normal_rms_max);
}

constexpr const char* kChunkStyle = R"(
h3 { color: #888; font-size: .8rem; font-weight: normal; margin: .6rem 0 .2rem; }
main { grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); }
polyline { fill: none; stroke-width: 1.6; } .reference { stroke: #8888; stroke-width: 4; }
.got { stroke: #2a78d0; } .error { stroke: #c0702a; } .zero { stroke: #888; }
table { border-collapse: collapse; margin-bottom: 1rem; }
table + h2, main + h2 { margin-top: 1.5rem; }
td, th { padding: .15rem .8rem .15rem 0; text-align: left; }
)";

std::string comparison(const Certificate& c, const Compared& other) {
  std::string html = fmt::format("<h2 class='{0}'><strong>against {1}: {0}</strong></h2>",
                                 other.passed() ? "passed" : "failed", xml_text(other.against));
  if (!other.stages.empty())
    html += "<table><tr><th>stage</th><th>relative L2</th><th>at most</th><th>PCC</th></tr>";
  for (const ModuleCheck& s : other.stages)
    html += fmt::format(
        "<tr class='{}'><td>{}</td><td>{:.3g}</td><td>{:.3g}</td><td>{:.8f}</td>"
        "</tr>",
        s.failed.empty() ? "passed" : "failed", xml_text(s.module.substr(s.module.find('.') + 1)),
        s.apart.relative_l2, s.gate.relative_l2, s.apart.pcc);
  if (!other.stages.empty()) html += "</table>";
  html += "<main>\n";
  for (const DimensionCheck& d : other.dimensions) html += action_card(c, other, d);
  return html + "</main>\n";
}

}  // namespace

std::string html_page(const Certificate& c) {
  const ModelIdentity& id = c.identity;
  std::string page =
      html_head("tendon certificate", kChunkStyle) +
      fmt::format(
          "<h1 class='{0}'><strong>{1}: {0}</strong></h1><p>{1} on {2} in {3} ({4}); {5}; {6}; "
          "tendon {7}</p><table>",
          c.passed() ? "passed" : "failed", xml_text(c.model), id.backend, id.precision,
          xml_text(id.method), c.observations, xml_text(id.processor), id.version);
  for (const auto& [what, hash] :
       {std::pair("weights", id.weights), std::pair("statistics", id.statistics),
        std::pair("tokenizer", id.tokenizer)})
    page += fmt::format("<tr><td>{}</td><td>{}</td></tr>", what, hash);
  page += "</table>";
  for (const Compared& other : c.compared) page += comparison(c, other);
  return page + "</html>\n";
}

}  // namespace tendon
