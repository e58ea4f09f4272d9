// labels: unit
// Images, statistics and transforms against the outputs of openpi, lerobot and Pillow.
#include <gtest/gtest.h>
#include <jpeglib.h>

#include <cmath>
#include <cstdlib>
#include <random>

#include "policy/checkpoint_folder.h"
#include "policy/images.h"
#include "policy/policy_spec_json.h"
#include "policy/processors.h"
#include "policy/statistics.h"
#include "policy/transforms.h"
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
  return {.family = Family::lerobot,
          .method = method,
          .centre = stored("stats." + feature + "." + low),
          .range = stored("stats." + feature + "." + high)};
}

// `values` as rows of `dim`, each of them through one of a normalizer's functions.
std::vector<double> rows_through(void (Normalizer::*step)(std::span<double>) const,
                                 const Normalizer& n, std::vector<double> values, size_t dim) {
  for (size_t i = 0; i < values.size(); i += dim)
    (n.*step)(std::span(values).subspan(i, std::min(dim, values.size() - i)));
  return values;
}

std::vector<double> cut_rows(const std::vector<double>& values, size_t dim, size_t kept) {
  std::vector<double> cut;
  for (size_t i = 0; i < values.size(); ++i)
    if (i % dim < kept) cut.push_back(values[i]);
  return cut;
}

// [side, side, 3], as a picture is stored.
std::vector<float> model_pixels(const Image& image, int side, Family resizer,
                                std::string_view camera = {}) {
  const PatchLayout whole{side, side};
  std::vector<float> planes(whole.values()), pixels(whole.values());
  PatchWriter(resizer, whole).write(image, camera, planes);
  in_patch_order(whole, [&, next = planes.begin()](int r, int c, int ch) mutable {
    pixels[static_cast<size_t>(3 * (r * side + c) + ch)] = *next++;
  });
  return pixels;
}

// A picture of the resizing goldens, what Pillow made of it, and which rows of torch's are stored.
struct Resized {
  Image input, pillow;
  size_t row_stride = 0;
};

std::map<std::string, Resized> resized() {
  std::map<std::string, Resized> all;
  const auto json = read_json(test_data("preprocess/images.json"));
  for (const auto& [name, entry] : json.at("images").items()) {
    const auto file = [&files = entry.at("files")](const char* kind) {
      return load_image(test_data("preprocess/" + files.at(kind).get<std::string>()).string());
    };
    all[name] = {file("input"), file("pil"), entry.at("row_stride").at("lerobot").get<size_t>()};
  }
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
    expect_close(
        rows_through(&Normalizer::normalize, lerobot(m, "observation.state"), stored("state"), 8),
        stored(base + ".state"), 1e-6, base + ".state");
    expect_close(
        rows_through(&Normalizer::unnormalize, lerobot(m, "action"), stored("model_actions"), 7),
        stored(base + ".actions"), 1e-6, base + ".actions");
  }
}

TEST(Statistics, openpi_methods_agree_in_double) {
  for (const bool quantiles : {false, true}) {
    const Normalize s = read_norm_stats(test_data("preprocess/norm_stats.json"), quantiles);
    const std::string base = quantiles ? "openpi.quantile" : "openpi.mean_std";
    expect_close(rows_through(&Normalizer::normalize, s.state, stored("state"), 8),
                 stored(base + ".state"), 1e-12, base + ".state");
    // The model's rows are padded; those columns are cut off.
    expect_close(rows_through(&Normalizer::unnormalize, s.action,
                              cut_rows(stored(base + ".actions_padded_input"), 32, 7), 7),
                 cut_rows(stored(base + ".actions"), 32, 7), 1e-12, base + ".actions");
  }
}

TEST(Statistics, renormalize_undoes_unnormalize_in_every_method) {
  const std::vector<double> model = stored("model_actions");
  const auto undone = [&](const Normalizer& n, const std::string& what) {
    const std::vector<double> back = rows_through(
        &Normalizer::renormalize, n, rows_through(&Normalizer::unnormalize, n, model, 7), 7);
    ASSERT_EQ(back.size(), model.size()) << what;
    for (size_t i = 0; i < back.size(); ++i) {
      const size_t d = i % 7;
      const bool mean_std = n.method == NormMethod::mean_std;
      const bool constant = d < n.range.size() && n.range[d] == (mean_std ? 0 : n.centre[d]);
      const double expected = !constant ? model[i] : mean_std ? 0 : -1;
      // lerobot un-normalises in float; openpi's 1e-6 beside a range must show.
      const double relative = n.family == Family::openpi ? 5e-7 : 1e-5;
      EXPECT_NEAR(back[i], expected, relative * std::max(1.0, std::abs(expected))) << what << i;
    }
  };
  for (const NormMethod m : {NormMethod::identity, NormMethod::mean_std, NormMethod::quantiles,
                             NormMethod::min_max, NormMethod::quantile10})
    undone(m == NormMethod::identity ? Normalizer{} : lerobot(m, "action"), std::string(name(m)));
  for (const bool quantiles : {false, true})
    undone(read_norm_stats(test_data("preprocess/norm_stats.json"), quantiles).action, "openpi");
}

