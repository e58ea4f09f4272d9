// labels: unit
// Hostile and damaged checkpoint files, tensor names, and synthetic weights by their check values.
#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "checkpoint/content_hash.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/synthetic.h"
#include "checkpoint/values.h"
#include "checkpoint/weights.h"
#include "model/weights.h"
#include "tensor/bf16.h"
#include "test_files.h"

using namespace tendon;

namespace {

// A safetensors file of this header and so many bytes of data.
std::string file_of(const std::string& header, size_t data) {
  std::string bytes(8, '\0');
  const uint64_t n = header.size();
  std::memcpy(bytes.data(), &n, 8);
  return bytes + header + std::string(data, '\1');
}

std::shared_ptr<const SafetensorsFile> parse(const std::string& bytes) {
  const auto owner = std::make_shared<std::string>(bytes);
  return SafetensorsFile::from_bytes(owner, std::as_bytes(std::span(*owner)), "test.safetensors");
}

std::string entry(const std::string& name, const std::string& shape, int begin, int end) {
  return "\"" + name + "\":{\"dtype\":\"F32\",\"shape\":" + shape + ",\"data_offsets\":[" +
         std::to_string(begin) + "," + std::to_string(end) + "]}";
}

}  // namespace

TEST(Safetensors, hostile_headers_are_refused) {
  const std::string a = entry("a", "[2]", 0, 8);
  const std::vector<std::pair<std::string, size_t>> bad = {
      {"", 0},
      {"[]", 0},
      {"{" + a, 8},
      {"{" + a + "," + entry("a", "[1]", 8, 12) + "}", 12},   // twice
      {"{" + a + "," + entry("b", "[1]", 4, 8) + "}", 8},     // overlap
      {"{" + a + "," + entry("b", "[1]", 12, 16) + "}", 16},  // hole
      {"{" + a + "}", 12},                                    // rest
      {"{" + a + "}", 4},                                     // cut
      {"{" + entry("a", "[3]", 0, 8) + "}", 8},               // size
      {"{" + entry("a", "[0]", 0, 0) + "}", 0},               // dimension 0
      {"{" + entry("a", "[-1]", 0, 8) + "}", 8},
      {"{" + entry("a", "[1e400]", 0, 8) + "}", 8},
      {"{" + entry("a", "[2.0]", 0, 8) + "}", 8},
      {"{" + entry("a", "[1,1,1,1,1,1,1,1,2]", 0, 8) + "}", 8},  // nine dimensions
      {"{" + entry("a", "[4194305,4194305,211106198978564]", 0, 8) + "}", 8},
      {"{" + entry(std::string(513, 'n'), "[2]", 0, 8) + "}", 8},
      {"{\"a\":{\"dtype\":\"F99\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8},
      {"{\"a\":" + std::string(100000, '[') + "}", 0},
      {"{\"\\u", 4},  // cut within an escape
      {"{\"\\u123", 4},
  };
  for (const auto& [header, data] : bad) {
    const std::string file = file_of(header, data);
    EXPECT_TRUE(refuses(Fault::checkpoint, "test.safetensors", [&] { parse(file); }))
        << header.substr(0, 80);
  }
  std::string huge = file_of("{" + a + "}", 8);
  for (const uint64_t n : {uint64_t{1} << 63, uint64_t{huge.size()} + 1, ~uint64_t{0}}) {
    std::memcpy(huge.data(), &n, 8);
    EXPECT_TRUE(refuses(Fault::checkpoint, "", [&] { parse(huge); }));
  }
}

TEST(Safetensors, names_may_be_escaped_but_not_half_escaped) {
  const auto name = [](const std::string& escaped) {
    return parse(file_of("{" + entry(escaped, "[1]", 0, 4) + "}", 4))->tensors()[0].name;
  };
  EXPECT_EQ(name(R"(a\"\\\/\u0041)"), "a\"\\/A");
  EXPECT_EQ(name(R"(\u00e9\u20AC)"), "é€");
  EXPECT_EQ(name(R"(\ud83e\udd16)"), "🤖");
  for (const char* half :
       {R"(\ud83e)", R"(\ud83ex)", R"(\ud83e\u0041)", R"(\udd16)", R"(\u00g9)", R"(\x)", R"(\n)"})
    EXPECT_TRUE(refuses(Fault::checkpoint, "", [&] { name(half); })) << half;
}

TEST(Safetensors, written_data_begins_at_a_cache_line) {
  const Scratch scratch("aligned");
  for (const std::string name : {"x", "x1", "x12", "a name of another length"}) {
    write_safetensors(scratch.path() / name, std::vector<HostTensor>{host_tensor(name, {1}, {1.f})},
                      {});
    EXPECT_EQ((read_whole(scratch.path() / name).size() - 4) % 64, 0u) << name;
  }
}

// Computed once by the formula in Python: recordings keep hashes, and other machines compare them.
TEST(ContentHash, of_the_bytes_from_zero_up_is_the_same_on_every_machine) {
  std::vector<std::byte> bytes(100);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i);
  const auto first = [&](size_t n) { return content_hash(std::span(bytes).first(n)); };
  EXPECT_EQ(first(0), 0x050EA20EE6B2FAB9u);
  EXPECT_EQ(first(1), 0xEB73557597A15C8Au);
  EXPECT_EQ(first(64), 0x0495CF52EC777637u);
  EXPECT_EQ(first(100), 0x5C1760FFFB1061FAu);
}

