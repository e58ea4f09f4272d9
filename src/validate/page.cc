#include "validate/page.h"

#include <fmt/format.h>

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

}  // namespace

std::string html_head(const std::string& title, const std::string& style) {
  return fmt::format(
      "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' "
      "content='width=device-width'><title>{}</title><style>{}{}</style>",
      title, kStyle, style);
}

}  // namespace tendon