TEST(Statistics, a_column_that_is_always_the_same_stays_at_its_centre) {
  for (const Family family : {Family::openpi, Family::lerobot}) {
    const Normalizer mean{
        .family = family, .method = NormMethod::mean_std, .centre = {3}, .range = {0}};
    const Normalizer ends{
        .family = family, .method = NormMethod::quantiles, .centre = {3}, .range = {3}};
    EXPECT_EQ(rows_through(&Normalizer::renormalize, mean, {3.5}, 1), std::vector<double>{0});
    EXPECT_EQ(rows_through(&Normalizer::renormalize, ends, {3.5}, 1), std::vector<double>{-1});
  }
}

TEST(Statistics, quantiles_are_kept_whatever_normalises) {
  const auto file = test_data("preprocess/norm_stats.json");
  const Normalize mean = read_norm_stats(file, false), quantile = read_norm_stats(file, true);
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
    EXPECT_TRUE(refuses(Fault::checkpoint, "", [&] { read(bad); })) << bad;
}

TEST(Images, pillow_resize_is_bit_exact) {
  EXPECT_GE(resized().size(), 6u);
  for (const auto& [name, picture] : resized())
    EXPECT_EQ(PilResizer().resize_with_pad(picture.input, 224, 224).rgb, picture.pillow.rgb)
        << name;
}

TEST(Images, torch_resize_agrees_to_a_millionth) {
  const auto results = SafetensorsFile::open(test_data("preprocess/images.safetensors"));
  for (const auto& [name, picture] : resized()) {
    const std::vector<float> pixels = model_pixels(picture.input, 224, Family::lerobot);
    const std::vector<double> expected = numbers(*results->find(name + ".lerobot"));
    const size_t row = 224 * 3, apart = picture.row_stride * row;
    for (size_t i = 0; i < expected.size(); ++i)
      ASSERT_NEAR(pixels[i / row * apart + i % row], expected[i], 1e-6) << name << " " << i;
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
  for (const auto& [name, picture] : resized()) {
    const Image& image = picture.input;
    const Image channels = planar(image);
    Image seen = image;
    seen.rgb = Pixels::view(image.rgb.bytes());
    ASSERT_NE(channels.rgb, image.rgb);
    for (const Family resizer : {Family::openpi, Family::lerobot})
      // The last two sides: as it is, and padding alone.
      for (const int side : {224, 56, image.height, std::max(image.height, image.width)}) {
        const std::vector<float> expected = model_pixels(image, side, resizer);
        EXPECT_EQ(model_pixels(channels, side, resizer), expected) << name << " " << side;
        EXPECT_EQ(model_pixels(seen, side, resizer), expected) << name << " " << side;
      }
  }
}

TEST(Images, a_square_picture_of_the_right_size_is_only_scaled) {
  const Image image{2, 2, std::vector<uint8_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 254, 255}};
  for (const Family resizer : {Family::openpi, Family::lerobot})
    for (const Image& given : {image, planar(image)}) {
      const std::vector<float> pixels = model_pixels(given, 2, resizer);
      for (size_t i = 0; i < pixels.size(); ++i)
        EXPECT_EQ(pixels[i], static_cast<float>(image.rgb[i]) / 255.f * 2.f - 1.f) << i;
    }
}

TEST(Images, bad_pictures_are_refused_by_name_with_what_was_got_and_wanted) {
  const std::vector<uint8_t> some(12);
  const std::tuple<Image, std::string> bad[] = {
      {{0, 4, {}}, "camera 'top': the picture has 0 by 4 pixels, expected 1 to 8192"},
      {{4, -1, some}, "camera 'top': the picture has 4 by -1 pixels"},
      {{8193, 1, std::vector<uint8_t>(3 * 8193)}, "camera 'top': the picture has 8193 by 1 pixels"},
      {{2147483647, 2147483647, some}, "2147483647 by 2147483647 pixels, expected 1 to 8192"},
      {{2, 3, some}, "camera 'top': the picture of 2 by 3 pixels has 12 bytes, expected 18"},
      {{2, 1, some, true}, "camera 'top': the picture of 2 by 1 pixels has 12 bytes, expected 6"},
      {{1, 3000, std::vector<uint8_t>(9000)},
       "camera 'top': the picture of 1 by 3000 pixels is too thin"}};
  for (const auto& [image, text] : bad)
    for (const Family resizer : {Family::openpi, Family::lerobot})
      EXPECT_TRUE(refuses(Fault::input, text,
                          [&, &given = image] { model_pixels(given, 224, resizer, "top"); }));
}

