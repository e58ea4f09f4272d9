// labels: unit
// Images, statistics and robots against the outputs of openpi, lerobot and Pillow.
#include <gtest/gtest.h>
#include <jpeglib.h>

#include <cmath>
#include <cstdlib>
#include <random>

#include "policy/checkpoint_folder.h"
#include "policy/image_file.h"
#include "policy/images.h"
#include "policy/policy_spec_json.h"
#include "policy/processors.h"
#include "policy/robots.h"
#include "policy/statistics.h"
#include "policy/training_configs.h"
#include "test_files.h"

using namespace tendon;

namespace {

const SafetensorsFile& normalization() {
  static const auto file = SafetensorsFile::open(test_data("preprocess/normalization.safetensors"));
  return *file;
}

std::vector<double> stored(const std::string& name) {
  const HostTensor* t = normalization().find(name);
  EXPECT_NE(t, nullptr) << name;
  return numbers(*t);
}

Normalizer lerobot(NormMethod method, const std::string& feature) {
  const auto [low, high] = method == NormMethod::mean_std    ? std::pair("mean", "std")
                           : method == NormMethod::quantiles ? std::pair("q01", "q99")
                           : method == NormMethod::min_max   ? std::pair("min", "max")
                                                             : std::pair("q10", "q90");
  return {.family = NormFamily::lerobot,
          .method = method,
          .centre = stored("stats." + feature + "." + low),
          .range = stored("stats." + feature + "." + high)};
}

void expect_close(const std::vector<double>& got, const std::vector<double>& expected,
                  double relative, const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  for (size_t i = 0; i < got.size(); ++i)
    EXPECT_LE(std::abs(got[i] - expected[i]), relative * std::max(1.0, std::abs(expected[i])))
        << what << "[" << i << "]: " << got[i] << " and " << expected[i];
}

std::vector<double> normalize_rows(const Normalizer& n, const std::vector<double>& all,
                                   size_t dim) {
  std::vector<double> out;
  for (size_t i = 0; i < all.size(); i += dim) {
    const auto row = n.normalize(std::span(all).subspan(i, dim));
    out.insert(out.end(), row.begin(), row.end());
  }
  return out;
}

std::vector<float> to_float(const std::vector<double>& v) { return {v.begin(), v.end()}; }

// Every picture of the resizing goldens.
std::map<std::string, Image> pictures() {
  std::map<std::string, Image> all;
  const auto json = read_json(test_data("preprocess/images.json"));
  for (const auto& [name, entry] : json.at("images").items())
    all[name] = load_image(
        test_data("preprocess/" + entry.at("files").at("input").get<std::string>()).string());
  return all;
}

Image planar(const Image& image) {
  Image out{image.height, image.width, std::vector<uint8_t>(image.rgb.size()), true};
  const size_t pixels = image.rgb.size() / 3;
  for (size_t i = 0; i < image.rgb.size(); ++i)
    out.rgb.owned()[i % 3 * pixels + i / 3] = image.rgb[i];
  return out;
}

}  // namespace

TEST(Statistics, lerobot_methods_agree_in_float) {
  for (const NormMethod m :
       {NormMethod::mean_std, NormMethod::quantiles, NormMethod::min_max, NormMethod::quantile10}) {
    const std::string base = "lerobot." + std::string(name(m));
    expect_close(normalize_rows(lerobot(m, "observation.state"), stored("state"), 8),
                 stored(base + ".state"), 1e-6, base + ".state");
    expect_close(lerobot(m, "action").unnormalize(to_float(stored("model_actions")), 7),
                 stored(base + ".actions"), 1e-6, base + ".actions");
  }
}

TEST(Statistics, openpi_methods_agree_in_double_also_beyond_the_statistics) {
  for (const bool quantiles : {false, true}) {
    const Statistics s = read_norm_stats(test_data("preprocess/norm_stats.json"), quantiles);
    const std::string base = quantiles ? "openpi.quantile" : "openpi.mean_std";
    expect_close(normalize_rows(s.state, stored("state"), 8), stored(base + ".state"), 1e-12,
                 base + ".state");
    expect_close(s.action.unnormalize(to_float(stored(base + ".actions_padded_input")), 32),
                 stored(base + ".actions"), 1e-12, base + ".actions");
  }
}

