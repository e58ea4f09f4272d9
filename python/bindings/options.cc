#include "options.h"

#include <fmt/format.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>

#include "tensor/nearest.h"

namespace tendon::python {
namespace {

namespace nb = nanobind;

// The options that a caller in Python may name, once.
template <class Field>
void fields(OpenOptions& o, Field&& field) {
  field("backend", o.backend);
  field("precision", o.precision);
  field("threads", o.threads);
  field("isa", o.isa);
  field("config", o.config);
  field("tokenizer", o.tokenizer);
  field("statistics", o.statistics);
  field("robot", o.robot);
  field("asset", o.asset);
  field("base", o.base);
  field("lora_scale", o.lora_scale);
  field("default_prompt", o.default_prompt);
  field("state_in_prompt", o.state_in_prompt);
  field("pad_state_in_prompt", o.pad_state_in_prompt);
  field("dark_bars", o.dark_bars);
  field("adapt_to_pi", o.adapt_to_pi);
  field("fallback", o.fallback);
  field("device", o.device);
  field("ttnn_python", o.ttnn_python);
  field("ttnn_sim", o.ttnn_sim);
  field("grid", o.ttnn.grid);
  field("device_id", o.ttnn.device_id);
  field("fidelity", o.ttnn.fidelity);
  field("memory", o.ttnn.memory);
  field("on_device", o.ttnn.on_device);
  field("weights_seed", o.weights_seed);
  field("max_memory", o.max_memory);
}

// nanobind takes 1.0 for an int and 1 for a bool; Python's own types are asked here.
void read(nb::handle value, std::string& to) {
  nb::object text = nb::borrow(value);
  if (nb::hasattr(value, "__fspath__")) text = value.attr("__fspath__")();
  to = nb::cast<std::string>(text);
}
void read(nb::handle value, bool& to) {
  if (!nb::isinstance<nb::bool_>(value)) throw nb::cast_error();
  to = nb::cast<bool>(value);
}
void read(nb::handle value, double& to) {
  if (nb::isinstance<nb::bool_>(value)) throw nb::cast_error();
  to = nb::cast<double>(value);
}
template <class Integer>
void read(nb::handle value, Integer& to) {
  if (nb::isinstance<nb::bool_>(value)) throw nb::cast_error();
  to = nb::cast<Integer>(value, false);
}
template <class T>
void read(nb::handle value, std::optional<T>& to) {
  read(value, to.emplace());
}

std::function<void(const LoadProgress&)> progress_to(nb::object report) {
  // Options are copied and destroyed without the GIL, which counting references needs.
  const std::shared_ptr<nb::object> kept(new nb::object(std::move(report)), [](nb::object* object) {
    const nb::gil_scoped_acquire gil;
    delete object;
  });
  return [kept](const LoadProgress& p) {
    const nb::gil_scoped_acquire gil;
    check_signals();
    if (!kept->is_none()) (*kept)(p.bytes, p.plan.weights);
  };
}

}  // namespace

OpenOptions read_open_options(const nb::dict& given, nb::object report) {
  OpenOptions options;
  fields(options, [&](const char* name, auto& to) {
    if (!given.contains(name) || given[name].is_none()) return;
    const nb::object value = given[name];
    try {
      read(value, to);
    } catch (const std::exception&) {
      PyErr_Clear();
      const std::string text = fmt::format("option '{}' is {}, which is no value for it", name,
                                           nb::cast<std::string>(nb::repr(value)));
      throw nb::type_error(text.c_str());
    }
  });
  const std::vector<std::string> names = open_option_names();
  for (const auto& [key, value] : given) {
    const auto name = nb::cast<std::string>(key);
    if (std::ranges::find(names, name) != names.end()) continue;
    const std::string text =
        fmt::format("there is no option '{}'; nearest: '{}'", name, nearest(name, names));
    throw nb::type_error(text.c_str());
  }
  options.progress = progress_to(std::move(report));
  return options;
}

std::vector<std::string> open_option_names() {
  std::vector<std::string> names;
  OpenOptions options;
  fields(options, [&](const char* name, auto&) { names.emplace_back(name); });
  return names;
}

void check_signals() {
  const nb::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw nb::python_error();
}

std::function<void()> poll_signals() {
  const nb::module_ threading = nb::module_::import_("threading");
  if (!threading.attr("current_thread")().is(threading.attr("main_thread")())) return {};
  using Clock = std::chrono::steady_clock;
  return [last = Clock::now()]() mutable {
    if (Clock::now() - last < std::chrono::milliseconds(100)) return;
    check_signals();
    last = Clock::now();
  };
}

}  // namespace tendon::python