namespace {

// One row through transforms without statistics, at a state.
std::vector<double> to_robot(const Transforms& transforms, const std::vector<double>& state,
                             std::vector<double> row) {
  actions_to_robot(transforms, state_to_model(transforms, state), row);
  return row;
}
std::vector<double> to_model(const Transforms& transforms, const std::vector<double>& state,
                             std::vector<double> row) {
  actions_to_model(transforms, state_to_model(transforms, state), row);
  return row;
}

}  // namespace

TEST(Transforms, relative_actions_become_absolute_as_in_openpi_and_lerobot) {
  std::vector<double> state = stored("state");
  state.resize(8);
  DeltaActions delta;
  for (const double m : stored("openpi.absolute.mask")) delta.mask.push_back(m != 0);
  for (const Family family : {Family::openpi, Family::lerobot}) {
    delta.family = family;
    std::vector<double> actions;
    for (size_t r = 0; r < 5; ++r) {
      const std::vector<double> all = stored("model_actions");
      const auto row = all.begin() + static_cast<int64_t>(7 * r);
      const std::vector<double> absolute = to_robot({delta}, state, {row, row + 7});
      actions.insert(actions.end(), absolute.begin(), absolute.end());
    }
    const std::string what(name(family));
    expect_close(actions, stored(what + ".absolute.actions"), 1e-6, what);
  }
}

TEST(Transforms, relative_dims_are_those_of_openpi_and_lerobot) {
  const auto mask = [](const std::string& runs) {
    const auto j = nlohmann::json::parse(R"({"transforms": [{"type": "delta_actions", "mask": )" +
                                         runs + R"(}, {"type": "normalize"}]})");
    return find<DeltaActions>(read_policy_spec(j, "x").transforms)->mask;
  };
  EXPECT_EQ(mask("[6, -1]"), std::vector<bool>({1, 1, 1, 1, 1, 1, 0}));
  EXPECT_EQ(mask("[true, false, true]"), std::vector<bool>({1, 0, 1}));
  EXPECT_EQ(mask_of_names({"Left_Gripper", "elbow"}, {"gripper"}, 2), std::vector<bool>({0, 1}));
  const Transforms first = {DeltaActions{{true, false}}};
  EXPECT_EQ(to_robot(first, {10, 20}, {1, 2}), std::vector<double>({11, 2}));
  EXPECT_EQ(to_model(first, {1, 20}, {11, 2}), std::vector<double>({10, 2}));
}

TEST(Transforms, aloha_grippers_match_openpi) {
  const Transforms aloha = {AlohaJoints{}};
  const std::pair<double, double> states[] = {
      {0, -1.0798655}, {0.25, -0.5130776}, {0.5, -0.1400560}, {0.75, 0.2233276}, {1, 0.9456528}};
  for (const auto& [travel, angle] : states) {
    std::vector<double> state(14, 0.25);
    state[6] = state[13] = travel;
    state = state_to_model(aloha, state).back();
    EXPECT_NEAR(state[6], angle, 1e-7);
    EXPECT_NEAR(state[13], angle, 1e-7);
    for (const size_t j : {1u, 2u, 8u, 9u}) EXPECT_EQ(state[j], -0.25);
    for (const size_t j : {0u, 3u, 4u, 5u, 7u, 10u, 11u, 12u}) EXPECT_EQ(state[j], 0.25);
  }
  const std::pair<double, double> actions[] = {{0, 0.5533778}, {0.5, 0.7900866}, {1, 1.0267954}};
  for (const auto& [action, travel] : actions) {
    const std::vector<double> state(14, 0.25);
    const std::vector<double> row = to_robot(aloha, state, std::vector<double>(32, action));
    EXPECT_NEAR(row[6], travel, 1e-7);
    EXPECT_EQ(row[1], -action);
    EXPECT_EQ(row[14], action);
    for (const double v : to_model(aloha, state, row)) EXPECT_NEAR(v, action, 1e-12);
  }
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
    const std::string file = scratch.write("bad.jpg", bad).string();
    EXPECT_TRUE(refuses(Fault::input, "", [&] { load_image(file); }));
  }
}

TEST(ImageFiles, wrong_channel_counts_and_cut_files_are_refused) {
  const Scratch scratch("images");
  const std::string pgm = scratch.write("grey.pgm", "P5\n1 1\n255\nx").string();
  EXPECT_TRUE(refuses(Fault::input, "1 channel", [&] { load_image(pgm); }));
  const std::string png = read_whole(test_data("preprocess/images/flower_96x128_small.png"));
  std::mt19937_64 random(3);
  for (int i = 0; i < 40; ++i) {
    const auto cut = scratch.write("cut.png", png.substr(0, random() % (png.size() - 20)));
    EXPECT_TRUE(refuses(Fault::input, "", [&] { load_image(cut.string()); }));
  }
  const auto ppm = scratch.write("ok.ppm", "P6\n# a comment\n2 1\n255\nabcdef");
  EXPECT_EQ(load_image(ppm.string()).rgb, std::vector<uint8_t>({'a', 'b', 'c', 'd', 'e', 'f'}));
}