// Resident pages of these bytes.
int64_t resident(std::span<const std::byte> bytes) {
  const size_t page = 4096, first = reinterpret_cast<uintptr_t>(bytes.data()) / page * page;
  const size_t length = reinterpret_cast<uintptr_t>(bytes.data()) + bytes.size() - first;
  std::vector<uint64_t> entries(length / page);
  const int map = open("/proc/self/pagemap", O_RDONLY);
  const ssize_t got =
      pread(map, entries.data(), entries.size() * 8, static_cast<off_t>(first / page * 8));
  close(map);
  EXPECT_EQ(got, std::ssize(entries) * 8);
  return std::ranges::count_if(entries, [](uint64_t e) { return e >> 63 == 1; });
}

TEST(Safetensors, forgotten_pages_leave_memory_and_read_the_same) {
  const Scratch scratch("forget");
  const auto path = scratch.path() / "t.safetensors";
  const std::vector<float> values(1 << 18, 0.5f);
  const HostTensor kept = host_tensor("x", {1 << 18}, values);
  write_safetensors(path, {{kept}});
  const auto file = SafetensorsFile::open(path);
  const HostTensor& x = file->tensors()[0];
  EXPECT_EQ(element(x, 1 << 17), 0.5f);
  EXPECT_GT(resident(x.bytes), 0);
  forget_pages(x);
  EXPECT_LE(resident(x.bytes), 2);  // shared with its neighbours
  for (int64_t i = 0; i < 1 << 18; ++i) ASSERT_EQ(element(x, i), 0.5f);
  forget_pages(kept);  // not mapped: stays what it is
  EXPECT_EQ(element(kept, 1 << 17), 0.5f);
}

TEST(Names, every_known_spelling_becomes_the_canonical_one) {
  const std::string pg = "paligemma_with_expert.paligemma.";
  EXPECT_EQ(canonical_name("model.action_in_proj.bias"), "action_in_proj.bias");
  EXPECT_EQ(canonical_name("model." + pg + "language_model.model.norm.weight"),
            pg + "model.language_model.norm.weight");
  EXPECT_EQ(canonical_name(pg + "model.vision_tower.post_layernorm.bias"),
            pg + "model.vision_tower.vision_model.post_layernorm.bias");
  EXPECT_EQ(canonical_name(pg + "vision_tower.vision_model.post_layernorm.bias"),
            pg + "model.vision_tower.vision_model.post_layernorm.bias");
  EXPECT_EQ(canonical_name(pg + "language_model.lm_head.weight"), pg + "lm_head.weight");
}

TEST(Weights, that_are_not_finite_or_beyond_ten_thousand_are_refused_at_every_place) {
  const Scratch scratch("weights");
  const auto get = [&](const std::vector<float>& values) {
    const Shape shape{std::ssize(values)};
    write_safetensors(scratch.path() / "x",
                      std::vector<HostTensor>{host_tensor("x", shape, values)}, {});
    return open_weights({SafetensorsFile::open(scratch.path() / "x")})->get("x", shape);
  };
  const std::vector<float> good(20, -kWeightMagnitudeMax);
  EXPECT_EQ(numbers(get(good)), std::vector<double>(20, -1e4));
  for (const float bad : {std::nanf(""), -INFINITY, 10001.f})
    for (size_t i = 0; i < good.size(); ++i) {
      std::vector<float> values = good;
      values[i] = bad;
      EXPECT_TRUE(
          refuses(Fault::checkpoint, fmt::format("value {} of x", i), [&] { get(values); }));
    }
}

