// tendon certify: what a backend makes of a checkpoint, with a verdict that holds for its weights.
#include <fmt/format.h>

#include "cli/chunk_files.h"
#include "cli/recorded_examples.h"
#include "cli/report.h"
#include "cli/verbs.h"
#include "tensor/check.h"
#include "validate/certificate.h"

namespace tendon::cli {
namespace {

struct CertifyOptions {
  std::string model, observations, against = "reference", out, html;
  OpenOptions open;
  Certifying certifying;
  bool json = false;
};

std::string text_of(const Json& json) {
  std::string text = lines(
      "{model} on {backend} in {precision} ({method})\n"
      "{observations} · weights {weights} · statistics {statistics} · "
      "tokenizer {tokenizer}",
      json);
  for (const Json& other : json.at("compared")) {
    text += lines("\nagainst {against}: {passed:passed|NOT PASSED}\n", other);
    if (!other.at("stages").empty())
      text += table(
                  "stage {stage} | relative L2 {relative_l2:.2e} | at most {relative_l2_max:.2g} | "
                  "PCC {pcc:.8f} | {passed:ok|FAILED}",
                  other.at("stages")) +
              "\n";
    text += table(
        "action {action} | max error {max_error:.3g} | of {scale:.3g} | "
        "relative L2 {relative_l2:.2e} | PCC {pcc:.8f} | normalised rms {normal_rms:.2e} | "
        "at most {normal_rms_max:.2g} | {passed:ok|FAILED}",
        other.at("actions"));
  }
  return text + lines(
                    "\nverdict: {passed:passed|NOT PASSED}\nstages: {reasons/stages}\n"
                    "actions: {reasons/actions}",
                    json);
}

void certify_model(CertifyOptions o) {
  ensure(o.against == "reference", Fault::usage,
         "--against {}: only the reference is built in; for lerobot: examples/certify.py --lerobot",
         o.against);
  ensure(o.certifying.count >= 1, Fault::usage, "--count {}: expected 1 or more",
         o.certifying.count);
  if (!o.observations.empty())
    o.certifying.observe = [&](Engine& engine) {
      std::vector<Observation> seen;
      for (Example& example : recorded_examples(o.observations, model_card(o.model, engine),
                                                static_cast<size_t>(o.certifying.count)))
        seen.push_back(std::move(example.observation));
      return seen;
    };
  const Certificate certificate = certify(o.model, o.open, o.certifying);
  const Json json = to_json(certificate);
  if (!o.out.empty()) write_file(o.out, json.dump(2) + "\n");
  if (!o.html.empty()) write_file(o.html, html_page(certificate));
  print_report(o.json, json, text_of(json));
  ensure(certificate.passed(), Fault::verdict, "{} on {} in {} is beyond its bounds", o.model,
         certificate.identity.backend, certificate.identity.precision);
}

}  // namespace

void add_certify(CLI::App& app) {
  const auto [verb, o] = add_verb<CertifyOptions>(
      app, "certify", "how far a backend's actions are from the reference's, as a certificate",
      certify_model);
  verb.add_option("--observations", o.observations,
                  "folder of `serve --record`; default: drawn within the model's statistics");
  verb.add_option("--count", o.certifying.count, "observations at most; default 3");
  verb.add_option("--seed", o.certifying.seed, "of drawn observations and of the noise");
  verb.add_option("--against", o.against, "reference (default)");
  verb.add_option("--out", o.out, "write the certificate to FILE.json");
  verb.add_option("--html", o.html, "write a page with a picture per action to FILE.html");
}

}  // namespace tendon::cli
