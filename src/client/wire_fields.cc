#include "client/wire_fields.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "tensor/check.h"

namespace tendon {
namespace {

using msgpack::Value;
using Kind = Value::Kind;

// One overload per type of a field.
struct LenientReader {
  const Value& map;

  template <class T, class... Accepted>
  void operator()(std::string_view key, T& to, const Accepted&...) const {
    const Value* value = map.find(key);
    if (value) read(*value, to);
  }

  static void read(const Value& value, std::string& to) {
    if (value.kind == Kind::text) to = value.text;
  }
  static void read(const Value& value, bool& to) { to = value.boolean; }
  static void read(const Value& value, int64_t& to) {
    if (!value.above_int64) to = std::max<int64_t>(value.integer, 0);
  }
  static void read(const Value& value, std::vector<std::string>& to) {
    const auto is_text = [](const Value& item) { return item.kind == Kind::text; };
    if (std::ranges::all_of(value.list, is_text))
      for (const Value& item : value.list) to.emplace_back(item.text);
  }
  static void read(const Value& value, std::vector<double>& to) {
    const msgpack::Array& array = value.array;
    const bool row = value.kind == Kind::array && array.shape.size() == 1 && !is_text(array.dtype);
    std::vector<double> numbers = row ? array.numbers() : std::vector<double>();
    for (const Value& item : value.list) {
      const std::optional<double> number = plain_number(item);
      if (!number) return;
      numbers.push_back(*number);
    }
    to = std::move(numbers);
  }
  static void read(const Value& value, std::map<std::string, double>& to) {
    for (const msgpack::Entry& entry : value.map)
      if (const auto number = plain_number(entry.value)) to[std::string(entry.key)] = *number;
  }
  static void read(const Value& value, ActionChunk& to) {
    const msgpack::Array& array = value.array;
    ensure(value.kind == Kind::array && array.shape.size() == 2 && array.size() > 0 &&
               !is_text(array.dtype),
           Fault::input, "a reply's 'actions' are {}, expected an array [horizon, dim]",
           describe(value));
    to = {.rows = array.shape[0], .dim = array.shape[1], .values = array.numbers()};
  }
};

}  // namespace

void check_finite(std::span<const double> values, std::string_view key) {
  for (size_t i = 0; i < values.size(); ++i)
    ensure(std::isfinite(values[i]), Fault::input, "'{}'[{}] is {}, expected a finite number", key,
           i, values[i]);
}

msgpack::Writer FieldWriter::at(std::string_view key) {
  ++entries_;
  msgpack::Writer to(bytes_);
  to.text(key);
  return to;
}

void FieldWriter::write(std::string_view key, double number) {
  check_finite({&number, 1}, key);
  at(key).number(number);
}

void FieldWriter::write(std::string_view key, const std::vector<std::string>& texts) {
  msgpack::Writer to = at(key);
  to.list(std::ssize(texts));
  for (const std::string& text : texts) to.text(text);
}

// openpi's own metadata hold Python ints where a pose is whole.
void FieldWriter::write(std::string_view key, const std::vector<double>& numbers) {
  if (numbers.empty()) return;
  msgpack::Writer to = at(key);
  to.list(std::ssize(numbers));
  for (const double number : numbers)
    number == std::trunc(number) ? to.integer(static_cast<int64_t>(number)) : to.number(number);
}

void FieldWriter::write(std::string_view key, const ActionChunk& chunk) {
  if (chunk.rows == 0) return;
  ensure(chunk.dim > 0 && chunk.rows * chunk.dim == std::ssize(chunk.values), Fault::input,
         "{} has {} values, expected {} rows of {}", key, chunk.values.size(), chunk.rows,
         chunk.dim);
  check_finite(chunk.values, key);
  at(key).array(chunk.values, std::array{chunk.rows, chunk.dim});
}

void FieldWriter::write(std::string_view key, const PlainRow& row) {
  const auto data = std::as_bytes(std::span(row.values));
  at(key).array("<f4", std::array{std::ssize(row.values)},
                {reinterpret_cast<const uint8_t*>(data.data()), data.size()},
                msgpack::Writer::Keys::texts);
}

void FieldWriter::write(std::string_view key, const FieldWriter& map) {
  at(key).map(map.entries());
  bytes_ += map.bytes();
}

std::string FieldWriter::map() const {
  std::string map;
  msgpack::Writer(map).map(entries_);
  return map += bytes_;
}

RemotePolicy read_greeting(const Value& map) {
  RemotePolicy policy;
  greeting_fields(policy, LenientReader{map});
  return policy;
}

RemoteActions read_reply(const Value& reply) {
  RemoteActions out;
  if (reply.kind == Kind::array) {
    LenientReader::read(reply, static_cast<ActionChunk&>(out));
    return out;
  }
  ensure(reply.find("actions") != nullptr, Fault::input, "a reply has no 'actions'");
  reply_fields(out, LenientReader{reply});
  return out;
}

PolicyClient::Replies read_replies(const Value& reply) {
  if (reply.kind != Kind::list) return {{read_reply(reply)}};
  PolicyClient::Replies replies{.list = true};
  for (const Value& row : reply.list) replies.rows.push_back(read_reply(row));
  ensure(!replies.rows.empty(), Fault::input, "a reply is an empty list");
  return replies;
}

}  // namespace tendon