TEST(Statistics, renormalize_undoes_unnormalize_in_every_method_also_beyond_the_statistics) {
  const std::vector<float> model = to_float(stored("model_actions"));
  const auto undone = [&](const Normalizer& n, int64_t dim, const std::string& what) {
    const std::vector<double> back = n.renormalize(n.unnormalize(model, dim), dim);
    ASSERT_EQ(back.size(), model.size()) << what;
    for (size_t i = 0; i < back.size(); ++i) {
      const size_t d = i % static_cast<size_t>(dim);
      const bool mean_std = n.method == NormMethod::mean_std;
      const bool constant = d < n.range.size() && n.range[d] == (mean_std ? 0 : n.centre[d]);
      const double expected = !constant ? model[i] : mean_std ? 0 : -1;
      // lerobot un-normalises in float; openpi's 1e-6 beside a range must show.
      const double relative = n.family == NormFamily::openpi ? 5e-7 : 1e-5;
      EXPECT_NEAR(back[i], expected, relative * std::max(1.0, std::abs(expected))) << what << i;
    }
  };
  for (const NormMethod m : {NormMethod::identity, NormMethod::mean_std, NormMethod::quantiles,
                             NormMethod::min_max, NormMethod::quantile10})
    undone(m == NormMethod::identity ? Normalizer{} : lerobot(m, "action"), 7,
           std::string(name(m)));
  for (const bool quantiles : {false, true}) {
    Statistics s = read_norm_stats(test_data("preprocess/norm_stats.json"), quantiles);
    undone(s.action, 7, "openpi");
    s.action.centre.resize(5);
    s.action.range.resize(5);
    undone(s.action, 7, "openpi beyond");
  }
}

TEST(Statistics, a_column_that_is_always_the_same_stays_at_its_centre) {
  for (const NormFamily family : {NormFamily::openpi, NormFamily::lerobot}) {
    const Normalizer mean{
        .family = family, .method = NormMethod::mean_std, .centre = {3}, .range = {0}};
    const Normalizer ends{
        .family = family, .method = NormMethod::quantiles, .centre = {3}, .range = {3}};
    EXPECT_EQ(mean.renormalize(std::vector<double>{3.5}, 1), std::vector<double>{0});
    EXPECT_EQ(ends.renormalize(std::vector<double>{3.5}, 1), std::vector<double>{-1});
  }
}

TEST(Statistics, quantiles_are_kept_whatever_normalises) {
  const auto file = test_data("preprocess/norm_stats.json");
  const Statistics mean = read_norm_stats(file, false), quantile = read_norm_stats(file, true);
  EXPECT_EQ(mean.action.method, NormMethod::mean_std);
  EXPECT_EQ(mean.action.q01, quantile.action.centre);
  EXPECT_EQ(mean.action.q99, quantile.action.range);
  EXPECT_EQ(quantile.state.q99, quantile.state.range);
  EXPECT_TRUE(mean.state.has_quantiles(8));
  EXPECT_FALSE(mean.state.has_quantiles(std::ssize(mean.state.q01) + 1));

  const auto folder = golden("tiny-checkpoint-lerobot-pi0/checkpoint");
  const Processors p = read_processors(folder, {.state_dim = 14, .action_dim = 14});
  EXPECT_EQ(p.action.method, NormMethod::mean_std);
  const auto states =
      SafetensorsFile::open(folder / "policy_preprocessor_step_6_normalizer_processor.safetensors");
  EXPECT_EQ(p.action.q01, numbers(*states->find("action.q01")));
  EXPECT_EQ(p.action.q99, numbers(*states->find("action.q99")));
  EXPECT_EQ(p.state.q01, numbers(*states->find("observation.state.q01")));
  const Processors none =
      read_processors(folder, {.state_dim = 14, .action_dim = 14, .statistics = false});
  EXPECT_FALSE(none.action.has_quantiles(1));
}

