// The module tendon_pi0._engine: what tendon_pi0 is made of.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "message.h"
#include "options.h"
#include "policy.h"
#include "serve/request.h"
#include "tendon/embedded.h"
#include "tendon/machine.h"
#include "tensor/check.h"
#include "validate/certificate.h"
#include "validate/health.h"
#include "validate/modules.h"

namespace {

namespace nb = nanobind;
using namespace nb::literals;
using namespace tendon;
using namespace tendon::python;

// The exception of each Fault is a class of tendon_pi0.errors.
void throw_in_python(const std::exception_ptr& thrown, void*) {
  try {
    std::rethrow_exception(thrown);
  } catch (const Error& error) {
    const nb::object type =
        nb::module_::import_("tendon_pi0.errors").attr("of_fault")(static_cast<int>(error.fault()));
    const nb::object text = nb::steal(PyUnicode_DecodeUTF8(
        error.what(), static_cast<Py_ssize_t>(std::string_view(error.what()).size()), "replace"));
    PyErr_SetObject(type.ptr(), text.ptr());
  }
}

// JSON text may quote bytes of files.
std::string text_of(const auto& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string inspect(const std::string& model, const nb::dict& given) {
  const OpenOptions options = read_open_options(given);
  const nb::gil_scoped_release released;
  return describe(model, options);
}

std::string doctor(const nb::dict& given) {
  const OpenOptions options = read_open_options(given);
  const nb::gil_scoped_release released;
  return text_of(examine_machine(options));
}

nb::dict convert_file(const std::string& model, const std::string& out, const nb::dict& given) {
  const OpenOptions options = read_open_options(given);
  Converted done;
  {
    const nb::gil_scoped_release released;
    done = convert(model, out, options);
  }
  nb::dict said;
  said["file"] = out;
  said["bytes"] = done.bytes;
  said["seconds"] = done.seconds;
  return said;
}

std::string validate(const std::string& model, const std::optional<nb::dict>& observation,
                     bool health_only, bool all_layers, const nb::dict& given) {
  const OpenOptions options = read_open_options(given);
  std::optional<Message> message;
  if (observation) message.emplace(*observation, nb::dict());
  const nb::gil_scoped_release released;
  const Health health = check_health(model, options, {});
  nlohmann::json json{{"model", model}, {"health", to_json(health)}, {"version", version()}};
  if (health_only || !health.sound()) return text_of(json);
  const auto observe = [&](Engine& engine) {
    if (!message) return *observation_for(model, engine, true);
    return read_request(message->map(), model_card(model, engine), Dialect::openpi).observation;
  };
  json.update(to_json(validate_model(model, options, observe, {.all_layers = all_layers})));
  return text_of(json);
}

// ([(camera, height, width, rgb)], state, prompt); the bytes are interleaved.
nb::tuple parts_of(const Observation& seen) {
  nb::list pictures;
  for (const auto& [camera, image] : seen.images)
    pictures.append(nb::make_tuple(camera, image.height, image.width,
                                   nb::bytes(image.rgb.data(), image.rgb.size())));
  return nb::make_tuple(pictures, seen.state, seen.prompt);
}

std::vector<float> floats_of(const nb::bytes& bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

// What a function in Python makes of an observation's parts and the noise as float32 bytes, with
// the number of its columns: its actions, and stages as float32 bytes.
Oracle oracle_of(const nb::object& against) {
  if (against.is_none()) return {};
  return [&against](const Observation& seen, const std::vector<float>& noise, int64_t model_dim) {
    const nb::gil_scoped_acquire gil;
    const nb::bytes values(noise.data(), noise.size() * sizeof(float));
    const nb::object said = against(parts_of(seen), values, model_dim);
    Answered answered{nb::cast<std::vector<double>>(said[0]), {}};
    for (const nb::handle stage : said[1])
      answered.stages.emplace_back(nb::cast<std::string>(stage[0]),
                                   floats_of(nb::cast<nb::bytes>(stage[1])));
    return answered;
  };
}

// The certificate as JSON text, and its page.
nb::tuple certify_model(const std::string& model, const nb::object& against,
                        const std::string& name, const std::tuple<int64_t, uint64_t>& drawn,
                        const nb::dict& given) {
  const OpenOptions options = read_open_options(given);
  const Certifying certifying{.count = std::get<0>(drawn),
                              .seed = std::get<1>(drawn),
                              .oracle = oracle_of(against),
                              .oracle_name = name};
  ensure(certifying.count >= 1, Fault::usage, "count is {}, expected 1 or more", certifying.count);
  std::string json, page;
  {
    const nb::gil_scoped_release released;
    const Certificate certificate = certify(model, options, certifying);
    json = text_of(to_json(certificate));
    page = html_page(certificate);
  }
  return nb::make_tuple(json, page);
}

}  // namespace

NB_MODULE(_engine, m) {
  nb::set_leak_warnings(false);  // of policies that live until the interpreter ends
  nb::register_exception_translator(throw_in_python);
  add_policies(m);
  m.def("inspect", &inspect, "model"_a, "options"_a);
  m.def("doctor", &doctor, "options"_a);
  m.def("convert", &convert_file, "model"_a, "out"_a, "options"_a);
  m.def("validate", &validate, "model"_a, "observation"_a.none(), "health_only"_a, "all_layers"_a,
        "options"_a);
  m.def("certify", &certify_model, "model"_a, "against"_a.none(), "name"_a, "drawn"_a, "options"_a);
  m.def("demo_observation", [] { return parts_of(demo_observation()); });
  m.def("version", &version);
  m.def("backends", &backends);
  m.def("option_names", &open_option_names);
  // Where the picture under `key` is read: the address of its first byte, for tests.
  m.def(
      "picture_address",
      [](const nb::dict& observation, const std::string& key) {
        const Message message(observation, nb::dict());
        const msgpack::Value* found = message.map().find(key);
        ensure(found != nullptr, Fault::input, "there is no '{}'", key);
        return reinterpret_cast<uintptr_t>(read_picture(*found, key).rgb.data());
      },
      "observation"_a, "key"_a);
}