TEST(Parameters, full_size_counts_are_the_published_ones) {
  const auto count = [](PolicyType type) {
    int64_t sum = 0;
    for (const Parameter& p : parameters(full_size(type))) sum += p.shape.count();
    return sum;
  };
  EXPECT_EQ(count(PolicyType::pi0), 3238048528);
  EXPECT_EQ(count(PolicyType::pi05), 3353433872);
  EXPECT_EQ(parameters(full_size(PolicyType::pi0)).size(), 776u);
  EXPECT_EQ(parameters(full_size(PolicyType::pi05)).size(), 811u);
}

namespace {

using Tensors = std::vector<HostTensor>;

std::unique_ptr<WeightSource> source_of(const Tensors& tensors, const Scratch& scratch) {
  write_safetensors(scratch.path() / "t.safetensors", tensors);
  return open_weights({SafetensorsFile::open(scratch.path() / "t.safetensors")});
}

Tensors tensors_of(const std::string& kind) {
  const auto path = "tiny-checkpoint-openpi-" + kind + "/checkpoint/model.safetensors";
  return SafetensorsFile::open(golden(path))->tensors();
}

}  // namespace

TEST(Parameters, tell_an_unused_tensor_and_a_missing_one) {
  const Scratch scratch("unused");
  Tensors tensors = tensors_of("pi0");
  tensors.push_back(host_tensor("surprise.weight", {1}, {0.f}));
  auto source = source_of(tensors, scratch);
  const Config config = config_from_weights(*source, true);
  EXPECT_EQ(check_parameters(*source, config), std::vector<std::string>{"surprise.weight"});
  std::erase_if(tensors, [](const HostTensor& t) { return t.name == "action_out_proj.bias"; });
  source = source_of(tensors, scratch);
  EXPECT_TRUE(refuses(Fault::checkpoint, "action_out_proj.bias; nearest: action_in_proj.bias",
                      [&] { check_parameters(*source, config); }));
}

TEST(Parameters, of_a_layer_that_lost_most_of_them_are_not_taken_for_a_shorter_model) {
  const Scratch scratch("layer");
  for (const std::string layer : {"vision_model.encoder.layers.2.", "language_model.layers.2."}) {
    Tensors tensors = tensors_of("pi0");
    int64_t kept = 0;
    std::erase_if(tensors, [&](const HostTensor& t) {
      return t.name.find(layer) != std::string::npos && ++kept > 2;
    });
    ASSERT_GT(kept, 4) << layer;
    const auto source = source_of(tensors, scratch);
    std::vector<std::string> told;
    config_from_weights(*source, true, [&](const Problem& p) { told.push_back(p.check); });
    const size_t beyond =
        layer.starts_with("vision") ? 2 : 0;  // the expert tells the other's depth
    EXPECT_EQ(told, std::vector<std::string>(beyond, "tensor.layer"));
    EXPECT_TRUE(refuses(Fault::checkpoint, "",
                        [&] { check_parameters(*source, config_from_weights(*source, true)); }));
  }
}

TEST(Parameters, of_both_kinds_of_model_are_refused_and_those_of_neither) {
  const Scratch scratch("kinds");
  Tensors both = tensors_of("pi0");
  for (const HostTensor& t : tensors_of("pi05"))
    if (std::ranges::find(both, t.name, &HostTensor::name) == both.end()) both.push_back(t);
  const auto refused_for = [&](const Tensors& tensors, const char* text) {
    const auto source = source_of(tensors, scratch);
    return refuses(Fault::checkpoint, text, [&] { config_from_weights(*source); });
  };
  EXPECT_TRUE(refused_for(both, "neither pi0 nor pi0.5 alone"));
  EXPECT_TRUE(refused_for({host_tensor("x", {1}, {1.f})}, "is neither pi0 (state_proj"));
}

