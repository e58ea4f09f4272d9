#include "policy/policy_spec_json.h"

#include <array>
#include <cmath>

#include "checkpoint/json.h"
#include "tensor/check.h"
#include "tensor/nearest.h"

extern "C" const char tendon_openpi[], tendon_openpi_end[];  // openpi_json.cc

namespace tendon {
namespace {

using nlohmann::json;

constexpr size_t kListMax = 4096, kTextMax = 4096;

enum class Kind { aloha_joints, affine, delta_actions, normalize };  // as Transform's

// In the order of the enums.
const std::array<std::string, 2> kFamilies = {std::string(name(Family::openpi)),
                                              std::string(name(Family::lerobot))};
const std::array<std::string, 3> kSequences = {"lerobot", "lerobot-sum", "openpi"};
const std::array<std::string, 3> kOf = {"both", "state", "actions"};
const std::array<std::string, 4> kKinds = {"aloha_joints", "affine", "delta_actions", "normalize"};
std::span<const std::string> names(Family) { return kFamilies; }
std::span<const std::string> names(TimeSequence) { return kSequences; }
std::span<const std::string> names(Affine::Of) { return kOf; }
std::span<const std::string> names(Kind) { return kKinds; }
std::span<const std::string> names(NormMethod) { return norm_methods(); }

// Every key once, for reading and writing.
void fields(auto&, AlohaJoints&) {}
void fields(auto& use, Affine& a) {
  use("of", a.of);
  use("scale", a.scale);
  use("offset", a.offset);
}
void fields(auto& use, DeltaActions& d) {
  use("mask", d.mask);
  use("family", d.family);
}
void fields(auto& use, Normalize& n) {
  use("state", n.state);
  use("action", n.action);
  use("asset", n.asset);
  use("method", n.method);
}
void fields(auto& use, Normalizer& n) {
  use("family", n.family);
  use("method", n.method);
  use("eps", n.eps);
  use("centre", n.centre);
  use("range", n.range);
  use("q01", n.q01);
  use("q99", n.q99);
}
void fields(auto& use, PromptOptions& p) {
  use("style", p.style);
  use("state", p.state_in_prompt);
  use("padded_state", p.padded_state);
  use("tokens_max", p.tokens_max);
}
void fields(auto& use, PolicySpec& s) {
  use("name", s.robot);
  use("camera_slots", s.slots);
  use("cameras", s.cameras);
  use("required_cameras", s.required);
  use("resize", s.resizer);
  use("dark_bars", s.dark_bars);
  use("time_sequence", s.sequence);
  use("state_dim", s.state_dim);
  use("state_dim_min", s.state_dim_min);
  use("action_dim", s.action_dim);
  use("action_names", s.action_names);
  use("transforms", s.transforms);
  use("prompt", s.prompt);
  use("default_prompt", s.default_prompt);
  use("reset_pose", s.reset_pose);
  use("folded_vocab", s.folded_vocab);
}

// One value of a description, with where it stands.
class Reader {
 public:
  Reader(const json& value, std::string where) : value_(value), where_(std::move(where)) {}

  void operator()(const char* key, auto& to) {
    known_.emplace_back(key);
    if (value_.contains(key)) Reader(value_.at(key), where_ + "." + key).get(to);
  }

