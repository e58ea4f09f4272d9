// tendon certify: what a backend makes of a checkpoint, with a verdict that holds for its weights.
#include <fmt/format.h>

#include "cli/chunk_files.h"
#include "cli/report.h"
#include "cli/verbs.h"
#include "serve/recording.h"
#include "serve/request.h"
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

// The pictures of a recorded request are views into it: the observation gets its own.
Observation own(Observation seen) {
  for (auto& [camera, image] : seen.images) image.rgb.owned();
  return seen;
}

// At most `most` requests, evenly picked, of what `serve --record` wrote into a folder.
std::vector<Observation> recorded(const CertifyOptions& o, int64_t most) {
  OpenOptions quiet = o.open;
  quiet.note = {};
  Engine engine = Engine::open(o.model, quiet);
  const ModelCard card = model_card(o.model, engine);
  std::vector<Observation> all;
  for (const std::filesystem::path& path : recordings_in(o.observations)) {
    RecordingReader reader(path);
    while (const std::optional<Record> record = reader.next())
      if (record->kind == RecordKind::request)
        all.push_back(
            own(read_request(msgpack::decode(record->message), card, Dialect::openpi).observation));
  }
  ensure(!all.empty(), Fault::input, "--observations {}: no request was recorded there",
         o.observations);
  std::vector<Observation> picked;
  const auto count = std::min<size_t>(all.size(), static_cast<size_t>(most));
  for (size_t i = 0; i < count; ++i) picked.push_back(all[i * all.size() / count]);
  return picked;
}

std::string text_of(const Json& json) {
  return lines(
             "{model} on {backend} in {precision} ({method}), against {against}\n"
             "{observations} · weights {weights} · statistics {statistics} · "
             "tokenizer {tokenizer}\n",
             json) +
         table(
             "stage {stage} | relative L2 {relative_l2:.2e} | at most {relative_l2_max:.2g} | "
             "PCC {pcc:.8f} | {passed:ok|FAILED}",
             json.at("stages")) +
         "\n" +
         table(
             "action {action} | max error {max_error:.3g} | of {scale:.3g} | "
             "relative L2 {relative_l2:.2e} | PCC {pcc:.8f} | normalised rms {normal_rms:.2e} | "
             "at most {normal_rms_max:.2g} | {passed:ok|FAILED}",
             json.at("actions")) +
         lines(
             "\nverdict: {passed:passed|NOT PASSED}\nstages: {reasons/stages}\n"
             "actions: {reasons/actions}",
             json);
}

void run(CertifyOptions o) {
  ensure(o.against == "reference", Fault::usage,
         "--against {}: only the reference is built in; against lerobot: examples/certify.py",
         o.against);
  ensure(o.certifying.drawn >= 1, Fault::usage, "--count {}: expected 1 or more",
         o.certifying.drawn);
  if (!o.observations.empty()) o.certifying.recorded = recorded(o, o.certifying.drawn);
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
  CLI::App* verb = app.add_subcommand(
      "certify", "how far a backend's actions are from the reference's, as a certificate");
  const auto o = std::make_shared<CertifyOptions>();
  add_model_options(*verb, o->model, o->open);
  verb->add_option("--observations", o->observations,
                   "folder of `serve --record`; default: drawn within the model's statistics");
  verb->add_option("--count", o->certifying.drawn, "observations at most; default 3");
  verb->add_option("--seed", o->certifying.seed, "of drawn observations and of the noise");
  verb->add_option("--against", o->against, "reference (default)");
  verb->add_option("--out", o->out, "write the certificate to FILE.json");
  verb->add_option("--html", o->html, "write a page with a picture per action to FILE.html");
  verb->add_flag("--json", o->json, "one JSON object on standard output");
  verb->callback([o] { run(*o); });
}

}  // namespace tendon::cli