TEST(Statistics, pi0_needs_no_quantiles_but_refuses_damaged_ones) {
  const Scratch scratch("quantiles");
  const auto read = [&](const std::string& quantiles) {
    const std::string one = R"({"mean":[0,1],"std":[1,2])" + quantiles + "}";
    return read_norm_stats(
        scratch.write("q.json", R"({"norm_stats":{"state":)" + one + R"(,"actions":)" + one + "}}"),
        false);
  };
  EXPECT_TRUE(read("").action.q01.empty());
  EXPECT_TRUE(read(R"(,"q01":null,"q99":null)").action.q01.empty());
  EXPECT_EQ(read(R"(,"q01":[-1,0],"q99":[1,2])").action.q99, std::vector<double>({1, 2}));
  for (const char* bad : {R"(,"q01":[-1],"q99":[1])", R"(,"q01":[-1,0],"q99":[1,1e999])",
                          R"(,"q01":"low","q99":[1,2])"})
    EXPECT_EQ(refused([&] { read(bad); }).fault(), Fault::checkpoint) << bad;
}

TEST(Statistics, a_converted_file_keeps_quantiles_and_an_older_one_without_them_opens) {
  PolicySpec around;
  const Statistics s = read_norm_stats(test_data("preprocess/norm_stats.json"), false);
  around.state = s.state;
  around.action = s.action;
  nlohmann::json j = policy_spec_json(around);
  const PolicySpec again = read_policy_spec(j, "x");
  EXPECT_EQ(again.action.q01, s.action.q01);
  EXPECT_EQ(again.state.q99, s.state.q99);
  for (const char* what : {"state", "action"}) {
    j[what].erase("q01");
    j[what].erase("q99");
  }
  const PolicySpec older = read_policy_spec(j, "x");
  EXPECT_TRUE(older.action.q01.empty());
  EXPECT_EQ(older.action.centre, s.action.centre);
  j["action"]["q01"] = {1, 2};
  EXPECT_EQ(refused([&] { read_policy_spec(j, "x"); }).fault(), Fault::checkpoint);
}

TEST(Statistics, a_missing_or_infinite_statistic_is_refused_by_name) {
  const Scratch scratch("statistics");
  const auto no_q = scratch.write(
      "a.json",
      R"({"norm_stats":{"state":{"mean":[0],"std":[1]},"actions":{"mean":[0],"std":[1]}}})");
  const Error missing = refused([&] { read_norm_stats(no_q, true); });
  EXPECT_EQ(missing.fault(), Fault::checkpoint);
  EXPECT_NE(std::string(missing.what()).find("q01"), std::string::npos);
  const auto huge = scratch.write(
      "b.json",
      R"({"norm_stats":{"state":{"mean":[1e999],"std":[1]},"actions":{"mean":[0],"std":[1]}}})");
  EXPECT_EQ(refused([&] { read_norm_stats(huge, false); }).fault(), Fault::checkpoint);
}

TEST(Images, pillow_resize_is_bit_exact) {
  const auto json = read_json(test_data("preprocess/images.json"));
  int compared = 0;
  for (const auto& [name, entry] : json.at("images").items()) {
    const auto file = [&files = entry.at("files")](const char* kind) {
      return load_image(test_data("preprocess/" + files.at(kind).get<std::string>()).string());
    };
    EXPECT_EQ(resize_with_pad_pil(file("input"), 224, 224).rgb, file("pil").rgb) << name;
    ++compared;
  }
  EXPECT_GE(compared, 6);
}

TEST(Images, torch_resize_agrees_to_a_millionth) {
  const auto json = read_json(test_data("preprocess/images.json"));
  const auto results = SafetensorsFile::open(test_data("preprocess/images.safetensors"));
  for (const auto& [name, entry] : json.at("images").items()) {
    const Image image = load_image(
        test_data("preprocess/" + entry.at("files").at("input").get<std::string>()).string());
    const std::vector<float> pixels = model_pixels(image, 224, Resizer::lerobot);
    const std::vector<double> expected = numbers(*results->find(name + ".lerobot"));
    const size_t row = 224 * 3, stride = entry.at("row_stride").at("lerobot").get<size_t>();
    for (size_t i = 0; i < expected.size(); ++i)
      ASSERT_NEAR(pixels[i / row * stride * row + i % row], expected[i], 1e-6) << name << " " << i;
  }
}

