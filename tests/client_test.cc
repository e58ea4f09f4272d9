// labels: server
// The C++ client against a server of three lines, against openpi's recorded bytes and against what
// `tendon serve` reads.
#include "tendon/client.h"

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <limits>
#include <stdexcept>
#include <thread>

#include "client/wire_fields.h"
#include "msgpack_messages.h"
#include "network_peers.h"
#include "refusals.h"
#include "serve/request.h"

namespace tendon {
namespace {

using msgpack::Value;
using msgpack::Write;
using msgpack::Writer;

std::string fixture(const std::string& name) {
  const Bytes bytes = msgpack::read_file("messages/" + name);
  return {bytes.begin(), bytes.end()};
}

const std::string kEmptyMap = "\x80";

std::string reply_with(const std::vector<double>& values, int64_t rows,
                       const std::string& request_id = "") {
  msgpack::Fields fields = {
      {"actions", msgpack::doubles(values, {rows, std::ssize(values) / rows})}};
  if (!request_id.empty()) fields.emplace_back("request_id", msgpack::text(request_id));
  return msgpack::message(fields);
}

// Greets, then answers the n-th request by `answer`; as text what begins with "text".
struct FakeServer : TestServer {
  using Answer = std::function<std::string(int request)>;

  FakeServer(std::string greeting, Answer answer, const WebSocketOptions& options = {})
      : TestServer(
            options,
            [answer, request = 0](Network& sender, ConnectionId id, const Bytes&) mutable {
              const std::string reply = answer(request++);
              sender.send(id, reply, reply.starts_with("text"));
              return true;
            },
            std::move(greeting)) {}
};

FakeServer::Answer always(std::string reply) {
  return [reply](int) { return reply; };
}

RemoteObservation small_observation() {
  return std::move(RemoteObservation().state("observation/state", {1, 2}).prompt("go"));
}

Image gradient(int height, int width) {
  std::vector<uint8_t> rgb(static_cast<size_t>(3 * height * width));
  for (size_t i = 0; i < rgb.size(); ++i) rgb[i] = static_cast<uint8_t>(i);
  return {.height = height, .width = width, .rgb = std::move(rgb)};
}

Image picture_in(const Value& value, bool planar) {
  const std::vector<int64_t>& shape = value.array.shape;
  return {.height = static_cast<int>(shape.at(planar ? 1 : 0)),
          .width = static_cast<int>(shape.at(planar ? 2 : 1)),
          .rgb = Pixels::view(value.array.data),
          .planar = planar};
}

TEST(RemoteObservation, aloha_is_byte_for_byte_what_openpi_sends) {
  for (const char* name : {"request_aloha.bin", "request_aloha_sim.bin"}) {
    const std::string wanted = fixture(name);
    const Value message = msgpack::decode(bytes_of(wanted));
    RemoteObservation built;
    built.state("state", message.find("state")->array.numbers());
    for (const msgpack::Entry& camera : message.find("images")->map)
      built.camera(std::string(camera.key), picture_in(camera.value, true));
    if (const Value* prompt = message.find("prompt")) built.prompt(std::string(prompt->text));
    EXPECT_TRUE(request_message(built) == wanted) << name;
  }
}

TEST(RemoteObservation, droid_and_libero_are_byte_for_byte_what_openpi_sends) {
  for (const std::string robot : {"droid", "libero"}) {
    const std::string wanted = fixture("request_" + robot + ".bin");
    const Value message = msgpack::decode(bytes_of(wanted));
    Observation seen{.prompt = std::string(message.find("prompt")->text)};
    for (const msgpack::Entry& entry : message.map) {
      if (entry.value.kind != Value::Kind::array) continue;
      if (entry.key.find("image") != entry.key.npos)
        seen.images[std::string(entry.key.substr(12))] = picture_in(entry.value, false);
      else
        for (const double value : entry.value.array.numbers()) seen.state.push_back(value);
    }
    EXPECT_TRUE(request_message(laid_out(seen, robot)) == wanted) << robot;
  }
}

TEST(RemoteObservation, tendon_reads_back_what_was_laid_out) {
  for (const std::string robot : {"aloha", "droid", "libero", "lerobot"}) {
    Observation seen{.prompt = "fold the shirt"};
    const bool aloha = robot == "aloha", droid = robot == "droid", lerobot = robot == "lerobot";
    const std::vector<std::string> cameras =
        aloha     ? std::vector<std::string>{"cam_high", "cam_left_wrist"}
        : droid   ? std::vector<std::string>{"exterior_image_1_left", "wrist_image_left"}
        : lerobot ? std::vector<std::string>{"top"}
                  : std::vector<std::string>{"image", "wrist_image"};
    for (const std::string& camera : cameras) seen.images[camera] = gradient(4, 5);
    ModelCard card{{.robot = robot, .cameras = cameras}};
    card.horizon = 10;
    card.state_dim = aloha ? 14 : 8;
    for (int64_t i = 0; i < card.state_dim; ++i) seen.state.push_back(0.1 * static_cast<double>(i));

    const std::string message = request_message(laid_out(seen, robot));
    const Value decoded = msgpack::decode(bytes_of(message));
    const Observation read = read_request(decoded, card, Dialect::openpi).observation;
    EXPECT_EQ(read.prompt, seen.prompt);
    EXPECT_EQ(read.state, seen.state);
    ASSERT_EQ(read.images.size(), cameras.size()) << robot;
    for (const std::string& camera : cameras) {
      const Image& image = read.images.at(camera);
      EXPECT_EQ(image.planar, aloha) << robot;
      ASSERT_EQ(image.height, 4);
      ASSERT_EQ(image.width, 5);
      for (size_t pixel = 0; pixel < 20; ++pixel)
        for (size_t c = 0; c < 3; ++c)
          EXPECT_EQ(image.rgb[aloha ? c * 20 + pixel : 3 * pixel + c], 3 * pixel + c);
    }
  }
}

TEST(RemoteObservation, a_key_given_again_is_replaced_in_its_place) {
  RemoteObservation now;
  now.camera("cam_high", gradient(2, 2)).state("state", {1}).camera("cam_low", gradient(2, 2));
  now.camera("cam_high", gradient(6, 2)).state("state", {2, 3});
  const std::string message = request_message(now);
  const Value decoded = msgpack::decode(bytes_of(message));
  ASSERT_EQ(decoded.map.size(), 2);
  EXPECT_EQ(decoded.map[0].key, "images");
  ASSERT_EQ(decoded.map[0].value.map.size(), 2);
  EXPECT_EQ(decoded.map[0].value.map[0].key, "cam_high");
  EXPECT_EQ(decoded.map[0].value.map[0].value.array.shape, (std::vector<int64_t>{3, 6, 2}));
  EXPECT_EQ(decoded.map[1].value.array.numbers(), (std::vector<double>{2, 3}));
}

TEST(RemoteObservation, every_option_arrives_under_its_key) {
  RemoteOptions options{.seed = 7,
                        .request_id = "pick 12",
                        .deadline_ms = 80.5,
                        .observed_at = 1.75e9,
                        .inference_delay = 2,
                        .execution_horizon = 8,
                        .actions_consumed = 3};
  options.noise = {.rows = 1, .dim = 4, .values = {-1, 0, 1, 2}};
  options.prev_chunk = {.rows = 2, .dim = 3, .values = {1, 2, 3, 4, 5, 6}};
  RemoteObservation now = laid_out({.prompt = "x", .state = {0, 0}}, "lerobot");
  now.image("observation.images.top", gradient(3, 4));
  const std::string message = request_message(now, options);
  ModelCard card{{.cameras = {"top"}}};
  card.horizon = 10;
  card.action_dim = 3;
  card.model_action_dim = 4;
  card.state_dim = 2;
  const Value decoded = msgpack::decode(bytes_of(message));
  const Request read = read_request(decoded, card, Dialect::openpi);
  EXPECT_EQ(read.seed, 7);
  EXPECT_EQ(read.noise.values, options.noise.values);
  EXPECT_EQ(read.request_id, RequestId("pick 12"));
  EXPECT_EQ(read.deadline_ms, 80.5);
  EXPECT_EQ(read.observed_at, 1.75e9);
  EXPECT_EQ(read.prev_chunk.values, options.prev_chunk.values);
  EXPECT_EQ(read.prev_chunk.rows, 2);
  EXPECT_EQ(read.inference_delay, 2);
  EXPECT_EQ(read.execution_horizon, 8);
  EXPECT_EQ(read.actions_consumed, 3);
}

TEST(RemoteObservation, what_no_server_could_take_is_refused_before_it_is_sent) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  Image short_picture = gradient(4, 4);
  short_picture.height = 5;
  const std::vector<std::pair<std::string, std::function<std::string()>>> cases = {
      {"'s'[1] is nan",
       [&] {
         return request_message(RemoteObservation().state("s", {0, nan}));
       }},
      {"'n'[0] is inf", [&] { return request_message(RemoteObservation().number("n", 1 / 0.)); }},
      {"'a' has 48 bytes, expected 3 x 5 x 4",
       [&] { return request_message(RemoteObservation().image("a", short_picture)); }},
      {"'b' has 48 bytes, expected 3 x 5 x 4",
       [&] { return request_message(RemoteObservation().camera("b", short_picture)); }},
      {"prev_chunk has 3 values, expected 2 rows of 2",
       [] {
         return request_message({}, {.prev_chunk = {2, 2, {1, 2, 3}}});
       }},
      {"7 joints and a gripper", [] {
         return request_message(laid_out({.state = {1, 2}}, "droid"));
       }}};
  for (const auto& [words, call] : cases) EXPECT_TRUE(refuses(Fault::input, words, call));
  EXPECT_TRUE(refuses(Fault::usage, "'alhoa'", [] { laid_out({}, "alhoa"); }));
}

TEST(PolicyClient, reads_what_the_server_says_about_its_policy) {
  const auto list = [](auto... items) {
    return [=](Writer& to) {
      to.list(sizeof...(items));
      (items(to), ...);
    };
  };
  using namespace msgpack;
  const std::string greeting = message({{"reset_pose", list(integer(0), number(-1.5))},
                                        {"model", text("pi05_aloha")},
                                        {"robot", text("aloha")},
                                        {"action_horizon", integer(50)},
                                        {"action_names", list(text("left"), text("right"))},
                                        {"demo", [](Writer& to) { to.boolean(true); }},
                                        {"somebody's own", [](Writer& to) { to.map(0); }}});
  FakeServer server(greeting, always(kEmptyMap));
  const PolicyClient client(server.url());
  EXPECT_EQ(client.policy().reset_pose, (std::vector<double>{0, -1.5}));
  EXPECT_EQ(client.policy().model, "pi05_aloha");
  EXPECT_EQ(client.policy().robot, "aloha");
  EXPECT_EQ(client.policy().horizon, 50);
  EXPECT_EQ(client.policy().action_names, (std::vector<std::string>{"left", "right"}));
  EXPECT_TRUE(client.policy().demo);
  EXPECT_EQ(client.policy().server, "");
}

TEST(PolicyClient, openpis_greetings_are_enough) {
  for (const char* name : {"metadata_empty.bin", "metadata_aloha.bin"}) {
    FakeServer server(fixture(name), always(fixture("response_aloha.bin")));
    PolicyClient client(server.url());
    EXPECT_EQ(client.policy().horizon, 0);
    EXPECT_FALSE(client.policy().demo);
    EXPECT_EQ(client.policy().reset_pose.size(), name == std::string("metadata_aloha.bin") ? 6 : 0);
    EXPECT_EQ(client.infer(small_observation()).rows, 50);
    // It does not name its robot; somebody has to.
    EXPECT_EQ(refused([&] { client.infer(Observation{}); }).fault(), Fault::usage);
    EXPECT_EQ(client.infer(Observation{.state = {1}}, "lerobot").dim, 14);
  }
}

TEST(PolicyClient, odd_facts_count_as_absent) {
  const Write odd = [](Writer& to) {
    to.list(1);
    to.list(0);
  };
  msgpack::Fields fields;
  for (const char* key : {"model", "action_names", "reset_pose", "action_horizon", "demo"})
    fields.emplace_back(key, odd);
  FakeServer server(msgpack::message(fields), always(kEmptyMap));
  const PolicyClient client(server.url());
  EXPECT_EQ(client.policy().model, "");
  EXPECT_TRUE(client.policy().action_names.empty());
  EXPECT_TRUE(client.policy().reset_pose.empty());
  EXPECT_EQ(client.policy().horizon, 0);
  EXPECT_FALSE(client.policy().demo);
}

TEST(PolicyClient, gives_openpis_recorded_replies) {
  FakeServer server(kEmptyMap, [](int request) {
    return fixture(request == 0 ? "response_aloha.bin" : "response_libero_second.bin");
  });
  PolicyClient client(server.url());
  const RemoteActions first = client.infer(small_observation());
  EXPECT_EQ(first.rows, 50);
  EXPECT_EQ(first.dim, 14);
  EXPECT_EQ(first.values.size(), 700);
  EXPECT_TRUE(first.server_timing.contains("infer_ms"));
  EXPECT_FALSE(first.server_timing.contains("prev_total_ms"));
  EXPECT_TRUE(first.policy_timing.contains("infer_ms"));
  const RemoteActions second = client.infer(small_observation());
  EXPECT_EQ(second.rows, 10);
  EXPECT_EQ(second.dim, 7);
  EXPECT_GT(second.server_timing.at("prev_total_ms"), 0);
  const std::string wanted = fixture("response_libero_second.bin");
  EXPECT_EQ(second.values, msgpack::decode(bytes_of(wanted)).find("actions")->array.numbers());
}

TEST(PolicyClient, the_server_gets_the_message_and_its_time_is_counted) {
  std::atomic<bool> equal = false;
  const std::string wanted = request_message(small_observation());
  const auto late = [&](Network& network, ConnectionId id, const Bytes& message) {
    equal = std::string(message.begin(), message.end()) == wanted;
    network.after(0.05, [&network, id] { network.send(id, reply_with({1, 2}, 1)); });
    return true;
  };
  TestServer server({}, late, kEmptyMap);
  PolicyClient client(server.url());
  const RemoteActions actions = client.infer(small_observation());
  EXPECT_TRUE(equal);
  EXPECT_GE(actions.round_trip_ms, 50);
}

TEST(PolicyClient, a_refused_request_leaves_the_connection_usable) {
  FakeServer server(kEmptyMap, [](int request) {
    return request == 0 ? "text of a refusal {}" : reply_with({1, 2, 3, 4}, 2);
  });
  PolicyClient client(server.url());
  const Error error = refused([&] { client.infer(small_observation()); });
  EXPECT_EQ(error.fault(), Fault::input);
  EXPECT_STREQ(error.what(), "text of a refusal {}");
  EXPECT_EQ(client.infer(small_observation()).values, (std::vector<double>{1, 2, 3, 4}));
}

TEST(PolicyClient, a_server_that_closes_is_a_network_fault_from_then_on) {
  const auto closes = [](Network& network, ConnectionId id, const Bytes&) {
    network.send(id, "Traceback", true);
    network.close(id, CloseCode::internal_error, "see above");
    return true;
  };
  TestServer server({}, closes, kEmptyMap);
  PolicyClient client(server.url());
  const auto infer = [&] { client.infer(small_observation()); };
  EXPECT_TRUE(refuses(Fault::input, "Traceback", infer));
  EXPECT_TRUE(refuses(Fault::network, "", infer));
  EXPECT_TRUE(refuses(Fault::network, "was lost", infer));
}

// The one that moves a robot to where it was a second ago.
TEST(PolicyClient, a_late_reply_is_never_taken_for_the_next_requests) {
  const auto late = [value = 0.](Network& network, ConnectionId id, const Bytes&) mutable {
    network.after(
        0.3, [&network, id, reply = reply_with({value, value}, 1)] { network.send(id, reply); });
    ++value;
    return true;
  };
  TestServer server({}, late, kEmptyMap);
  PolicyClient client(server.url(), {.timeout_s = 0.1});
  const auto infer = [&] { client.infer(small_observation()); };
  EXPECT_TRUE(refuses(Fault::network, "no answer within 0.1 s", infer));
  std::this_thread::sleep_for(std::chrono::milliseconds(400));
  EXPECT_TRUE(refuses(Fault::network, "", infer));
  client = PolicyClient(server.url(), {.timeout_s = 10});
  EXPECT_EQ(client.infer(small_observation()).values[0], 1);
}

TEST(PolicyClient, actions_that_are_not_finite_are_refused) {
  FakeServer server(kEmptyMap, [](int request) {
    return reply_with({0, 0, 0, request == 0 ? std::numeric_limits<double>::infinity() : 5}, 2);
  });
  PolicyClient client(server.url());
  const Error error = refused([&] { client.infer(small_observation()); });
  EXPECT_EQ(error.fault(), Fault::internal);
  EXPECT_STREQ(error.what(), "the server's action 1 of row 1 is inf");
  EXPECT_EQ(client.infer(small_observation()).values[3], 5);
}

TEST(PolicyClient, replies_that_are_none_end_the_connection) {
  std::string text_array, flat;
  Writer(text_array).array("<U1", std::array<int64_t, 2>{1, 1}, std::vector<uint8_t>(4));
  Writer(flat).array(std::vector<double>{1, 2}, std::array<int64_t, 1>{2});
  for (const std::string& reply : {std::string("\xc1"), kEmptyMap, std::string("\x01"), text_array,
                                   flat, fixture("response_aloha.bin").substr(0, 5000)}) {
    FakeServer server(kEmptyMap, always(reply));
    PolicyClient client(server.url());
    const auto infer = [&] { client.infer(small_observation()); };
    EXPECT_TRUE(refuses(Fault::network, "", infer));
    EXPECT_TRUE(refuses(Fault::network, "was lost", infer));
  }
}

TEST(PolicyClient, a_bare_array_is_a_reply_too) {
  std::string reply;
  const std::vector<uint8_t> half_one = {0, 0x3c, 0, 0x3c};  // float16
  Writer(reply).array("<f2", std::array<int64_t, 2>{2, 1}, half_one);
  FakeServer server(kEmptyMap, always(reply));
  EXPECT_EQ(PolicyClient(server.url()).infer(small_observation()).values,
            (std::vector<double>{1, 1}));
}

TEST(PolicyClient, a_list_of_replies_has_a_chunk_per_row) {
  std::string list, empty;
  Writer(list).list(2);
  list += reply_with({1, 2}, 1) + reply_with({3, 4}, 1);
  Writer(empty).list(0);
  FakeServer server(kEmptyMap, [&](int request) {
    return request < 2 ? list : request == 2 ? reply_with({5, 6}, 1) : empty;
  });
  PolicyClient client(server.url());
  const PolicyClient::Replies both = client.ask_rows(kEmptyMap);
  EXPECT_TRUE(both.list);
  ASSERT_EQ(both.rows.size(), 2u);
  EXPECT_EQ(both.rows[1].values, (std::vector<double>{3, 4}));
  EXPECT_TRUE(refuses(Fault::input, "ask_rows()", [&] { client.ask(kEmptyMap); }));
  EXPECT_FALSE(client.ask_rows(kEmptyMap).list);
  EXPECT_TRUE(refuses(Fault::network, "an empty list", [&] { client.ask_rows(kEmptyMap); }));
}

TEST(PolicyClient, what_poll_throws_ends_the_wait_and_the_connection) {
  TestServer server(
      {}, [](Network&, ConnectionId, const Bytes&) { return true; }, kEmptyMap);
  int polls = 0;
  const auto give_up = [&] {
    if (++polls == 2) throw std::domain_error("enough");
  };
  PolicyClient client(server.url(), {.timeout_s = 600, .poll = give_up});
  EXPECT_THROW(client.infer(small_observation()), std::domain_error);
  EXPECT_EQ(polls, 2);
  EXPECT_TRUE(refuses(Fault::network, "was lost", [&] { client.infer(small_observation()); }));
}

TEST(PolicyClient, a_reply_to_another_request_is_refused) {
  FakeServer server(kEmptyMap, always(reply_with({1, 2}, 1, "b")));
  PolicyClient client(server.url());
  EXPECT_EQ(client.infer(small_observation(), {.request_id = "b"}).request_id, "b");
  EXPECT_EQ(refused([&] { client.infer(small_observation(), {.request_id = "a"}); }).fault(),
            Fault::network);
}

TEST(PolicyClient, what_is_no_policy_server_is_said_at_once) {
  for (const std::string& greeting :
       {std::string("text: hello"), std::string("\xc1"), std::string("\x01")}) {
    FakeServer server(greeting, always(kEmptyMap));
    EXPECT_EQ(refused([&] { PolicyClient client(server.url()); }).fault(), Fault::network);
  }
}

TEST(PolicyClient, a_key_is_sent_and_a_wrong_one_ends_even_a_patient_client) {
  FakeServer server(kEmptyMap, always(reply_with({1}, 1)), {.api_key = "not-a-secret"});
  EXPECT_EQ(PolicyClient(server.url(), {.api_key = "not-a-secret"}).infer(small_observation()).dim,
            1);
  EXPECT_TRUE(refuses(Fault::network, "401", [&] {
    PolicyClient client(server.url(), {.api_key = "x", .keep_trying = true});
  }));
}

TEST(PolicyClient, a_patient_client_waits_for_the_server_others_do_not) {
  WebSocketOptions options;
  options.at.port = TestServer().port;  // which is free again
  const std::string url = "127.0.0.1:" + std::to_string(options.at.port);
  EXPECT_EQ(refused([&] { PolicyClient client(url); }).fault(), Fault::network);
  EXPECT_EQ(refused([] { PolicyClient client("wss://x", {.keep_trying = true}); }).fault(),
            Fault::network);
  std::atomic<int64_t> dim = 0;
  std::thread robot(
      [&] { dim = PolicyClient(url, {.keep_trying = true}).infer(small_observation()).dim; });
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_EQ(dim, 0);
  FakeServer server(kEmptyMap, always(reply_with({1, 2, 3}, 1)), options);
  robot.join();
  EXPECT_EQ(dim, 3);
}

}  // namespace
}  // namespace tendon