  void get(bool& to) { to = plain<bool>(value_.is_boolean(), "true or false"); }
  void get(int64_t& to) {
    const bool fits = !value_.is_number_unsigned() || value_.get<uint64_t>() < 1ull << 63;
    to = plain<int64_t>(value_.is_number_integer() && fits, "an integer");
  }
  void get(double& to) {
    to =
        plain<double>(value_.is_number() && std::isfinite(value_.get<double>()), "a finite number");
  }
  void get(std::string& to) {
    const bool text = value_.is_string() && !value_.get_ref<const std::string&>().empty() &&
                      value_.get_ref<const std::string&>().size() <= kTextMax;
    to = plain<std::string>(text, fmt::format("a text of 1 to {} bytes", kTextMax));
  }
  template <class E>
  requires std::is_enum_v<E>
  void get(E& to) {
    std::string name;
    get(name);
    const std::span<const std::string> all = names(to);
    const auto found = std::ranges::find(all, name);
    ensure(found != all.end(), Fault::usage, "{} is '{}', expected one of {}; nearest: '{}'",
           where_, name, fmt::join(all, ", "), nearest(name, all));
    to = static_cast<E>(found - all.begin());
  }
  template <class T>
  void get(std::optional<T>& to) {
    to.reset();
    if (!value_.is_null()) get(to.emplace());
  }
  template <class T>
  void get(std::vector<T>& to) {
    expect(value_.is_array() && value_.size() <= kListMax,
           fmt::format("a list of at most {}", kListMax));
    to.assign(value_.size(), T{});
    for (size_t i = 0; i < to.size(); ++i) item(i).get(to[i]);
  }
  // Booleans, or openpi's runs: [6, -1] is six times true and once false.
  void get(std::vector<bool>& to) {
    expect(value_.is_array() && value_.size() <= kListMax, "a list such as [6, -1]");
    to.clear();
    for (size_t i = 0; i < value_.size(); ++i) {
      int64_t run = value_[i] == true ? 1 : -1;
      if (!value_[i].is_boolean()) item(i).get(run);
      const auto room = static_cast<int64_t>(kListMax - to.size());
      item(i).expect(run != 0 && run >= -room && run <= room,
                     "true, false, or a run such as 6 (true) or -1 (false)");
      to.insert(to.end(), static_cast<size_t>(std::abs(run)), run > 0);
    }
  }
  void get(std::map<std::string, std::string>& to) {
    expect(value_.is_object() && value_.size() <= kListMax, "an object of cameras");
    to.clear();
    for (const auto& [camera, slot] : value_.items())
      if (slot.is_null())
        to[camera] = "";
      else
        Reader(slot, where_ + "." + camera).get(to[camera]);
  }
  // A normalize that does not give its numbers keeps those that were there before.
  void get(Transforms& to) {
    expect(value_.is_array() && !value_.empty() && value_.size() <= kListMax,
           "a list of transforms");
    Transforms list(value_.size(), to.back());
    for (size_t i = 0; i < list.size(); ++i) {
      item(i).get(list[i]);
      item(i).expect(std::holds_alternative<Normalize>(list[i]) == (i + 1 == list.size()),
                     "one 'normalize', as the last transform (with \"method\": \"IDENTITY\" where "
                     "nothing is normalised)");
    }
    to = std::move(list);
  }
  void get(Transform& to) {
    Kind kind{};
    const Family family = std::get<Normalize>(to).action.family;
    expect(value_.contains("type"), "an object with a 'type'");
    (*this)("type", kind);
    if (kind == Kind::aloha_joints) to = AlohaJoints{};
    if (kind == Kind::affine) to = Affine{};
    if (kind == Kind::delta_actions) to = DeltaActions{.family = family};
    if (kind == Kind::normalize && value_.contains("state"))
      to = Normalize{{.family = family}, {.family = family}};
    std::visit([&](auto& t) { object(t); }, to);
  }
  void get(auto& to) { object(to); }

 private:
  void expect(bool good, std::string_view expected) const {
    if (!good)
      fail(Fault::usage, "{} is {}, expected {}", where_, value_.dump(-1, ' ', true).substr(0, 60),
           expected);
  }
  template <class T>
  T plain(bool good, std::string_view expected) const {
    expect(good, expected);
    return value_.get<T>();
  }
  Reader item(size_t i) const { return {value_[i], fmt::format("{}[{}]", where_, i)}; }
  void object(auto& to) {
    expect(value_.is_object(), "an object");
    fields(*this, to);
    for (const auto& entry : value_.items())
      ensure(std::ranges::find(known_, entry.key()) != known_.end(), Fault::usage,
             "{}: unknown key '{}'; nearest: '{}'", where_, entry.key(),
             nearest(entry.key(), known_));
    check(to);
  }