TEST(Pixels, a_view_copies_nothing_until_it_is_written) {
  std::vector<uint8_t> bytes = {1, 2, 3};
  Pixels view = Pixels::view(bytes);
  const Pixels copy = view;
  EXPECT_EQ(copy.data(), bytes.data());
  EXPECT_EQ(copy, Pixels(bytes));
  view.owned()[0] = 9;
  EXPECT_FALSE(view.is_view());
  EXPECT_EQ(bytes[0], 1);
  EXPECT_EQ(view, Pixels({9, 2, 3}));
  EXPECT_NE(view, copy);
  bytes[1] = 7;
  EXPECT_EQ(copy[1], 7);
  EXPECT_EQ(view[1], 2);
}

TEST(Images, planar_pictures_and_views_give_the_same_values) {
  int compared = 0;
  for (const auto& [name, image] : pictures()) {
    const Image channels = planar(image);
    Image seen = image;
    seen.rgb = Pixels::view(image.rgb.bytes());
    ASSERT_NE(channels.rgb, image.rgb);
    for (const Resizer resizer : {Resizer::openpi, Resizer::lerobot})
      // The last two sides: as it is, and padding alone.
      for (const int side : {224, 56, image.height, std::max(image.height, image.width)}) {
        const std::vector<float> expected = model_pixels(image, side, resizer);
        EXPECT_EQ(model_pixels(channels, side, resizer), expected) << name << " " << side;
        EXPECT_EQ(model_pixels(seen, side, resizer), expected) << name << " " << side;
        ++compared;
      }
  }
  EXPECT_GE(compared, 48);
}

TEST(Images, a_square_picture_of_the_right_size_is_only_scaled) {
  const Image image{2, 2, std::vector<uint8_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 254, 255}};
  for (const Resizer resizer : {Resizer::openpi, Resizer::lerobot})
    for (const Image& given : {image, planar(image)}) {
      const std::vector<float> pixels = model_pixels(given, 2, resizer);
      for (size_t i = 0; i < pixels.size(); ++i)
        EXPECT_EQ(pixels[i], static_cast<float>(image.rgb[i]) / 255.f * 2.f - 1.f) << i;
    }
}

TEST(Images, bad_pictures_are_refused_by_name_with_what_was_got_and_wanted) {
  const std::vector<uint8_t> some(12);
  const std::tuple<Image, std::string> bad[] = {
      {{0, 4, {}}, "camera 'top' has 0 by 4 pixels, expected 1 to 8192"},
      {{4, -1, some}, "camera 'top' has 4 by -1 pixels"},
      {{8193, 1, std::vector<uint8_t>(3 * 8193)}, "camera 'top' has 8193 by 1 pixels"},
      {{2147483647, 2147483647, some}, "2147483647 by 2147483647 pixels, expected 1 to 8192"},
      {{2, 3, some}, "camera 'top' of 2 by 3 pixels has 12 bytes, expected 18"},
      {{2, 1, some, true}, "camera 'top' of 2 by 1 pixels has 12 bytes, expected 6"},
      {{1, 3000, std::vector<uint8_t>(9000)}, "camera 'top' of 1 by 3000 pixels is too thin"}};
  for (const auto& [image, text] : bad)
    for (const Resizer resizer : {Resizer::openpi, Resizer::lerobot}) {
      const Error e =
          refused([&, &image = image] { model_pixels(image, 224, resizer, "camera 'top'"); });
      EXPECT_EQ(e.fault(), Fault::input);
      EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
    }
}

TEST(Robots, relative_actions_become_absolute_as_in_openpi_and_lerobot) {
  std::vector<double> state = stored("state");
  state.resize(8);
  std::vector<bool> relative;
  for (const double m : stored("openpi.absolute.mask")) relative.push_back(m != 0);
  for (const std::string family : {"openpi", "lerobot"}) {
    std::vector<double> actions = stored("model_actions");
    actions.resize(5 * 7);
    to_absolute(actions, 7, state, relative, family == "lerobot");
    expect_close(actions, stored(family + ".absolute.actions"), 1e-6, family);
  }
}