TEST(F16, is_the_float_that_its_bits_stand_for) {
  for (uint32_t bits = 0; bits < 0x7C00; ++bits) {
    const uint32_t exponent = bits >> 10, mantissa = bits & 0x3FF;
    const float expected = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                         : std::ldexp(static_cast<float>(1024 + mantissa),
                                                      static_cast<int>(exponent) - 25);
    ASSERT_EQ(from_f16(static_cast<uint16_t>(bits)), expected) << bits;
    ASSERT_EQ(from_f16(static_cast<uint16_t>(bits | 0x8000)), -expected) << bits;
  }
  EXPECT_EQ(from_f16(0x7C00), INFINITY);
  EXPECT_EQ(from_f16(0xFC00), -INFINITY);
  EXPECT_TRUE(std::isnan(from_f16(0x7C01)) && std::isnan(from_f16(0xFE00)));
}

struct CheckValue {
  const char* name;
  Shape shape;
  uint32_t first, second, last;  // bits
  double sum;
};

TEST(Synthetic, full_size_tensors_have_the_documented_bits_and_sums) {
  const std::string vision = "paligemma_with_expert.paligemma.model.vision_tower.vision_model.";
  const std::string expert = "paligemma_with_expert.gemma_expert.model.";
  const std::string names[] = {vision + "embeddings.patch_embedding.weight",
                               vision + "encoder.layers.26.layer_norm2.weight",
                               vision + "encoder.layers.0.self_attn.out_proj.weight",
                               vision + "encoder.layers.13.mlp.fc2.weight",
                               expert + "layers.5.self_attn.o_proj.weight",
                               expert + "layers.17.post_attention_layernorm.dense.weight",
                               expert + "norm.dense.bias"};
  const CheckValue rows[] = {
      {"action_in_proj.weight", {1024, 32}, 0xbdbdd654, 0x3d69ffff, 0xb98b3a87, -32.5275452},
      {"action_in_proj.bias", {1024}, 0x3d2e8140, 0x3cccfc07, 0xbdb4c342, 0.0423333239},
      {"state_proj.weight", {1024, 32}, 0xbe1bb1ad, 0xbd81683d, 0x3f141e15, -11.9128534},
      {"action_time_mlp_in.weight", {1024, 2048}, 0x3d0f3910, 0x3c8d9a1b, 0x3c896b9a, 18.6310609},
      {"action_out_proj.weight", {32, 1024}, 0xbd2daaf3, 0x3cb160b7, 0x3c2380d2, -1.18728473},
      {names[0].c_str(), {1152, 3, 14, 14}, 0xbd87695d, 0x3d88322c, 0x3cfa4221, -36.0810451},
      {names[1].c_str(), {1152}, 0x3f854541, 0x3f7b75e3, 0x3f66ff29, 1151.01735},
      {names[2].c_str(), {1152, 1152}, 0x3b1c3fab, 0xbc017b48, 0x3a7fc056, -18.2345585},
      {names[3].c_str(), {1152, 4304}, 0xbbac70c6, 0x3b8b914c, 0xbac310d8, -7.17736435},
      {names[4].c_str(), {1024, 2048}, 0xbb92f654, 0x3a06a94e, 0x3ccb3817, 3.4211448},
      {names[5].c_str(), {3072, 1024}, 0x3dcc8809, 0x3d8475ba, 0x3d86a686, -138.460383},
      {names[6].c_str(), {3072}, 0xbe91b693, 0x3eeec12d, 0xbebbaeb7, 36.6945039}};
  for (const CheckValue& row : rows) {
    const HostTensor t = synthetic_tensor(row.name, row.shape, {});
    const auto bits = [&](int64_t i) { return std::bit_cast<uint32_t>(element(t, i)); };
    EXPECT_EQ(bits(0), row.first) << row.name;
    EXPECT_EQ(bits(1), row.second) << row.name;
    EXPECT_EQ(bits(row.shape.count() - 1), row.last) << row.name;
    double sum = 0;
    for (int64_t i = 0; i < row.shape.count(); ++i) sum += element(t, i);
    EXPECT_NEAR(sum, row.sum, 5e-8 * std::max(1.0, std::abs(row.sum)) * 10) << row.name;
    const HostTensor half = synthetic_tensor(row.name, row.shape, {.dtype = DType::bf16});
    for (int64_t i = 0; i < row.shape.count(); i += 997)
      ASSERT_EQ(element(half, i), from_bf16(to_bf16(element(t, i)))) << row.name;
  }
}
