// labels: server
// Observations as robots send them, and what is refused: which key, what was got, what was wanted.
#include "serve/request.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "refusals.h"
#include "serve/request_handler.h"
#include "stub_server.h"

namespace tendon {
namespace {

using namespace msgpack;

Bytes file(const std::string& name) { return read_file("messages/" + name); }

ModelCard card(const std::string& robot) {
  ModelCard c{{.model = "stub", .robot = robot}};
  c.horizon = 10;
  c.model_action_dim = 32;
  c.action_dim = robot == "aloha" ? 14 : robot == "libero" ? 7 : 8;
  c.state_dim = robot == "aloha" ? 14 : 8;
  if (robot == "aloha") c.cameras = {"cam_high", "cam_left_wrist", "cam_right_wrist"};
  if (robot == "lerobot") c.cameras = {"top", "wrist"};
  if (robot == "libero") c.cameras = {"image", "wrist_image"};
  return c;
}

Fields libero() {
  return {{"observation/image", array("|u1", {4, 6, 3}, 72)},
          {"observation/wrist_image", array("|u1", {3, 4, 6}, 72)},
          {"observation/state", doubles({1, 2, 3, 4, 5, 6, 7, 8})},
          {"prompt", text("pick up the bowl")}};
}

Fields with(Fields fields, const std::string& key, Write write) {
  for (auto& field : fields)
    if (field.first == key) {
      field.second = std::move(write);
      return fields;
    }
  fields.emplace_back(key, std::move(write));
  return fields;
}

Fields without(Fields fields, const std::string& key) {
  std::erase_if(fields, [&](const auto& field) { return field.first == key; });
  return fields;
}

Requests read_all(const Fields& fields) {
  static std::string kept;
  kept = message(fields);
  return read_requests(msgpack::decode(bytes_of(kept)), card("libero"), Dialect::openpi);
}

Request read(const Fields& fields, const ModelCard& robot = card("libero"),
             Dialect dialect = Dialect::openpi) {
  static std::string kept;  // pictures are views into it
  kept = message(fields);
  return read_request(msgpack::decode(bytes_of(kept)), robot, dialect);
}

// The whole text that refuses it.
std::string refusal(const Fields& fields, const ModelCard& robot = card("libero"),
                    Dialect dialect = Dialect::openpi) {
  const Error error = refused([&] { read(fields, robot, dialect); });
  EXPECT_EQ(error.fault(), Fault::input);
  return error.what();
}

TEST(Request, of_every_robot_is_read_from_the_bytes_of_openpis_client) {
  for (const std::string robot : {"aloha", "droid", "libero"}) {
    const Bytes bytes = file("request_" + robot + ".bin");
    const Request r = read_request(msgpack::decode(bytes), card(robot), Dialect::openpi);
    EXPECT_EQ(std::ssize(r.observation.state), card(robot).state_dim) << robot;
    EXPECT_TRUE(r.observation.prompt.has_value()) << robot;
    EXPECT_EQ(r.observation.images.size(), robot == "aloha" ? 4U : 2U);
    for (const auto& [camera, image] : r.observation.images) {
      EXPECT_EQ(image.height, 224) << camera;
      EXPECT_EQ(image.width, 224) << camera;
      EXPECT_EQ(image.planar, robot == "aloha") << camera;
      // Views into the message, not copies.
      EXPECT_GE(image.rgb.data(), bytes.data()) << camera;
      EXPECT_LE(image.rgb.end(), bytes.data() + bytes.size()) << camera;
    }
  }
}

TEST(Request, of_the_aloha_simulator_comes_without_a_prompt) {
  const Bytes bytes = file("request_aloha_sim.bin");
  ModelCard c = card("aloha");
  EXPECT_THROW(read_request(msgpack::decode(bytes), c, Dialect::openpi), Error);
  c.default_prompt = true;
  EXPECT_FALSE(read_request(msgpack::decode(bytes), c, Dialect::openpi).observation.prompt);
}

TEST(Request, pictures_may_be_planar_or_floats) {
  std::vector<double> values(72, 0.5);
  values[0] = 1.0;
  const Request r = read(with(libero(), "observation/image", doubles(values, {4, 6, 3})));
  const Image& image = r.observation.images.at("image");
  EXPECT_EQ(image.rgb[0], 255);
  EXPECT_EQ(image.rgb[1], 127);  // openpi truncates
  EXPECT_FALSE(image.planar);
  EXPECT_TRUE(r.observation.images.at("wrist_image").planar);
  EXPECT_EQ(r.observation.images.at("wrist_image").width, 6);
}

TEST(Request, prompts_may_be_text_bytes_or_numpy_strings) {
  const auto prompt = [](Write write) {
    return read(with(libero(), "prompt", std::move(write))).observation.prompt;
  };
  EXPECT_EQ(prompt([](Writer& to) { to.bytes(std::vector<uint8_t>{'h', 'i'}); }), "hi");
  EXPECT_EQ(prompt([](Writer& to) {
              const std::vector<uint8_t> utf32 = {'h', 0, 0, 0, 0xe4, 0, 0, 0};
              to.array("<U2", {}, utf32);
            }),
            "h\xc3\xa4");
  EXPECT_EQ(prompt([](Writer& to) {
              to.array("|S4", {}, std::vector<uint8_t>{'h', 'i', 0, 0});
            }),
            "hi");
}

TEST(Request, states_may_be_integers_lists_or_single_numbers) {
  EXPECT_EQ(read(with(libero(), "observation/state", array("|i1", {8}, 8, 0xff))).observation.state,
            std::vector<double>(8, -1));
  EXPECT_EQ(read(with(libero(), "observation/state",
                      [](Writer& to) {
                        to.list(8);
                        for (int i = 0; i < 8; ++i) to.integer(i);
                      }))
                .observation.state[7],
            7);
  Fields droid = {{"observation/exterior_image_1_left", array("|u1", {2, 2, 3}, 12)},
                  {"observation/wrist_image_left", array("|u1", {2, 2, 3}, 12)},
                  {"observation/joint_position", doubles({1, 2, 3, 4, 5, 6, 7})},
                  {"observation/gripper_position", number(0.5)},
                  {"prompt", text("stack")}};
  EXPECT_EQ(read(droid, card("droid")).observation.state.back(), 0.5);
}

TEST(Request, of_lerobot_uses_its_own_names) {
  const Request r = read({{"observation.images.top", array("|u1", {2, 2, 3}, 12)},
                          {"observation.state", doubles(std::vector<double>(8, 1.0))},
                          {"task", text("fold")},
                          {"something_else", [](Writer& to) { to.nil(); }}},
                         card("lerobot"));
  EXPECT_TRUE(r.observation.images.contains("top"));
  EXPECT_EQ(r.observation.prompt, "fold");
}

TEST(Request, may_name_cameras_by_slot_and_bring_those_that_are_not_used) {
  ModelCard own = card("lerobot");
  own.cameras = {"front", "observation.image.wrist"};  // the name of a feature without "images."
  own.other_cameras = {"base_0_rgb", "overview"};
  const auto images = [&](const char* key) {
    const Fields fields = {{key, array("|u1", {2, 2, 3}, 12)},
                           {"state", doubles(std::vector<double>(8, 1.0))},
                           {"prompt", text("fold")}};
    return read(fields, own).observation.images.size();
  };
  for (const char* key : {"observation.images.front", "observation.images.base_0_rgb",
                          "observation.images.overview", "front", "observation.image.wrist"})
    EXPECT_EQ(images(key), 1u) << key;
  EXPECT_THROW(images("observation.images.side"), Error);
}

TEST(Request, may_bring_other_cameras_where_it_has_those_of_the_policy) {
  const Write picture = array("|u1", {2, 2, 3}, 12);
  const Fields one = {{"observation.images.top", picture},
                      {"observation.images.side", picture},
                      {"state", doubles(std::vector<double>(8, 1.0))},
                      {"prompt", text("fold")}};
  EXPECT_TRUE(refuses(Fault::input,
                      "'observation.images.side' is no camera of this policy; nearest: ", [&] {
                        read(one, card("lerobot"));
                      }));
  const Request r = read(with(one, "observation.images.wrist", picture), card("lerobot"));
  EXPECT_EQ(r.observation.images.size(), 3U);  // the policy says that one is not used
}

TEST(Request, may_have_a_narrow_state_where_the_statistics_are_wider_than_the_robot) {
  ModelCard wide = card("lerobot");
  const auto values = [&](size_t count) {
    const Fields fields = {{"observation.images.top", array("|u1", {2, 2, 3}, 12)},
                           {"state", doubles(std::vector<double>(count, 1.0))},
                           {"prompt", text("fold")}};
    return read(fields, wide).observation.state.size();
  };
  EXPECT_THROW(values(4), Error);
  wide.state_dim_min = 4;
  for (const size_t count : {4u, 8u}) EXPECT_EQ(values(count), count);
  for (const size_t count : {3u, 9u}) EXPECT_THROW(values(count), Error);
}

TEST(Request, of_roboarena_has_an_endpoint) {
  Fields fields = {{"observation/exterior_image_0_left", array("|u1", {2, 2, 3}, 12)},
                   {"observation/wrist_image_left", array("|u1", {2, 2, 3}, 12)},
                   {"observation/joint_position", doubles({1, 2, 3, 4, 5, 6, 7})},
                   {"observation/gripper_position", doubles({0})},
                   {"prompt", text("stack")},
                   {"endpoint", text("infer")}};
  EXPECT_TRUE(read(fields, card("droid"), Dialect::roboarena)
                  .observation.images.contains("exterior_image_1_left"));
  EXPECT_TRUE(read({{"endpoint", text("reset")}}, card("droid"), Dialect::roboarena).reset);
  EXPECT_EQ(refusal(with(fields, "endpoint", text("go")), card("droid"), Dialect::roboarena),
            "'endpoint' is 'go', expected 'infer' or 'reset'");
}

struct Bad {
  const char* key;
  Write write;
  Pieces named;  // in the refusal
};

Write compressed(const std::string& format, const std::string& file) {
  return map_of({{"__image__", [](Writer& to) { to.boolean(true); }},
                 {"format", text(format)},
                 {"data", [=](Writer& to) { to.bytes(bytes_of(file)); }}});
}

TEST(Request, of_vla_eval_has_pictures_by_name_or_in_order) {
  const std::string two_by_one = "P6 2 1 255\nabcdef";
  const auto look = [&](const std::string& first, const std::string& second) {
    return read({{"images", map_of({{first, compressed("png", two_by_one)},
                                    {second, array("|u1", {2, 2, 3}, 12, 7)}})},
                 {"states", doubles(std::vector<double>(8, 0.5))},
                 {"task_description", text("fold")},
                 {"noise", text("the benchmark's own")}},
                card("libero"), Dialect::vla_eval);
  };
  const Request guessed = look("agentview", "eye_in_hand");
  ASSERT_EQ(guessed.warnings.size(), 1U);
  EXPECT_EQ(guessed.warnings[0],
            "the pictures 'agentview', 'eye_in_hand' are not named as the cameras 'image', "
            "'wrist_image': taken in this order");
  const Observation& by_order = guessed.observation;
  EXPECT_EQ(by_order.images.at("image").rgb[5], 'f');
  EXPECT_EQ(by_order.images.at("wrist_image").rgb[5], 7);
  EXPECT_EQ(by_order.prompt, "fold");
  EXPECT_EQ(by_order.state[7], 0.5);
  const Request by_name = look("wrist_image", "image");
  EXPECT_EQ(by_name.observation.images.at("image").rgb[5], 7);
  EXPECT_TRUE(by_name.warnings.empty());
}

TEST(Request, of_vla_eval_reserves_for_a_few_pictures_only) {
  const auto refused = [](const Write& images) {
    return refusal({{"images", images}}, card("libero"), Dialect::vla_eval);
  };
  const std::string huge = "P6 8000 8000 255\n", large = "P6 4000 3000 255\n";
  EXPECT_TRUE(says(refused(map_of({{"a", compressed("png", huge)}})), "16777216 more are read"));
  EXPECT_TRUE(says(refused(map_of({{"a", compressed("jpeg", large)}})), "need 36000000 bytes"));
  EXPECT_TRUE(says(refused(map_of({{"a", compressed("webp", large)}})), "expected 'png'"));
  EXPECT_TRUE(says(refused(map_of({{"a", text("x")}})), "'images/a' is a text"));
  const Write small = compressed("png", "P6 1 1 255\nabc");
  EXPECT_TRUE(says(refused(map_of({{"a", small}, {"b", small}, {"c", small}})), "1 to 2 pictures"));
}

TEST(Envelope, that_is_wrong_is_refused) {
  const Fields good = {{"type", text("observation")}, {"payload", map_of({})}, {"seq", integer(7)}};
  const auto read = [](const Fields& fields) {
    const std::string kept = message(fields);
    const Envelope envelope = read_envelope(msgpack::decode(bytes_of(kept)));
    return std::pair(std::string(envelope.type), envelope.seq);
  };
  EXPECT_EQ(read(good), std::pair(std::string("observation"), int64_t{7}));
  const std::pair<const char*, Fields> wrong[] = {
      {"'type' is 'action'", with(good, "type", text("action"))},
      {"'type'", with(good, "type", integer(1))},
      {"'seq' is a text", with(good, "seq", text("7"))},
      {"'payload' is an integer", with(good, "payload", integer(1))},
      {"'payload' is missing", without(good, "payload")}};
  for (const auto& [words, fields] : wrong)
    EXPECT_TRUE(refuses(Fault::input, words, [&, &given = fields] { read(given); }));
}

TEST(Request, that_is_wrong_is_refused_naming_key_got_and_wanted) {
  const std::vector<Bad> all = {
      {"observation/image", array("|u1", {4, 6, 4}, 96), {"observation/image", "[4, 6, 4]", "3]"}},
      {"observation/image", array("|u1", {4, 18}, 72), {"[4, 18]", "[height, width, 3]"}},
      {"observation/image", array("|u1", {0, 6, 3}, 0), {"0 x 6", "1 to"}},
      {"observation/image", array("<i4", {4, 6, 3}, 288), {"<i4", "uint8 or floats"}},
      {"observation/image", text("front.png"), {"a text", "uint8 array"}},
      {"observation/image",
       doubles(std::vector<double>(12, 128.), {2, 2, 3}),
       {"128", "[0, 1]", "send uint8"}},
      {"observation/state", doubles({1, 2}), {"observation/state", "2 numbers", "expected 8"}},
      {"observation/state", array("<f8", {2, 4}, 64), {"[2, 4]", "one axis"}},
      {"observation/state", array("<U2", {8}, 64), {"<U2", "numbers"}},
      {"prompt", integer(3), {"prompt", "text"}},
      {"seed", number(1.5), {"seed", "1.5", "whole number"}},
      {"seed", integer(-1), {"seed", "-1"}},
      {"noise", array("<f4", {10, 7}, 280), {"noise", "[10, 7]", "32"}},
      {"prev_chunk", array("<f8", {11, 7}, 616), {"prev_chunk", "[11, 7]", "10 rows of 7"}},
      {"inference_delay", integer(11), {"inference_delay", "0 to 10"}},
      {"deadline_ms", text("soon"), {"deadline_ms", "a number"}},
      {"request_id", number(1), {"request_id", "256 bytes"}},
  };
  for (const Bad& bad : all)
    EXPECT_TRUE(says(refusal(with(libero(), bad.key, bad.write)), bad.named)) << bad.key;
  for (const auto& [key, word] : {std::pair("observation/state", "got the keys"),
                                  {"prompt", "--default-prompt"},
                                  {"observation/wrist_image", "'observation/wrist_image'"}})
    EXPECT_TRUE(says(refusal(without(libero(), key)), word));
}

TEST(Request, without_a_key_is_told_the_first_eight_that_it_has) {
  Fields fields;
  for (const char c : std::string("abcdefgh")) fields.emplace_back(std::string(1, c), text(""));
  const std::string eight = "'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'";
  EXPECT_TRUE(refusal(fields).ends_with(eight)) << refusal(fields);
  fields.emplace_back("i", text(""));
  EXPECT_TRUE(refusal(fields).ends_with(eight + ", ...")) << refusal(fields);
}

TEST(Request, with_an_unknown_camera_is_told_the_nearest) {
  const Fields fields = {{"images", map_of({{"cam_hihg", array("|u1", {3, 2, 2}, 12)}})},
                         {"state", doubles(std::vector<double>(14, 0.))},
                         {"prompt", text("go")}};
  EXPECT_TRUE(says(refusal(fields, card("aloha")), "nearest: 'cam_high'"));
}

TEST(Request, with_a_number_that_is_not_finite_is_refused_at_every_place) {
  const double bad[] = {std::nan(""), std::numeric_limits<double>::infinity(),
                        -std::numeric_limits<double>::infinity()};
  for (const double value : bad)
    for (size_t i = 0; i < 8; ++i) {
      std::vector<double> state(8, 0.25);
      state[i] = value;
      EXPECT_TRUE(says(refusal(with(libero(), "observation/state", doubles(state))),
                       "'observation/state'[" + std::to_string(i) + "] is"));
      std::vector<double> pixels(72, 0.25);
      pixels[i * 9] = value;
      EXPECT_TRUE(
          says(refusal(with(libero(), "observation/image", doubles(pixels, {4, 6, 3}))), "[0, 1]"));
    }
  // The smallest numbers are numbers; what they lead to is the policy's to check.
  EXPECT_NO_THROW(
      read(with(libero(), "observation/state", doubles(std::vector<double>(8, 5e-324)))));
}

TEST(Request, of_a_hostile_peer_is_quoted_without_control_characters) {
  const std::string got =
      refusal({{"\x1b[31mred\n", text("x")}, {"observation/image", text("y")}}, card("droid"));
  EXPECT_EQ(got.find('\x1b'), std::string::npos);
  EXPECT_TRUE(says(got, "\\x1b[31mred\\x0a"));
  EXPECT_EQ(escaped(std::string(1000, 'a')).size(), 203U);
}

TEST(Reply, has_openpis_keys_in_openpis_order) {
  StubServer server;
  WebSocketClient client = server.client();
  ask(client, stub_request());
  const auto second = ask(client, stub_request());
  const Value reply = msgpack::decode(second.bytes);
  const Bytes reference_bytes = file("response_libero_second.bin");
  const Value reference = msgpack::decode(reference_bytes);
  ASSERT_EQ(reply.map.size(), reference.map.size());
  for (size_t i = 0; i < reply.map.size(); ++i) EXPECT_EQ(reply.map[i].key, reference.map[i].key);
  EXPECT_EQ(reply.map[0].value.array.dtype_name(), reference.map[0].value.array.dtype_name());
  EXPECT_EQ(reply.map[0].value.array.shape, reference.map[0].value.array.shape);
  const Value& timing = *reply.find("server_timing");
  const Value& reference_timing = *reference.find("server_timing");
  for (size_t i = 0; i < reference_timing.map.size(); ++i)
    EXPECT_EQ(timing.map[i].key, reference_timing.map[i].key);
  // The policy's time is from pictures to actions; the server's is around it.
  EXPECT_EQ(reply.find("policy_timing")->find("infer_ms")->number, 7);
  EXPECT_NE(timing.find("infer_ms")->number, 7);
  EXPECT_EQ(timing.find("reply_id")->kind, Value::Kind::integer);
}

TEST(Greeting, begins_with_openpis_reset_pose) {
  ModelCard c = card("aloha");
  c.reset_pose = {0, -1.5, 1.5, 0, 0, 0};
  const std::string greeting = write_greeting(c, Dialect::openpi);
  const Bytes reference = file("metadata_aloha.bin");
  // The same bytes but for the number of keys.
  EXPECT_EQ(greeting.substr(1, reference.size() - 1),
            std::string(reference.begin() + 1, reference.end()));
}

// Writes requests as the list of a batch.
Write list_of(const std::vector<Fields>& rows) {
  return [=](Writer& to) {
    to.list(std::ssize(rows));
    for (const Fields& row : rows) map_of(row)(to);
  };
}

TEST(Batch, is_a_list_of_requests_with_their_own_keys) {
  const Fields other = with(libero(), "prompt", text("open the drawer"));
  const Requests all = read_all(
      {{"batch", list_of({libero(), with(other, "seed", [](Writer& to) { to.integer(9); })})}});
  ASSERT_EQ(all.rows.size(), 2U);
  EXPECT_TRUE(all.list);
  EXPECT_EQ(all.rows[1].observation.prompt, "open the drawer");
  EXPECT_EQ(all.rows[1].seed, 9U);
  EXPECT_EQ(all.rows[0].seed, std::nullopt);
  EXPECT_TRUE(read_all({{"batch", list_of({libero()})}}).list);
  EXPECT_FALSE(read_all(libero()).list);
  const auto samples = [](int64_t n) {
    return with(libero(), "num_samples", [n](Writer& to) { to.integer(n); });
  };
  EXPECT_EQ(read_all(samples(5)).rows[0].samples, 5);
  EXPECT_TRUE(read_all(samples(1)).list);
  const auto says = [](const Fields& fields, const char* words) {
    EXPECT_TRUE(refuses(Fault::input, words, [&] { read_all(fields); }));
  };
  says({{"batch", list_of({})}}, "'batch' is a list");
  says({{"batch", text("all")}}, "'batch' is a text, expected a list of requests");
  says({{"batch", list_of({libero(), without(libero(), "prompt")})}},
       "row 1 of 'batch': key 'prompt' is missing");
  says({{"batch", list_of({libero(), samples(64)})}},
       "row 2 of 'batch': a message may ask for at most 64 chunks");
  says({{"batch", list_of(std::vector<Fields>(65, libero()))}}, "at most 64 chunks");
  says(samples(0), "'num_samples' is 0, expected a whole number from 1 to 64");
  says(samples(65), "'num_samples' is 65");
  says(with(samples(2), "noise", array("<f4", {10, 32}, 10 * 32 * 4)),
       "'noise' is that of one chunk, and 'num_samples' asks for 2");
}

TEST(RequestQueue, lets_others_have_as_many_turns_as_a_batch_had_rows) {
  RequestQueue queue;
  const auto session = [](ConnectionId id) {
    auto made = std::make_shared<Session>();
    made->id = id;
    return made;
  };
  const auto batches = session(1), single = session(2);
  std::vector<ConnectionId> served;
  for (int turn = 0; turn < 10; ++turn) {
    for (const auto& s : {batches, single})
      while (s->queued < 2) queue.put({s, {}, Clock::now()});
    served.push_back(queue.take()->session->id);
    if (served.back() == 1) batches->turns_owed = 2;  // of three rows
  }
  EXPECT_EQ(served, (std::vector<ConnectionId>{1, 2, 2, 2, 1, 2, 2, 2, 1, 2}));
  queue.forget(2);
  batches->turns_owed = 60;
  EXPECT_EQ(queue.take()->session->id, 1U) << "nobody else waits";
}

}  // namespace
}  // namespace tendon
