#include "message.h"

#include <nanobind/stl/string.h>

#include <algorithm>
#include <numeric>

#include "serve/request.h"
#include "tensor/check.h"

namespace tendon::python {
namespace {

namespace nb = nanobind;
using msgpack::Value;
using Kind = Value::Kind;

std::string kind_of(nb::handle object) {
  return nb::cast<std::string>(nb::str(nb::type_name(object.type())));
}

[[noreturn]] void refuse_type(nb::handle object, std::string_view key) {
  fail(Fault::input,
       "'{}' is a Python {}: expected a NumPy array, a tensor on the CPU that needs no gradient, a "
       "number, a text, or a list or dict of such",
       escaped(key), kind_of(object));
}

// NumPy's dtype.str of a DLPack type; what NumPy has no name for gets one that is refused.
std::string dtype_of(nb::dlpack::dtype type) {
  if (type.lanes != 1) return "vector";
  const unsigned bytes = type.bits / 8;
  switch (static_cast<nb::dlpack::dtype_code>(type.code)) {
    case nb::dlpack::dtype_code::Int: return fmt::format("<i{}", bytes);
    case nb::dlpack::dtype_code::UInt: return fmt::format("<u{}", bytes);
    case nb::dlpack::dtype_code::Float: return fmt::format("<f{}", bytes);
    case nb::dlpack::dtype_code::Bool: return "|b1";
    case nb::dlpack::dtype_code::Bfloat: return "bfloat16";
    case nb::dlpack::dtype_code::Complex: return fmt::format("<c{}", bytes);
    default: return fmt::format("DLPack type {} of {} bits", type.code, type.bits);
  }
}

bool is_picture_batch(const Value& v) { return v.kind == Kind::array && v.array.shape.size() == 4; }

void drop_first_axis(Value& v) {
  if (v.kind == Kind::array && !v.array.shape.empty() && v.array.shape[0] == 1)
    v.array.shape.erase(v.array.shape.begin());
  if (v.kind == Kind::list && v.list.size() == 1 && v.list[0].kind == Kind::text) {
    Value only = std::move(v.list[0]);
    v = std::move(only);
  }
  for (msgpack::Entry& entry : v.map) drop_first_axis(entry.value);
}

bool holds_batch(const Value& map) {
  return std::ranges::any_of(map.map, [](const msgpack::Entry& entry) {
    const Value& v = entry.value;
    if (!is_picture_batch(v)) return holds_batch(v);
    ensure(v.array.shape[0] == 1, Fault::input,
           "'{}' is {}, a batch of {}: infer() takes one observation, infer_batch() a list of them",
           escaped(entry.key), describe(v), v.array.shape[0]);
    return true;
  });
}

void complete(Value& request, const Value& additions) {
  if (holds_batch(request))
    for (msgpack::Entry& entry : request.map) drop_first_axis(entry.value);
  for (const msgpack::Entry& added : additions.map) {
    std::erase_if(request.map, [&](const msgpack::Entry& entry) { return entry.key == added.key; });
    request.map.push_back(added);
  }
}

}  // namespace

Message::Message(const nb::dict& observation, const nb::dict& additions) {
  map_ = map(observation, "observation", 0);
  const Value added = map(additions, "options", 0);
  for (msgpack::Entry& entry : map_.map)
    if (entry.key == "batch" && entry.value.kind == Kind::list) {
      for (Value& row : entry.value.list) complete(row, added);
      return;
    }
  complete(map_, added);
}

Message::~Message() {
  for (Py_buffer& buffer : buffers_) PyBuffer_Release(&buffer);
}

std::string_view Message::text(nb::handle object) {
  Py_ssize_t bytes = 0;
  const char* utf8 = PyUnicode_AsUTF8AndSize(object.ptr(), &bytes);
  if (!utf8) throw nb::python_error();
  kept_.push_back(nb::borrow(object));
  return {utf8, static_cast<size_t>(bytes)};
}

Value Message::whole(nb::handle object, std::string_view key) {
  int overflow = 0;
  const long long number = PyLong_AsLongLongAndOverflow(object.ptr(), &overflow);
  if (overflow == 0) return {.kind = Kind::integer, .integer = number};
  const unsigned long long above = overflow > 0 ? PyLong_AsUnsignedLongLong(object.ptr()) : 0;
  const bool failed = PyErr_Occurred() != nullptr;
  PyErr_Clear();
  ensure(overflow > 0 && !failed, Fault::input, "'{}' is an integer of more than 64 bits",
         escaped(key));
  return {.kind = Kind::integer, .integer = static_cast<int64_t>(above), .above_int64 = true};
}

Value Message::map(const nb::dict& dict, std::string_view key, int depth) {
  ensure(depth < msgpack::kDepthMax, Fault::input,
         "'{}': lists and dicts are nested deeper than {}", escaped(key), msgpack::kDepthMax);
  Value out{.kind = Kind::map};
  out.map.reserve(nb::len(dict));
  for (const auto& [name, item] : dict) {
    msgpack::Entry entry;
    if (nb::isinstance<nb::str>(name)) {
      entry.key = text(name);
    } else {
      ensure(nb::isinstance<nb::bytes>(name), Fault::input,
             "a key of '{}' is a Python {}, expected a text", escaped(key), kind_of(name));
      kept_.push_back(nb::borrow(name));
      const auto bytes = nb::cast<nb::bytes>(name);
      entry.key = {bytes.c_str(), bytes.size()};
      entry.bytes_key = true;
    }
    entry.value = value(item, entry.key, depth + 1);
    out.map.push_back(std::move(entry));
  }
  return out;
}

Value Message::value(nb::handle object, std::string_view key, int depth) {
  if (object.is_none()) return {};
  if (nb::isinstance<nb::bool_>(object))
    return {.kind = Kind::boolean, .boolean = nb::cast<bool>(object)};
  if (nb::isinstance<nb::str>(object)) return {.kind = Kind::text, .text = text(object)};
  if (nb::isinstance<nb::int_>(object)) return whole(object, key);
  if (nb::isinstance<nb::float_>(object))
    return {.kind = Kind::number, .number = nb::cast<double>(object)};
  if (nb::isinstance<nb::bytes>(object)) {
    kept_.push_back(nb::borrow(object));
    const auto bytes = nb::cast<nb::bytes>(object);
    return {.kind = Kind::bytes, .text = {bytes.c_str(), bytes.size()}};
  }
  if (nb::isinstance<nb::dict>(object)) return map(nb::cast<nb::dict>(object), key, depth);
  if (nb::isinstance<nb::list>(object) || nb::isinstance<nb::tuple>(object)) {
    ensure(depth < msgpack::kDepthMax, Fault::input,
           "'{}': lists and dicts are nested deeper than {}", escaped(key), msgpack::kDepthMax);
    Value out{.kind = Kind::list};
    for (const nb::handle item : object) out.list.push_back(value(item, key, depth + 1));
    return out;
  }
  // Of NumPy, without importing it: both its arrays and its scalars have a dtype with a name.
  if (PyObject_CheckBuffer(object.ptr()) && nb::hasattr(object, "dtype")) return array(object, key);
  if (nb::hasattr(object, "__dlpack__")) return tensor(object, key);
  refuse_type(object, key);
}

Value Message::array(nb::handle object, std::string_view key) {
  const std::string dtype = nb::cast<std::string>(nb::str(object.attr("dtype").attr("str")));
  Value out{.kind = Kind::array};
  try {
    out.array = msgpack::array_of_dtype(dtype);
  } catch (const Error& error) {
    fail(Fault::input, "'{}': {}", escaped(key), error.what());
  }
  if (!nb::hasattr(object, "__array_finalize__")) {  // a scalar
    Value plain = value(object.attr("item")(), key, msgpack::kDepthMax);
    if (plain.kind == Kind::integer && is_float(out.array.dtype)) refuse_type(object, key);
    plain.kind = Kind::scalar;
    plain.array = out.array;
    return plain;
  }
  Py_buffer& buffer = buffers_.emplace_back();
  if (PyObject_GetBuffer(object.ptr(), &buffer, PyBUF_RECORDS_RO) != 0) {
    buffers_.pop_back();
    throw nb::python_error();
  }
  out.array.shape.assign(buffer.shape, buffer.shape + buffer.ndim);
  if (PyBuffer_IsContiguous(&buffer, 'C') != 0) {
    out.array.data = {static_cast<const uint8_t*>(buffer.buf), static_cast<size_t>(buffer.len)};
    return out;
  }
  std::vector<uint8_t>& copy = copies_.emplace_back(static_cast<size_t>(buffer.len));
  if (PyBuffer_ToContiguous(copy.data(), &buffer, buffer.len, 'C') != 0) throw nb::python_error();
  out.array.data = copy;
  return out;
}

Value Message::tensor(nb::handle object, std::string_view key) {
  const int device = nb::cast<int>(object.attr("__dlpack_device__")()[0]);
  ensure(device == nb::device::cpu::value, Fault::input,
         "'{}' lies on another device: copy it to the CPU first, as .cpu() does", escaped(key));
  nb::ndarray<nb::ro> view;
  if (!nb::try_cast(object, view, false)) refuse_type(object, key);
  Value out{.kind = Kind::array};
  try {
    out.array = msgpack::array_of_dtype(dtype_of(view.dtype()));
  } catch (const Error& error) {
    fail(Fault::input, "'{}': {}", escaped(key), error.what());
  }
  int64_t step = 1;
  bool contiguous = true;
  for (size_t axis = view.ndim(); axis-- > 0;) {
    out.array.shape.insert(out.array.shape.begin(), static_cast<int64_t>(view.shape(axis)));
    contiguous = contiguous && (view.shape(axis) == 1 || view.stride(axis) == step);
    step *= static_cast<int64_t>(view.shape(axis));
  }
  if (!contiguous && step > 0) {
    ensure(nb::hasattr(object, "contiguous"), Fault::input,
           "'{}' is not contiguous: make a contiguous copy of it", escaped(key));
    return tensor(object.attr("contiguous")(), key);
  }
  out.array.data = {static_cast<const uint8_t*>(view.data()),
                    static_cast<size_t>(step * out.array.item_bytes)};
  tensors_.push_back(std::move(view));
  return out;
}

}  // namespace tendon::python
