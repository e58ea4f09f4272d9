// labels: server
// Every message that openpi's packer makes and every one that its unpacker was tried on, against
// what was recorded.
#include "client/msgpack.h"

#include <gtest/gtest.h>

#include <bit>
#include <cstdlib>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "msgpack_messages.h"
#include "refusals.h"

namespace tendon::msgpack {
namespace {

using Json = nlohmann::json;

// A number of the index as Python printed it, as the bits of a double: NaN and -0 count.
uint64_t bits_of(const std::string& printed) {
  if (printed == "True" || printed == "False")
    return std::bit_cast<uint64_t>(printed == "True" ? 1. : 0.);
  return std::bit_cast<uint64_t>(std::strtod(printed.c_str(), nullptr));
}

// Of 'x' or b'x'.
std::string unquoted(const std::string& printed) {
  const size_t first = printed.find('\'') + 1;
  return printed.substr(first, printed.size() - 1 - first);
}

std::string integer_text(const Value& value) {
  return value.above_int64 ? std::to_string(static_cast<uint64_t>(value.integer))
                           : std::to_string(value.integer);
}

void expect_array(const Array& got, const Json& want) {
  EXPECT_EQ(got.dtype_name(), want["dtype"]);
  EXPECT_EQ(Json(got.shape), want["shape"]);
  EXPECT_EQ(hex(got.data), want["data_hex"]);
  EXPECT_EQ(got.size() * got.item_bytes, std::ssize(got.data));
  if (!want.contains("values")) return;
  ASSERT_EQ(got.size(), std::ssize(want["values"]));
  for (int64_t i = 0; i < got.size(); ++i) {
    const std::string printed = want["values"][static_cast<size_t>(i)];
    if (got.dtype == DType::U || got.dtype == DType::S)
      EXPECT_EQ(got.text(i), unquoted(printed));
    else
      EXPECT_EQ(std::bit_cast<uint64_t>(got.number(i)), bits_of(printed)) << i << ": " << printed;
  }
}

void expect_scalar(const Value& got, const Json& want) {
  EXPECT_EQ(got.array.dtype_name(), want["dtype"]);
  EXPECT_TRUE(got.array.shape.empty() && got.array.data.empty());
  const std::string printed = want["value"];
  switch (got.array.dtype) {
    case DType::U:
    case DType::S: EXPECT_EQ(got.text, unquoted(printed)); break;
    case DType::f2:
    case DType::f4:
    case DType::f8: EXPECT_EQ(std::bit_cast<uint64_t>(got.number), bits_of(printed)); break;
    case DType::b1: EXPECT_EQ(got.boolean, printed == "True"); break;
    default: EXPECT_EQ(integer_text(got), printed);
  }
}

void expect_value(const Value& got, const Json& want) {
  static const std::map<std::string, Kind> kinds = {
      {"ndarray", Kind::array}, {"npscalar", Kind::scalar}, {"map", Kind::map},
      {"array", Kind::list},    {"int", Kind::integer},     {"float", Kind::number},
      {"str", Kind::text},      {"bin", Kind::bytes},       {"bool", Kind::boolean},
      {"nil", Kind::nil}};
  ASSERT_EQ(got.kind, kinds.at(want["t"])) << describe(got) << " but wanted " << want;
  switch (got.kind) {
    case Kind::array: return expect_array(got.array, want);
    case Kind::scalar: return expect_scalar(got, want);
    case Kind::nil: return;
    case Kind::boolean: EXPECT_EQ(got.boolean, want["v"].get<bool>()); return;
    case Kind::integer: EXPECT_EQ(integer_text(got), want["v"]); return;
    case Kind::number: {
      Bytes bits;
      for (int shift = 56; shift >= 0; shift -= 8)
        bits.push_back(static_cast<uint8_t>(std::bit_cast<uint64_t>(got.number) >> shift));
      EXPECT_EQ(hex(bits), want["hex"]);
      return;
    }
    case Kind::text: EXPECT_EQ(got.text, want["v"].get<std::string>()); return;
    case Kind::bytes: EXPECT_EQ(hex(bytes_of(got.text)), want["hex"]); return;
    case Kind::list:
      ASSERT_EQ(got.list.size(), want["v"].size());
      for (size_t i = 0; i < got.list.size(); ++i) expect_value(got.list[i], want["v"][i]);
      return;
    case Kind::map:
      ASSERT_EQ(got.map.size(), want["v"].size());
      for (size_t i = 0; i < got.map.size(); ++i) {
        const Json& key = want["v"][i][0];
        EXPECT_EQ(got.map[i].bytes_key, key["t"] == "bin");
        if (key["t"] == "bin")
          EXPECT_EQ(hex(bytes_of(got.map[i].key)), key["hex"]);
        else
          EXPECT_EQ(got.map[i].key, key["v"].get<std::string>());
        expect_value(got.map[i].value, want["v"][i][1]);
      }
  }
}

Json index_cases() {
  std::ifstream in(TENDON_TEST_PROTOCOL "/codec/index.json");
  return Json::parse(in)["cases"];
}

// What each refusal has to say. The first group may be accepted or refused: we refuse.
const std::map<std::string, const char*>& reasons() {
  static const std::map<std::string, const char*> table = {
      {"pack_datetime", "\"<M8[s]\" is unknown"},
      {"pack_timedelta", "\"<m8[ms]\" is unknown"},
      {"raw_dtype_name", "\"float32\" is unknown"},
      {"raw_dtype_f16_long_double", "\"<f16\" is unknown"},
      {"raw_dtype_bf16", "\"bfloat16\" is unknown"},
      {"raw_npgeneric_u1_overflow", "range"},
      {"raw_ext1", "extension types"},
      {"raw_ext_timestamp32", "extension types"},

      {"pack_int_keys", "map key is an integer"},
      {"raw_dtype_unknown", "\"zz\" is unknown"},
      {"raw_dtype_empty", "\"\" is unknown"},
      {"raw_dtype_nil", "'dtype' is nil"},
      {"raw_dtype_object", "\"|O\" holds Python objects"},
      {"raw_dtype_object_bytes", "\"|O\" holds Python objects"},
      {"raw_dtype_complex", "\"<c8\" holds complex numbers"},
      {"raw_dtype_void", "\"|V4\" holds void"},
      {"raw_dtype_struct", "structured"},
      {"raw_dtype_comma", "\"<f4,<f4\" is structured"},
      {"raw_shape_missing", "no 'shape'"},
      {"raw_shape_negative", "'shape' holds -1"},
      {"raw_shape_negative_2d", "'shape' holds -1"},
      {"raw_shape_minus_two", "'shape' holds -2"},
      {"raw_shape_float", "'shape' holds a number"},
      {"raw_shape_bool", "'shape' holds a boolean"},
      {"raw_shape_str", "'shape' is a text"},
      {"raw_shape_nil", "'shape' is nil"},
      {"raw_shape_overflow", "overflow 64 bits"},
      {"raw_shape_overflow_zero", "overflow 64 bits"},
      {"raw_shape_huge", "bytes of data, got 4"},
      {"raw_shape_33_dims", "33 dimensions, expected at most 8"},
      {"raw_shape_65_dims", "65 dimensions"},
      {"raw_data_short", "an array <f4 [1] needs 4 bytes of data, got 3"},
      {"raw_data_empty", "needs 4 bytes of data, got 0"},
      {"raw_data_str", "'data' of an array is a text"},
      {"raw_data_list", "'data' of an array is a list"},
      {"raw_data_nil", "'data' of an array is nil"},
      {"raw_data_missing", "no 'data'"},
      {"raw_data_ndarray", "'data' of an array is an array"},
      {"raw_npgeneric_list", "'data' of a NumPy scalar <f4 is a list"},
      {"raw_npgeneric_missing", "no 'data'"},
      {"raw_int_key", "map key is an integer"},
      {"raw_nil_key", "map key is nil"},
      {"raw_float_key", "map key is a number"},
      {"raw_array_key", "map key is a list"},
      {"raw_trailing", "goes on for 1 bytes"},
      {"raw_truncated_map", "a map claims 2 items, but only 3 bytes"},
      {"raw_truncated_bin", "of 10 bytes, but only 3"},
      {"raw_claimed_1gib", "of 1073741824 bytes, but only 3"},
      {"raw_claimed_map32", "a map claims 4294967295 items, but only 0"},
      {"raw_claimed_array32", "a list claims 4294967295 items, but only 0"},
      {"raw_empty", "only 0 are left"},
      {"raw_reserved_c1", "0xc1"},
      {"raw_bad_utf8", "UTF-8"},
      {"raw_overlong_utf8", "UTF-8"},
      {"raw_surrogate_utf8", "UTF-8"},
      {"raw_ext_timestamp_bad", "extension types"},
      {"raw_depth_500", "deeper than 16"},
      {"raw_depth_1023", "deeper than 16"},
      {"raw_depth_1024", "deeper than 16"},
      {"raw_depth_100000", "deeper than 16"},
  };
  return table;
}

TEST(Msgpack, decodes_and_refuses_what_openpis_unpacker_was_tried_on) {
  int accepted = 0, refused = 0, repacked = 0;
  for (const Json& one : index_cases()) {
    if (!one.contains("file")) continue;
    const std::string name = one["name"];
    SCOPED_TRACE(name);
    const Bytes message = read_file("codec/" + one["file"].get<std::string>());
    ASSERT_EQ(message.size(), one["bytes"]);
    const auto reason = reasons().find(name);
    EXPECT_NE(one["required"], reason == reasons().end() ? "refuse" : "accept");
    if (reason != reasons().end()) {
      const std::string got = refusal(message);
      EXPECT_TRUE(says(got, reason->second));
      EXPECT_TRUE(got.starts_with("msgpack at byte ")) << got;
      ++refused;
      continue;
    }
    ++accepted;
    const Value value = decode(message);
    if (name == "raw_str_keys") {  // openpi leaves a map of it; no robot can mean that
      EXPECT_EQ(describe(value), "an array <f4 [1]");
      continue;
    }
    expect_value(value, one["value"]);
    if (!one.value("repacks_identically", false)) continue;
    std::string again;
    Writer(again).value(value);
    EXPECT_EQ(hex(bytes_of(again)), hex(message));
    ++repacked;
  }
  EXPECT_EQ(accepted + refused, 142);
  EXPECT_EQ(refused, std::ssize(reasons()));
  EXPECT_EQ(repacked, 51);  // of the index's 53 we refuse the two of times
}

// The other ten cases are values; what would arrive of them if a packer took them.
TEST(Msgpack, refuses_by_name_what_openpis_packer_does_not_pack) {
  const std::map<std::string, const char*> dtypes = {
      {"<c8", "complex"},     {"<c16", "complex"},
      {">c8", "complex"},     {"c8", "complex"},
      {"|O", "objects"},      {"O8", "objects"},
      {"|V12", "structured"}, {"V", "structured"},
      {"<M8[s]", "M8[s]"},    {"f4,(2)i4", "is struct"},
      {"<U0", "unknown"},     {"<U", "unknown"},
      {"<U-1", "unknown"},    {"<U99999999999999999999", "unknown"},
      {"<U4x", "unknown"},    {"<S16777217", "unknown"},
      {"<b2", "unknown"},     {"<<f4", "unknown"}};
  for (const auto& [dtype, reason] : dtypes)
    for (const bool scalar : {false, true}) {
      std::string message;
      Writer to(message);
      to.map(4);
      for (const char* key : {scalar ? "__npgeneric__" : "__ndarray__", "shape"}) {
        to.bytes(bytes_of(key));
        to.list(0);
      }
      to.bytes(bytes_of("data"));
      to.bytes(Bytes(16, 0));
      to.bytes(bytes_of("dtype"));
      to.text(dtype);
      EXPECT_TRUE(says(refusal(bytes_of(message)), reason)) << dtype;
    }
  for (const char* first : {"\n\x1b[31m", "O\n\x1b"}) {
    std::string message;
    Writer(message).array(first + std::string(1000, 'x'), {}, {});
    const std::string got = refusal(bytes_of(message));
    EXPECT_EQ(got.find_first_of("\n\x1b"), std::string::npos);
    EXPECT_LT(got.size(), 200U);
  }
}

TEST(Msgpack, refuses_shapes_that_overflow_wherever_a_zero_stands) {
  const int64_t big = int64_t{1} << 40;
  for (const std::vector<int64_t>& shape :
       {std::vector<int64_t>{0, big, big}, {big, 0, big}, {big, big, 0}}) {
    std::string message;
    Writer(message).array("|u1", shape, {});
    EXPECT_TRUE(says(refusal(bytes_of(message)), "overflow"));
  }
  std::string message;
  Writer(message).array("|u1", std::vector<int64_t>{big, 0}, {});
  EXPECT_EQ(decode(bytes_of(message)).array.size(), 0);
}

TEST(Msgpack, writes_the_bytes_of_openpis_server) {
  for (const char* name :
       {"request_aloha", "request_aloha_sim", "request_droid", "request_libero", "response_aloha",
        "response_droid", "response_libero_second", "metadata_empty", "metadata_aloha"}) {
    const Bytes message = read_file("messages/" + std::string(name) + ".bin");
    std::string out;
    Writer(out).value(decode(message));
    EXPECT_TRUE(std::ranges::equal(bytes_of(out), message)) << name;
  }
  std::string out;
  Writer to(out);
  to.array(std::vector<double>{1, -2.5, 0.25}, std::vector<int64_t>{3, 1});
  EXPECT_EQ(describe(decode(bytes_of(out))), "an array <f8 [3, 1]");
  EXPECT_EQ(decode(bytes_of(out)).array.number(1), -2.5);
  EXPECT_THROW(to.array(std::vector<double>{1}, std::vector<int64_t>{2}), Error);
}

TEST(Msgpack, writes_each_length_in_its_shortest_form) {
  struct Row {
    Kind kind;
    size_t size;
    const char* head;
  };
  for (const auto& [kind, size, head] : {Row{Kind::text, 31, "bf"},
                                         {Kind::text, 32, "d920"},
                                         {Kind::text, 255, "d9ff"},
                                         {Kind::text, 256, "da0100"},
                                         {Kind::text, 65535, "daffff"},
                                         {Kind::text, 65536, "db00010000"},
                                         {Kind::bytes, 0, "c400"},
                                         {Kind::bytes, 255, "c4ff"},
                                         {Kind::bytes, 256, "c50100"},
                                         {Kind::bytes, 65535, "c5ffff"},
                                         {Kind::bytes, 65536, "c600010000"},
                                         {Kind::list, 15, "9f"},
                                         {Kind::list, 16, "dc0010"},
                                         {Kind::list, 65535, "dcffff"},
                                         {Kind::list, 65536, "dd00010000"},
                                         {Kind::map, 15, "8f"},
                                         {Kind::map, 16, "de0010"},
                                         {Kind::map, 65535, "deffff"},
                                         {Kind::map, 65536, "df00010000"}}) {
    std::string out;
    Writer to(out);
    if (kind == Kind::text) to.text(std::string(size, 'x'));
    if (kind == Kind::bytes) to.bytes(Bytes(size));
    if (kind == Kind::list) to.list(static_cast<int64_t>(size));
    if (kind == Kind::map) to.map(static_cast<int64_t>(size));
    const bool whole = kind == Kind::text || kind == Kind::bytes;
    EXPECT_EQ(hex(bytes_of(out.substr(0, out.size() - (whole ? size : 0)))), head);
    if (whole) {
      EXPECT_EQ(decode(bytes_of(out)).text.size(), size);
    }
  }
  std::string out;
  EXPECT_THROW(Writer(out).list(-1), Error);
}

TEST(Msgpack, keeps_the_last_of_equal_keys_at_the_place_of_the_first) {
  std::string out;
  Writer to(out);
  to.map(60);
  for (int i = 0; i < 60; ++i) {
    const std::string key = "key " + std::to_string(i % 20);
    if (i % 3 == 0)
      to.bytes(bytes_of(key));
    else
      to.text(key);
    to.integer(i);
  }
  // 20 and 3 have no common factor: each key came twice as text and once as bytes.
  const Value value = decode(bytes_of(out));
  ASSERT_EQ(value.map.size(), 40U);
  std::set<std::pair<std::string, bool>> seen;
  for (const Entry& entry : value.map) {
    EXPECT_TRUE(seen.emplace(entry.key, entry.bytes_key).second);
    int64_t last = -1;
    for (int i = 0; i < 60; ++i)
      if ("key " + std::to_string(i % 20) == entry.key && (i % 3 == 0) == entry.bytes_key) last = i;
    EXPECT_EQ(entry.value.integer, last) << entry.key;
  }
  EXPECT_EQ(value.map[1].key, "key 1");
  EXPECT_EQ(value.map[1].value.integer, 41);  // 1 and 41 as text, 21 as bytes
}

std::string utf32(std::initializer_list<uint32_t> codes, bool big_endian) {
  std::string data;
  for (const uint32_t code : codes)
    for (int i = 0; i < 4; ++i)
      data += static_cast<char>(code >> (big_endian ? 24 - 8 * i : 8 * i));
  std::string out;
  const std::string dtype = (big_endian ? ">U" : "<U") + std::to_string(codes.size());
  Writer(out).array(dtype, {}, bytes_of(data));
  return out;
}

TEST(Msgpack, turns_numpy_strings_into_utf8_and_refuses_what_is_no_unicode) {
  for (const bool big_endian : {false, true}) {
    const auto text = [&](std::initializer_list<uint32_t> codes) {
      return decode(bytes_of(utf32(codes, big_endian))).array.text(0);
    };
    EXPECT_EQ(text({0}), "");
    EXPECT_EQ(text({'a', 0, 'b', 0, 0}), std::string("a\0b", 3));
    EXPECT_EQ(text({0x7f, 0x80, 0x7ff, 0x800, 0xd7ff, 0xe000, 0xffff, 0x10000, 0x10ffff}),
              "\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xef\xbf\xbf\xf0\x90\x80\x80"
              "\xf4\x8f\xbf\xbf");
    for (const uint32_t code : {0xd800U, 0xdfffU, 0x110000U, 0xffffffffU})
      EXPECT_THROW(text({'a', code}), Error);
  }
  std::string out;
  Writer(out).array("|S3", std::vector<int64_t>{2}, bytes_of(std::string("a\0\0\0b\0", 6)));
  EXPECT_EQ(decode(bytes_of(out)).array.text(0), "a");
  EXPECT_EQ(decode(bytes_of(out)).array.text(1), std::string("\0b", 2));
  out.clear();
  Writer(out).array("|S2", {}, bytes_of("\xc3("));
  EXPECT_THROW(decode(bytes_of(out)).array.text(0), Error);
}

}  // namespace
}  // namespace tendon::msgpack
