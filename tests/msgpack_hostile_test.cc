// labels: server
// What a message costs: no copies, nothing reserved for what is only claimed, no leak, no crash.
#include <algorithm>
#include <ctime>
#include <filesystem>
#include <functional>
#include <memory>
#include <random>
#include <set>

#include "counted_new.h"
#include "msgpack_messages.h"
#include "refusals.h"

namespace tendon::msgpack {
namespace {

using namespace heap;

TEST(Msgpack, decodes_requests_without_copying_their_pictures) {
  for (const std::string name : {"aloha", "aloha_sim", "droid", "libero"}) {
    const Bytes message = read_file("messages/request_" + name + ".bin");
    const int64_t before = bytes_allocated;
    const Value request = decode(message);
    EXPECT_LT(bytes_allocated - before, 16 << 10) << name;
    int pictures = 0;
    const std::function<void(const Value&)> look = [&](const Value& value) {
      for (const Entry& entry : value.map) look(entry.value);
      if (value.kind != Kind::array) return;
      pictures += value.array.shape.size() == 3 ? 1 : 0;
      EXPECT_GE(value.array.data.data(), message.data());
      EXPECT_LE(value.array.data.data() + value.array.data.size(), message.data() + message.size());
    };
    look(request);
    EXPECT_EQ(pictures, name == "aloha" ? 4 : name == "aloha_sim" ? 1 : 2);
  }
  const Bytes aloha = read_file("messages/request_aloha.bin");
  const Value request = decode(aloha);
  EXPECT_EQ(describe(*request.find("state")), "an array <f8 [14]");
  EXPECT_EQ(describe(*request.find("images")->find("cam_low")), "an array |u1 [3, 224, 224]");
  EXPECT_EQ(request.find("images")->find("cam_hihg"), nullptr);
}

std::string repeated(const std::string& head, size_t count, const std::string& tail = "") {
  std::string out;
  for (size_t i = 0; i < count; ++i) out += head;
  return out + tail;
}

TEST(Msgpack, bombs_are_refused_before_anything_is_reserved) {
  const auto with = [](std::initializer_list<int> head, size_t more) {
    std::string out;
    for (const int byte : head) out += static_cast<char>(byte);
    return out + std::string(more, '\xc0');
  };
  const std::pair<std::string, const char*> bombs[] = {
      {with({0x91}, 0).append(10000, '\x91'), "deeper than 16"},
      {repeated("\x81\xa1k", 10000, "\xc0"), "deeper than 16"},
      {repeated("\x82\xc4\x0b__ndarray__\xc0\xa1k", 17, "\xc0"), "deeper than 16"},
      {with({0xdf, 0xff, 0xff, 0xff, 0xff}, 10), "a map claims 4294967295 items"},
      {with({0xdd, 0xff, 0xff, 0xff, 0xff}, 10), "a list claims 4294967295 items"},
      {with({0xc6, 0x40, 0, 0, 0}, 10), "bytes of 1073741824 bytes, but only 10 are left"},
      {with({0xdb, 0xff, 0xff, 0xff, 0xff}, 10), "a text of 4294967295 bytes"},
      {with({0xdd, 0, 1, 0, 0}, 65536), "more than 65536 values"},
      {with({0xde, 0x10, 0x01}, 16384), "more than 4096 map entries"},
      {with({0xc7, 0xff, 5}, 10), "extension types"},
      {with({0xc9, 0xff, 0xff, 0xff, 0xff, 5}, 10), "extension types"},
      {with({0xd8, 5}, 16), "extension types"}};
  for (const auto& [message, reason] : bombs) {
    const int64_t before = bytes_allocated;
    const std::string got = refusal(bytes_of(message));
    EXPECT_LT(bytes_allocated - before, 32 << 10) << reason;
    EXPECT_TRUE(says(got, reason));
  }
  // Many small containers share one budget.
  const std::string many = with({0xdd, 0, 0, 0x40, 0}, 0) + repeated("\x93\xc0\xc0\xc0", 16384);
  EXPECT_TRUE(says(refusal(bytes_of(many)), "more than 65536 values"));
  EXPECT_EQ(refusal(bytes_of(with({0xdd, 0, 0, 0xff, 0xff}, 65535))), "accepted a list");
}

// Processor time that a map of so many long keys takes, which differ in their last bytes.
double seconds_for_keys(int count) {
  std::string out;
  Writer to(out);
  to.map(count);
  for (int i = 0; i < count; ++i) {
    to.text(std::string(1024, 'k') + std::to_string(i));
    to.nil();
  }
  const std::span<const uint8_t> message = bytes_of(out);
  std::clock_t least = std::numeric_limits<std::clock_t>::max();
  for (int run = 0; run < 5; ++run) {
    const std::clock_t start = std::clock();
    EXPECT_EQ(decode(message).map.size(), static_cast<size_t>(count));
    least = std::min(least, std::clock() - start);
  }
  return static_cast<double>(least) / CLOCKS_PER_SEC;
}

TEST(Msgpack, long_keys_that_differ_in_their_last_byte_cost_no_square) {
  EXPECT_LT(seconds_for_keys(4096), 4 * 8 * seconds_for_keys(512));  // a square: 64 times
}

TEST(Msgpack, decoding_that_runs_out_of_memory_leaks_nothing) {
  for (const char* name : {"codec/pack_mixed_obs.msgpack", "codec/raw_dtype_object.msgpack",
                           "messages/request_droid.bin"}) {
    const Bytes message = read_file(name);
    bool finished = false;
    for (int64_t n = 1; !finished && n <= 2000; ++n) {
      const int64_t before = blocks_held;
      may_fail = true;
      fail_from_now_on(n, false);
      try {
        (void)decode(message);
        finished = true;
      } catch (const std::bad_alloc&) {
      } catch (const Error&) {
        finished = true;
      }
      fail_no_more();
      EXPECT_EQ(blocks_held, before) << name << ", block " << n;
    }
    EXPECT_TRUE(finished) << name;
  }
}

// Everything a server may ask of a value.
double touch(const Value& value) {
  double sum = static_cast<double>(describe(value).size() + value.text.size());
  for (const Value& item : value.list) sum += touch(item);
  for (const Entry& entry : value.map) sum += touch(entry.value) + (value.find(entry.key) ? 1 : 0);
  if (value.kind != Kind::array) return sum;
  const Array& array = value.array;
  EXPECT_EQ(array.size() * array.item_bytes, std::ssize(array.data));
  const bool text = array.dtype == DType::U || array.dtype == DType::S;
  const int64_t step = std::max<int64_t>(1, array.size() / 64);
  for (int64_t i = 0; i < array.size(); i += step) {
    if (text)
      sum += static_cast<double>(array.text(i).size());
    else
      sum += array.number(i);
  }
  return sum;
}

TEST(Msgpack, ten_thousand_mutations_give_a_value_or_a_refusal) {
  std::set<std::string> names;  // sorted: the same messages meet the same mutations everywhere
  for (const char* folder : {"codec", "messages"})
    for (const auto& entry :
         std::filesystem::directory_iterator(std::filesystem::path(TENDON_TEST_PROTOCOL) / folder))
      if (entry.path().extension() != ".json" && entry.file_size() < 2000)
        names.insert(std::string(folder) + "/" + entry.path().filename().string());
  ASSERT_GT(names.size(), 140U);
  const auto content = [](const std::string& name) {
    const Bytes bytes = read_file(name);
    return std::string(bytes.begin(), bytes.end());
  };
  std::vector<std::string> small;
  for (const std::string& name : names) small.push_back(content(name));
  const std::string big = content("messages/request_droid.bin");
  std::mt19937 random(14);
  int accepted = 0, refused = 0;
  double total = 0;
  for (size_t i = 0; i < 10000; ++i) {
    const std::string edited = mutated(i % 100 == 0 ? big : small[i % small.size()], random);
    // Exactly as long as the message, so that a read beyond it is seen.
    const auto message = std::make_unique<uint8_t[]>(edited.size());
    std::ranges::copy(edited, message.get());
    try {
      total += touch(decode({message.get(), edited.size()}));
      ++accepted;
    } catch (const Error& error) {
      ASSERT_EQ(error.fault(), Fault::input) << hex(bytes_of(edited));
      ASSERT_STRNE(error.what(), "");
      ++refused;
    }
  }
  // Neither outcome is rare, or the mutations would not be worth their time.
  EXPECT_GT(accepted, 500);
  EXPECT_GT(refused, 500);
  EXPECT_NE(total, 0);
}

}  // namespace
}  // namespace tendon::msgpack