  void check(auto&) const {}
  void check(Affine& a) const {
    expect(!a.scale.empty() || !a.offset.empty(), "'scale', 'offset' or both");
    if (a.scale.empty()) a.scale.resize(a.offset.size(), 1);
    if (a.offset.empty()) a.offset.resize(a.scale.size(), 0);
  }
  void check(DeltaActions&) const { expect(value_.contains("mask"), "a 'mask'"); }
  void check(Normalizer& n) const {
    ensure(n.q01.size() == n.q99.size() && (n.q01.empty() || n.method == NormMethod::identity ||
                                            n.q01.size() == n.centre.size()),
           Fault::usage, "{}: {} and {} quantiles beside {} statistics", where_, n.q01.size(),
           n.q99.size(), n.centre.size());
  }
  void check(Normalize& n) const {
    const bool numbers = value_.contains("state"), source = n.asset || n.method;
    expect(numbers == value_.contains("action") && !(numbers && source),
           "both 'state' and 'action', or 'asset' and 'method'");
    n.given = numbers || (n.given && !source);
  }

  const json& value_;
  std::string where_;
  std::vector<std::string> known_;
};

const json& openpi() {
  static const json all = parse_json({tendon_openpi, tendon_openpi_end}, "assets/openpi.json");
  return all;
}

std::vector<std::string> names_of(const json& object) {
  std::vector<std::string> names;
  for (const auto& entry : object.items()) names.push_back(entry.key());
  return names;
}

// An absent value has no key.
class Writer {
 public:
  json object = json::object();

  void operator()(const char* key, auto& value) {
    json written = of(value);
    if (!written.is_null()) object[key] = std::move(written);
  }

  template <class T>
  static json of(T& value) {
    if constexpr (std::is_enum_v<T>) {
      return names(value)[static_cast<size_t>(value)];
    } else if constexpr (std::is_constructible_v<json, T>) {
      return value;
    } else {
      Writer writer;
      fields(writer, value);
      return std::move(writer.object);
    }
  }
  template <class T>
  static json of(std::optional<T>& value) {
    return value ? of(*value) : json();
  }
  static json of(std::map<std::string, std::string>& cameras) {
    json all = json::object();
    for (const auto& [camera, slot] : cameras) all[camera] = slot.empty() ? json() : json(slot);
    return all;
  }
  static json of(Transforms& list) {
    json all = json::array();
    for (Transform& t : list) {
      all.push_back(std::visit([](auto& kind) { return of(kind); }, t));
      all.back()["type"] = kKinds[t.index()];
    }
    return all;
  }
};

}  // namespace

json policy_spec_json(const PolicySpec& spec) {
  PolicySpec copy = spec;
  copy.normalize().asset.reset();  // the numbers are there
  copy.normalize().method.reset();
  return Writer::of(copy);
}

PolicySpec read_policy_spec(const json& j, const std::string& where, PolicySpec spec) {
  if (j.is_object() && j.contains("name") && j.at("name").is_string()) {
    const json& known = robot_json(j.at("name").get<std::string>(), where);
    if (&known != &j) Reader(known, where).get(spec);
  }
  Reader(j, where).get(spec);
  return spec;
}

const json& robot_json(const std::string& name, const std::string& where) {
  const json& robots = openpi().at("robots");
  ensure(robots.contains(name), Fault::usage, "{}: unknown robot '{}'; nearest: '{}'", where, name,
         nearest(name, names_of(robots)));
  return robots.at(name);
}

const PolicySpec& robot_named(const std::string& name) {
  static const std::map<std::string, PolicySpec> all = [] {
    std::map<std::string, PolicySpec> read;
    for (const auto& [key, robot] : openpi().at("robots").items())
      read[key] = read_policy_spec(robot, key);
    return read;
  }();
  return all.at(name);
}

std::vector<std::string> training_config_names() { return names_of(openpi().at("configs")); }

json training_config(const std::string& name) {
  const json& configs = openpi().at("configs");
  ensure(configs.contains(name) || !name.starts_with("pi0_fast"), Fault::usage,
         "--config {}: pi0-FAST generates tokens, not flows; this engine runs pi0 and pi0.5", name);
  ensure(configs.contains(name), Fault::usage,
         "--config {}: no such file, and no openpi training config of that name; nearest: '{}'",
         name, nearest(name, names_of(configs)));
  return configs.at(name);
}

}  // namespace tendon