TEST(Robots, bring_cameras_and_sizes_but_lerobots_keeps_those_of_the_checkpoint) {
  PolicySpec s{.required = {"top"}, .state_dim = 5, .action_dim = 6};
  set_robot(s, Robot::lerobot);
  EXPECT_TRUE(s.rename.empty());
  EXPECT_EQ(s.required, std::vector<std::string>({"top"}));
  EXPECT_EQ(std::pair(s.state_dim, s.action_dim), std::pair(int64_t{5}, int64_t{6}));
  set_robot(s, Robot::libero);
  EXPECT_EQ(s.rename.at("wrist_image"), "left_wrist_0_rgb");
  EXPECT_EQ(s.required, std::vector<std::string>({"base_0_rgb", "left_wrist_0_rgb"}));
  EXPECT_EQ(std::pair(s.state_dim, s.action_dim), std::pair(int64_t{8}, int64_t{7}));
  EXPECT_EQ(s.action_names.back(), "gripper");
}

TEST(Robots, training_configurations_are_those_of_openpi) {
  const TrainingConfig droid = training_config("pi05_droid");
  EXPECT_EQ(droid.policy, PolicyType::pi05);
  EXPECT_EQ(droid.horizon, 15);
  EXPECT_EQ(droid.tokens_max, 200);
  EXPECT_TRUE(droid.state_in_prompt);
  EXPECT_EQ(droid.asset, "droid");
  const TrainingConfig libero = training_config("pi05_libero");
  EXPECT_EQ(libero.horizon, 10);
  EXPECT_FALSE(libero.state_in_prompt);
  const TrainingConfig aloha = training_config("pi0_aloha_towel");
  EXPECT_EQ(aloha.tokens_max, 48);
  EXPECT_EQ(aloha.default_prompt, "fold the towel");
  EXPECT_EQ(aloha.relative.size(), 14u);
  EXPECT_EQ(training_config_names().size(), 21u);
  for (const std::string& name : training_config_names())
    EXPECT_EQ(training_config(name).name, name);
  EXPECT_NE(std::string(refused([] { training_config("pi05_driod"); }).what()).find("pi05_droid"),
            std::string::npos);
}

TEST(Robots, aloha_grippers_match_openpi) {
  const std::pair<double, double> states[] = {
      {0, -1.0798655}, {0.25, -0.5130776}, {0.5, -0.1400560}, {0.75, 0.2233276}, {1, 0.9456528}};
  for (const auto& [travel, angle] : states) {
    std::vector<double> state(14, 0.25);
    state[6] = state[13] = travel;
    aloha_state_to_pi(state);
    EXPECT_NEAR(state[6], angle, 1e-7);
    EXPECT_NEAR(state[13], angle, 1e-7);
    for (const size_t j : {1u, 2u, 8u, 9u}) EXPECT_EQ(state[j], -0.25);
    for (const size_t j : {0u, 3u, 4u, 5u, 7u, 10u, 11u, 12u}) EXPECT_EQ(state[j], 0.25);
  }
  const std::pair<double, double> actions[] = {{0, 0.5533778}, {0.5, 0.7900866}, {1, 1.0267954}};
  for (const auto& [action, travel] : actions) {
    std::vector<double> row(32, action);
    aloha_actions_from_pi(row, 32);
    EXPECT_NEAR(row[6], travel, 1e-7);
    EXPECT_EQ(row[1], -action);
    EXPECT_EQ(row[14], action);
    aloha_actions_to_pi(row, 32);
    for (const double v : row) EXPECT_NEAR(v, action, 1e-12);
  }
}

