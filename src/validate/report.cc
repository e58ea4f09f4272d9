// A validation as JSON and as an HTML page: self-contained, one picture per module.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "tensor/xml.h"
#include "validate/health.h"
#include "validate/modules.h"
#include "validate/page.h"

namespace tendon {
namespace {

constexpr double kSide = 220, kMargin = 8;  // of a picture, in pixels

// Expected to the right, got upwards; equal values lie on the diagonal.
std::string scatter(const ModuleCheck& check) {
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

std::string card(const ModuleCheck& c) {
  const bool passed = c.failed.empty();
  return fmt::format(
      "<section class='{}'><h2>{}</h2>{}<dl><dt>PCC</dt><dd>{:.10f}</dd><dt>at least</dt>"
      "<dd>{:.10f}</dd><dt>relative L2</dt><dd>{:.3g}</dd><dt>at most</dt><dd>{:.3g}</dd>"
      "<dt>max error</dt><dd>{:.3g} of {:.3g}</dd></dl><strong>{}{}</strong></section>\n",
      passed ? "passed" : "failed", xml_text(c.module), scatter(c), c.apart.pcc, c.gate.pcc,
      c.apart.relative_l2, c.gate.relative_l2, c.apart.max_error, c.apart.scale,
      passed ? "passed" : "FAILED: ", c.failed);
}

}  // namespace

std::string html_report(const Validation& v, const std::string& heading) {
  const auto passed = std::ranges::count(v.checks, "", &ModuleCheck::failed);
  std::string page = fmt::format(
      "{}"
      "<h1>{} of {} modules within their gate</h1><p>{}</p><p>Every module got the reference's "
      "input; a dot is one value, expected to the right, got upwards.</p><main>\n",
      html_head("tendon validate"), passed, v.checks.size(), xml_text(heading));
  for (const ModuleCheck& c : v.checks) page += card(c);
  return page + "</main></html>\n";
}

std::string_view name(Finding::Level level) {
  return std::array{"note", "warning", "ERROR"}.at(static_cast<size_t>(level));
}

nlohmann::json to_json(const Health& health) {
  nlohmann::json findings = nlohmann::json::array();
  for (const Finding& f : health.findings)
    findings.push_back(
        {{"level", name(f.level)}, {"check", f.check}, {"subject", f.subject}, {"text", f.text}});
  return {{"sound", health.sound()}, {"tensors", health.tensors}, {"findings", findings}};
}

nlohmann::json to_json(const Validation& v) {
  const auto known = [](const std::optional<double>& value) {
    return value ? nlohmann::json(*value) : nlohmann::json();
  };
  nlohmann::json modules = nlohmann::json::array();
  for (const ModuleCheck& c : v.checks)
    modules.push_back({{"module", c.module},
                       {"pcc", c.apart.pcc},
                       {"max_error", c.apart.max_error},
                       {"relative_l2", c.apart.relative_l2},
                       {"scale", c.apart.scale},
                       {"gate", c.gate.pcc},
                       {"relative_l2_gate", c.gate.relative_l2},
                       {"asked", c.asked},
                       {"ms", known(c.ms)},
                       {"reference_ms", known(c.reference_ms)},
                       {"failed", c.failed},
                       {"passed", c.failed.empty()}});
  return {{"backend", v.backend},
          {"method", v.method},
          {"precision", v.precision},
          {"modules", modules},
          {"passed", v.passed()}};
}

}  // namespace tendon
