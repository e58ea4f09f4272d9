// labels: server
// What a message costs: no copies, nothing reserved for what is only claimed, no leak, no crash.
#include <algorithm>
#include <ctime>
#include <limits>

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
  }
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
    const FailedCalls decoded = with_every_failure([&](int64_t n) {
      fail_from_now_on(n, false);
      may_fail = true;
      try {
        (void)decode(message);
      } catch (const std::bad_alloc&) {
      } catch (const Error&) {
      }
      may_fail = false;
    });
    EXPECT_EQ(decoded.leaked, 0) << name;
  }
}

}  // namespace
}  // namespace tendon::msgpack
