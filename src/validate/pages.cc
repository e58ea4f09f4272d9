// The HTML pages of a validation and of a certificate: self-contained, light and dark.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "tensor/xml.h"
#include "validate/certificate.h"

namespace tendon {
namespace {

constexpr const char* kStyle = R"(
:root { color-scheme: light dark; }
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
main { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }
section { border: 1px solid #8886; border-radius: 8px; padding: .8rem 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1rem; margin: 0 0 .5rem; }
svg { display: block; width: 100%; } svg circle { fill: #2a78d0; fill-opacity: .55; }
.frame { fill: none; stroke: #8884; } .equal { stroke: #888; stroke-dasharray: 3 3; }
.axis { color: #888; font-size: .8rem; margin: .1rem 0 .4rem; text-align: right; }
dl { display: grid; grid-template-columns: auto 1fr; gap: 0 .8rem; margin: 0 0 .4rem; }
dt { color: #888; } dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
.passed strong { color: #1a8a4a; } .failed strong { color: #d03a2a; }
.failed { border-color: #d03a2a; }
)";

// Of a certificate, beside that.
constexpr const char* kChunkStyle = R"(
h3 { color: #888; font-size: .8rem; font-weight: normal; margin: .6rem 0 .2rem; }
main { grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); }
polyline { fill: none; stroke-width: 1.6; } .reference { stroke: #8888; stroke-width: 4; }
.got { stroke: #2a78d0; } .error { stroke: #c0702a; } .zero { stroke: #888; }
table { border-collapse: collapse; margin-bottom: 1rem; }
table + h2, main + h2 { margin-top: 1.5rem; }
td, th { padding: .15rem .8rem .15rem 0; text-align: left; }
)";

// From the doctype to the end of the style.
std::string html_head(const char* title, const char* more_style) {
  return fmt::format(
      "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' "
      "content='width=device-width'><title>{}</title><style>{}{}</style>",
      title, kStyle, more_style);
}

// The class that colours it.
const char* verdict(bool passed) { return passed ? "passed" : "failed"; }

// Expected to the right, got upwards; equal values lie on the diagonal.
std::string scatter(const ModuleCheck& check) {
  constexpr double kSide = 220, kMargin = 8;  // in pixels
  double low = 0, high = 0;
  for (const auto& [expected, got] : check.sample) {
    low = std::min({low, double{expected}, double{got}});
    high = std::max({high, double{expected}, double{got}});
  }
  const double span = high > low ? high - low : 1;
  const auto at = [&](double v) { return kMargin + (v - low) / span * (kSide - 2 * kMargin); };
  std::string svg = fmt::format(
      "<svg viewBox='0 0 {0} {0}' role='img' aria-label='expected against got'>"
      "<rect width='{0}' height='{0}' class='frame'/><line x1='{1}' y1='{2}' x2='{2}' y2='{1}' "
      "class='equal'/>",
      kSide, kMargin, kSide - kMargin);
  for (const auto& [expected, got] : check.sample)
    if (std::isfinite(expected) && std::isfinite(got))
      svg +=
          fmt::format("<circle cx='{:.1f}' cy='{:.1f}' r='1.4'/>", at(expected), kSide - at(got));
  return svg + fmt::format("</svg><p class='axis'>{:.3g} to {:.3g}</p>", low, high);
}

std::string module_card(const ModuleCheck& c) {
  return fmt::format(
      "<section class='{}'><h2>{}</h2>{}<dl><dt>PCC</dt><dd>{:.10f}</dd><dt>at least</dt>"
      "<dd>{:.10f}</dd><dt>relative L2</dt><dd>{:.3g}</dd><dt>at most</dt><dd>{:.3g}</dd>"
      "<dt>max error</dt><dd>{:.3g} of {:.3g}</dd></dl><strong>{}{}</strong></section>\n",
      verdict(c.passed()), xml_text(c.module), scatter(c), c.apart.pcc, c.gate.pcc,
      c.apart.relative_l2, c.gate.relative_l2, c.apart.max_error, c.apart.scale,
      c.passed() ? "passed" : "FAILED: ", c.failed);
}

struct Line {
  std::string css;
  std::vector<double> values;
};

// Lines over the rows of a chunk, on one scale, whose ends stand below; with a line at 0 when that
// belongs to the scale.
std::string plot(const std::vector<Line>& lines, bool with_zero = false) {
  constexpr double kPlotWidth = 320, kPlotHeight = 120, kInset = 6;  // in pixels
  double low = with_zero ? 0 : std::numeric_limits<double>::infinity();
  double high = with_zero ? 0 : -low;
  for (const Line& line : lines)
    for (const double v : line.values) low = std::min(low, v), high = std::max(high, v);
  const double span = high > low ? high - low : 1;
  const auto y_of = [&](double v) {
    return kPlotHeight - kInset - (v - low) / span * (kPlotHeight - 2 * kInset);
  };
  std::string svg =
      fmt::format("<svg viewBox='0 0 {0} {1}'><rect width='{0}' height='{1}' class='frame'/>",
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
      "with and, over it, {}</h3>{}<h3>difference over the chunk, every "
      "observation</h3>{}<dl><dt>max error</dt>"
      "<dd>{:.3g} of {:.3g}</dd><dt>relative L2</dt><dd>{:.3g}</dd><dt>PCC</dt><dd>{:.8f}</dd>"
      "<dt>normalised, rms</dt><dd>{:.3g}</dd><dt>at most</dt><dd>{:.3g}</dd></dl></section>\n",
      verdict(check.passed()), xml_text(check.name), xml_text(c.identity.backend),
      plot({{"reference", over_rows([&](size_t i) { return other.chunks[0][i]; })},
            {"got", over_rows([&](size_t i) { return c.chunks[0][i]; })}}),
      plot(errors, true), check.apart.max_error, check.apart.scale, check.apart.relative_l2,
      check.apart.pcc, check.normal_rms, check.normal_rms_max);
}

std::string comparison(const Certificate& c, const Compared& other) {
  std::string html = fmt::format("<h2 class='{0}'><strong>against {1}: {0}</strong></h2>",
                                 verdict(other.passed()), xml_text(other.against));
  if (!other.stages.empty())
    html += "<table><tr><th>stage</th><th>relative L2</th><th>at most</th><th>PCC</th></tr>";
  for (const ModuleCheck& s : other.stages)
    html +=
        fmt::format("<tr class='{}'><td>{}</td><td>{:.3g}</td><td>{:.3g}</td><td>{:.8f}</td></tr>",
                    verdict(s.passed()), xml_text(s.module), s.apart.relative_l2,
                    s.gate.relative_l2, s.apart.pcc);
  if (!other.stages.empty()) html += "</table>";
  html += "<main>\n";
  for (const DimensionCheck& d : other.dimensions) html += action_card(c, other, d);
  return html + "</main>\n";
}

}  // namespace

std::string html_report(const Validation& v, const std::string& heading) {
  std::string page = fmt::format(
      "{}<h1>{} of {} modules within their gate</h1><p>{}</p><p>Every module got the reference's "
      "input; a dot is one value, expected to the right, got upwards.</p><main>\n",
      html_head("tendon validate", ""), std::ranges::count_if(v.checks, &ModuleCheck::passed),
      v.checks.size(), xml_text(heading));
  for (const ModuleCheck& c : v.checks) page += module_card(c);
  return page + "</main></html>\n";
}

std::string html_page(const Certificate& c) {
  const ModelIdentity& id = c.identity;
  std::string page =
      html_head("tendon certificate", kChunkStyle) +
      fmt::format(
          "<h1 class='{0}'><strong>{1}: {0}</strong></h1><p>{1} on {2} in {3} ({4}); {5}; {6}; "
          "tendon {7}</p><table>",
          verdict(c.passed()), xml_text(c.model), id.backend, id.precision, xml_text(id.method),
          c.observations, xml_text(id.processor), id.version);
  for (const auto& [what, hash] :
       {std::pair("weights", id.weights), std::pair("statistics", id.statistics),
        std::pair("tokenizer", id.tokenizer)})
    page += fmt::format("<tr><td>{}</td><td>{}</td></tr>", what, hash);
  page += "</table>";
  for (const Compared& other : c.compared) page += comparison(c, other);
  return page + "</html>\n";
}

}  // namespace tendon