TEST(Robots, relative_dims_are_those_of_openpi_and_lerobot) {
  static constexpr int kRuns[] = {6, -1};
  EXPECT_EQ(relative_mask(kRuns), std::vector<bool>({1, 1, 1, 1, 1, 1, 0}));
  EXPECT_EQ(relative_mask({"Left_Gripper", "elbow"}, {"gripper"}, 2), std::vector<bool>({0, 1}));
  std::vector<double> actions = {1, 2, 3, 4};
  to_absolute(actions, 2, std::vector<double>{10, 20}, {true, false}, false);
  EXPECT_EQ(actions, std::vector<double>({11, 2, 13, 4}));
  to_relative(actions, 2, std::vector<double>{1, 20}, {true, false});
  EXPECT_EQ(actions, std::vector<double>({10, 2, 12, 4}));
}

namespace {

int smooth(int row, int column, int channel) {
  return channel == 0 ? 5 * row : channel == 1 ? 4 * column : 2 * (row + column);
}

// By libjpeg, at its best quality.
std::string jpeg_of_smooth(int height, int width, int channels) {
  jpeg_compress_struct info{};
  jpeg_error_mgr errors{};
  info.err = jpeg_std_error(&errors);
  jpeg_create_compress(&info);
  unsigned char* bytes = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&info, &bytes, &size);
  info.image_height = static_cast<JDIMENSION>(height);
  info.image_width = static_cast<JDIMENSION>(width);
  info.input_components = channels;
  info.in_color_space = channels == 3 ? JCS_RGB : JCS_GRAYSCALE;
  jpeg_set_defaults(&info);
  jpeg_set_quality(&info, 100, TRUE);
  jpeg_start_compress(&info, TRUE);
  for (int r = 0; r < height; ++r) {
    std::vector<uint8_t> row;
    for (int i = 0; i < width * channels; ++i)
      row.push_back(static_cast<uint8_t>(smooth(r, i / channels, i % channels)));
    JSAMPROW at = row.data();
    jpeg_write_scanlines(&info, &at, 1);
  }
  jpeg_finish_compress(&info);
  jpeg_destroy_compress(&info);
  std::string file(reinterpret_cast<const char*>(bytes), size);
  std::free(bytes);
  return file;
}

}  // namespace

TEST(ImageFiles, a_smooth_jpeg_is_read_to_a_few_levels_and_a_grey_or_cut_one_is_refused) {
  const Scratch scratch("jpeg");
  const int height = 40, width = 56;
  const std::string jpeg = jpeg_of_smooth(height, width, 3);
  const Image image = load_image(scratch.write("colour.jpg", jpeg).string());
  ASSERT_EQ(std::pair(image.height, image.width), std::pair(height, width));
  for (int i = 0; i < 3 * height * width; ++i)
    EXPECT_NEAR(image.rgb.bytes()[static_cast<size_t>(i)],
                smooth(i / 3 / width, i / 3 % width, i % 3), 6);
  for (const std::string& bad : {jpeg_of_smooth(8, 8, 1), jpeg.substr(0, jpeg.size() * 2 / 3)}) {
    const auto file = scratch.write("bad.jpg", bad);
    EXPECT_EQ(refused([&] { load_image(file.string()); }).fault(), Fault::input);
  }
}

TEST(ImageFiles, wrong_channel_counts_and_cut_files_are_refused) {
  const Scratch scratch("images");
  const auto pgm = scratch.write("grey.pgm", "P5\n1 1\n255\nx");
  EXPECT_NE(std::string(refused([&] { load_image(pgm.string()); }).what()).find("1 channel"),
            std::string::npos);
  const std::string png = read_whole(test_data("preprocess/images/flower_96x128_small.png"));
  std::mt19937_64 random(3);
  for (int i = 0; i < 40; ++i) {
    const auto cut = scratch.write("cut.png", png.substr(0, random() % (png.size() - 20)));
    EXPECT_EQ(refused([&] { load_image(cut.string()); }).fault(), Fault::input);
  }
  const auto ppm = scratch.write("ok.ppm", "P6\n# a comment\n2 1\n255\nabcdef");
  EXPECT_EQ(load_image(ppm.string()).rgb, std::vector<uint8_t>({'a', 'b', 'c', 'd', 'e', 'f'}));
  EXPECT_EQ(refused([&] { load_image((scratch.path() / "none.png").string()); }).fault(),
            Fault::input);
}
