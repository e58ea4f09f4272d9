#include "policy/converted_file.h"

#include <map>
#include <set>
#include <sstream>

#include "checkpoint/content_hash.h"
#include "checkpoint/files.h"
#include "checkpoint/json.h"
#include "policy/policy_spec_json.h"
#include "policy/vocabulary.h"
#include "tensor/check.h"

namespace tendon {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int kFormat = 3;

HostTensor file_content(const std::string& name, const std::string& path) {
  auto bytes = std::make_shared<const std::string>(read_file(path, kTokenizerBytesMax));
  return {name, DType::u8, {std::ssize(*bytes)}, std::as_bytes(std::span(*bytes)), bytes};
}

// Free space must hold everything: a full disk is noticed before anything is written.
void check_space(const fs::path& out, std::span<const HostTensor> tensors) {
  size_t needed = size_t{1} << 20;
  for (const HostTensor& t : tensors) needed += t.bytes.size();
  const fs::path folder = out.has_parent_path() ? out.parent_path() : fs::path(".");
  std::error_code error;
  const fs::space_info space = fs::space(folder, error);
  ensure(!error, Fault::checkpoint, "cannot write {}: {}", out.string(), error.message());
  ensure(space.available >= needed, Fault::checkpoint,
         "{} needs {:.2f} GB and {} has {:.2f} GB left", out.string(),
         static_cast<double>(needed) / 1e9, folder.string(),
         static_cast<double>(space.available) / 1e9);
}

std::string required(const SafetensorsFile& file, const std::string& key) {
  const auto found = file.metadata().find(key);
  const std::string folder = std::filesystem::path(file.name()).parent_path().string();
  ensure(
      found != file.metadata().end(), Fault::checkpoint,
      "{} is no file of tendon convert: its metadata has no '{}'; if it belongs to a checkpoint, "
      "name the folder: {}",
      file.name(), key, folder.empty() ? "." : folder);
  return found->second;
}

// What a file holds is the file's fault, whatever is wrong with it.
PolicySpec stored_spec(const SafetensorsFile& file) {
  const json robot = parse_json(required(file, "tendon.robot"), file.name());
  try {
    return read_policy_spec(robot, file.name() + ": robot");
  } catch (const Error& error) {
    throw Error(Fault::checkpoint, error.what());
  }
}

}  // namespace

Weights write_converted(const fs::path& out, OpenedModel& model, Ops& ops,
                        const Conversion& conversion) {
  std::vector<HostTensor> tensors;
  std::set<std::string> packed;
  const auto keep = [&](const WeightParts& parts, const Weight& weight) {
    for (HostTensor piece : weight.native->pieces()) {
      piece.name = "packed." + parts.name + "/" + piece.name;
      tensors.push_back(std::move(piece));
    }
    for (const HostTensor& m : parts.matrices) packed.insert(m.name);
  };
  Weights weights = load_weights(ops, *model.weights, model.config, {.prepared = keep});
  std::ranges::stable_sort(tensors, {},
                           [](const HostTensor& t) { return !t.name.ends_with("data"); });
  for (const Parameter& p : parameters(model.config))
    if (p.use == Parameter::Use::inference && !packed.contains(p.name))
      tensors.push_back(model.weights->get(p.name, p.shape));
  const bool bytewise = !is_file(model.tokenizer);
  ensure(!bytewise || model.layout == "synthetic", Fault::checkpoint,
         "the model has no tokenizer; give it with --tokenizer FILE");
  if (!bytewise) tensors.push_back(file_content("tokenizer", model.tokenizer));
  check_space(out, tensors);

  const AdapterSummary* adapter = model.weights->adapter();
  const std::string source =
      conversion.source + (adapter ? fmt::format(" ({})", adapter->text()) : "");
  std::map<std::string, std::string> metadata{{"tendon.format", std::to_string(kFormat)},
                                              {"tendon.version", conversion.version},
                                              {"tendon.precision", conversion.precision},
                                              {"tendon.source", source},
                                              {"tendon.source_layout", model.layout},
                                              {"tendon.config", config_json(model.config).dump()},
                                              {"tendon.robot", policy_spec_json(model.spec).dump()},
                                              {"tendon.tokenizer", bytewise ? "bytes" : "file"}};
  if (!model.warnings.empty())
    metadata["tendon.warnings"] = fmt::format("{}", fmt::join(model.warnings, "\n"));
  metadata["tendon.hash"] = content_hash(tensors, metadata, 0);
  write_safetensors(out, tensors, metadata);
  return weights;
}

OpenedModel open_converted(const fs::path& path, const OpenOptions& options) {
  const auto file = SafetensorsFile::open(path);
  const std::string format = required(*file, "tendon.format");
  ensure(
      format == std::to_string(kFormat), Fault::checkpoint,
      "{} has format {}, written by tendon {}; this tendon reads format {}: update it or convert "
      "again",
      path.string(), format, required(*file, "tendon.version"), kFormat);
  ensure(options.config.empty() && options.statistics.empty() && options.robot.empty(),
         Fault::usage,
         "{} carries configuration, statistics and robot; give those to tendon convert",
         path.string());
  const std::string expected = required(*file, "tendon.hash");
  std::map<std::string, std::string> covered = file->metadata();
  covered.erase("tendon.hash");
  const std::string hash = content_hash(file->tensors(), covered, options.threads, kTokenTable);
  ensure(hash == expected, Fault::checkpoint,
         "{} was altered after it was written (content hash {}, expected {}); convert again",
         path.string(), hash, expected);
  return read_converted(file);
}

OpenedModel read_converted(const std::shared_ptr<const SafetensorsFile>& file) {
  const std::string& name = file->name();
  const json config = parse_json(required(*file, "tendon.config"), name);
  OpenedModel m{.layout = "converted",
                .config = read_config(config, name),
                .weights = open_weights({file}),
                .spec = stored_spec(*file),
                .precision = required(*file, "tendon.precision")};
  if (required(*file, "tendon.tokenizer") == "bytes") {
    m.spec.tokenizer = std::make_shared<const Tokenizer>(Tokenizer::of_bytes());
    m.tokenizer = "one token per byte";
  } else {
    const HostTensor* stored = file->find("tokenizer");
    ensure(stored, Fault::checkpoint, "{} lacks its tokenizer", name);
    m.spec.tokenizer =
        std::make_shared<const Tokenizer>(Tokenizer::from_bytes(stored->bytes, name));
    m.tokenizer = name;
  }
  if (const auto said = file->metadata().find("tendon.warnings"); said != file->metadata().end()) {
    std::istringstream lines(said->second);
    for (std::string line; std::getline(lines, line);) m.warnings.push_back(line);
  }
  const std::string source = required(*file, "tendon.source_layout");
  if (source == "synthetic") m.notes.push_back("the weights are synthetic: actions mean nothing");
  m.notes.push_back(fmt::format("converted from {} by tendon {}", required(*file, "tendon.source"),
                                required(*file, "tendon.version")));
  return m;
}

}  // namespace tendon
