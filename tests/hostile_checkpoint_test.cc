// labels: hostile
// Checkpoint files that were cut, flipped or poisoned: refused by name, or as good as before.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <set>

#include "checkpoint/content_hash.h"
#include "checkpoint/weights.h"
#include "damaged_checkpoint.h"
#include "model/config.h"
#include "model/weights.h"
#include "tendon/opened.h"
#include "tensor/check.h"

using namespace tendon;
namespace fs = std::filesystem;

namespace {

const fs::path kWeights = golden("tiny-checkpoint-lerobot-pi0/checkpoint/model.safetensors");

// Sanitizers make it ten times as slow: a part of the repetitions is enough there.
constexpr int kPart = TENDON_TEST_SANITIZED ? 20 : 1;
constexpr int kHeaderFlips = 10000 / kPart, kDataFlips = 1000 / kPart;

// Where the tensors begin.
uint64_t data_begin(const std::string& file) {
  uint64_t bytes = 0;
  std::memcpy(&bytes, file.data(), sizeof(bytes));
  return 8 + bytes;
}

std::shared_ptr<const SafetensorsFile> parse(const std::string& bytes) {
  return SafetensorsFile::from_bytes(nullptr, std::as_bytes(std::span(bytes)), "x.safetensors");
}

// What a policy reads of a checkpoint: sizes, and each parameter's values.
std::string meaning(const std::string& bytes) {
  const auto weights = open_weights({parse(bytes)});
  const Config config = config_from_weights(*weights, true);
  check(config);
  check_parameters(*weights, config);
  std::string all = config_json(config).dump();
  for (const Parameter& p : parameters(config)) {
    const HostTensor t = weights->get(p.name, p.shape);
    all += fmt::format("\n{} {} {}", p.name, name(t.dtype), content_hash(t.bytes));
  }
  return all;
}

struct Flips {
  int refused = 0, harmless = 0, wrong = 0;
  std::string text() const {
    return fmt::format("{} refused, {} harmless, {} wrong", refused, harmless, wrong);
  }
};

// Flips bits of [begin, end) one at a time. `means_the_same`, given the flipped byte's place,
// throws what the loader says.
Flips flip_bits(std::string& bytes, uint64_t begin, uint64_t end, int count,
                const std::function<bool(uint64_t)>& means_the_same) {
  std::mt19937_64 random(5);
  Flips flips;
  for (int i = 0; i < count; ++i) {
    const uint64_t at = begin + random() % (end - begin);
    const char before = bytes[at];
    bytes[at] = static_cast<char>(before ^ (1 << random() % 8));
    try {
      const bool same = means_the_same(at);
      ++(same ? flips.harmless : flips.wrong);
      EXPECT_TRUE(same) << "byte " << at << ": "
                        << bytes.substr(at - std::min(at, uint64_t{40}), 80);
    } catch (const Error& e) {
      EXPECT_EQ(e.fault(), Fault::checkpoint) << e.what();
      ++flips.refused;
    }
    bytes[at] = before;
  }
  return flips;
}

Observation scene() {
  return Checkpoint::scene(14, {"base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"});
}

}  // namespace

TEST(HostileCheckpoint, cut_anywhere_is_refused_with_its_size_and_the_expected_one) {
  const Scratch scratch("hostile_cut");
  const std::string whole = read_whole(kWeights);
  const fs::path path = scratch.write("model.safetensors", whole);
  const uint64_t begin = data_begin(whole);
  std::set<uint64_t> cuts = {begin - 1, begin, begin + 1};
  for (uint64_t percent = 0; percent <= 100; ++percent) cuts.insert(whole.size() * percent / 100);
  for (uint64_t n = 0; n <= 16; ++n) cuts.insert(n);
  uint64_t end = begin;
  const auto file = SafetensorsFile::open(path);
  for (const HostTensor& t : file->tensors()) {
    end += t.bytes.size();
    cuts.insert({end - 1, end, end + 1});
  }
  ASSERT_EQ(end, whole.size());
  cuts.erase(cuts.lower_bound(whole.size()), cuts.end());
  for (auto cut = cuts.rbegin(); cut != cuts.rend(); ++cut) {
    fs::resize_file(path, *cut);
    const Error e = refused([&] { SafetensorsFile::open(path); });
    const uint64_t expected = *cut < 8 ? 8 : *cut < begin ? begin : whole.size();
    EXPECT_EQ(e.fault(), Fault::checkpoint) << e.what();
    EXPECT_TRUE(says(
        e.what(), {path.string(), fmt::format(" {} bytes", *cut), fmt::format(" {}", expected)}));
  }
  const fs::path longer = scratch.write("longer.safetensors", whole + "x");
  EXPECT_TRUE(refuses(Fault::checkpoint,
                      fmt::format("has {} bytes, its header speaks of {}", end + 1, end),
                      [&] { SafetensorsFile::open(longer); }));
  fmt::print("row 3: {} cuts\n", cuts.size());
}

TEST(HostileCheckpoint, with_a_flipped_bit_in_its_header_is_refused_or_means_the_same) {
  std::string bytes = read_whole(kWeights);
  const std::string expected = meaning(bytes);
  const Flips flips = flip_bits(bytes, 0, data_begin(bytes), kHeaderFlips,
                                [&](uint64_t) { return meaning(bytes) == expected; });
  EXPECT_GT(flips.refused, kHeaderFlips * 9 / 10);
  EXPECT_EQ(flips.wrong, 0);
  fmt::print("row 4: header of a checkpoint: {}\n", flips.text());
}

// Its metadata hold sizes, statistics and the robot: the hash must cover them, too.
TEST(ConvertedFile, with_any_flipped_bit_is_refused) {
  const Checkpoint checkpoint("lerobot-pi0", "f32");
  const std::string path = checkpoint.converted();
  Patched file(path);
  std::string bytes = file.whole;
  const auto on_disk = [&](uint64_t at, const auto& opens) {
    file.put(at, std::string_view(bytes).substr(at, 1));
    try {
      opens();
      file.restore(at, 1);
    } catch (const Error&) {
      file.restore(at, 1);
      throw;
    }
    return false;
  };
  open_model(path, {});
  EXPECT_TRUE(check_health(path, {.threads = 1}, {}).sound());
  const uint64_t begin = data_begin(bytes);
  const Flips header = flip_bits(bytes, 0, begin, kHeaderFlips, [&](uint64_t at) {
    return on_disk(at, [&] { open_model(path, {.threads = 1}); });
  });
  EXPECT_EQ(header.refused, kHeaderFlips);
  const Flips data = flip_bits(bytes, begin, bytes.size(), kDataFlips, [&](uint64_t at) {
    return on_disk(at, [&] {
      const Health health = check_health(path, {.threads = 1}, {});
      ensure(health.sound(), Fault::checkpoint, "validate found it");
    });
  });
  EXPECT_EQ(data.refused, kDataFlips);
  fmt::print("row 4: header of a converted file: {}; data: {}\n", header.text(), data.text());
}

namespace {

// The weights of a file without a look at their values.
class Unchecked final : public WeightSource {
 public:
  explicit Unchecked(std::unique_ptr<WeightSource> file) : file_(std::move(file)) {}
  HostTensor get(const std::string& name, const Shape&) override {
    return file_->tensors().at(name);
  }

 private:
  const std::unique_ptr<WeightSource> file_;
};

// The actions of a folder whose weights nobody checks.
std::vector<double> actions_unchecked(const Checkpoint& checkpoint) {
  OpenedModel model = checkpoint.open();
  model.weights = std::make_unique<Unchecked>(std::move(model.weights));
  return open_engine(model, checkpoint.options)->policy->infer(scene()).values;
}

std::vector<double> actions_of(const Checkpoint& checkpoint) {
  return checkpoint.engine().infer(scene()).values;
}

}  // namespace

TEST(HostileCheckpoint, with_one_bad_value_in_any_tensor_is_named_refused_and_never_acted_on) {
  const Checkpoint checkpoint("lerobot-pi0", "f32");
  Patched file(checkpoint.path(checkpoint.kWeights));
  const auto tensors = parse(file.whole)->tensors();
  const std::vector<double> sound = actions_of(checkpoint);
  std::mt19937_64 random(19);
  int values = 0, named = 0, refused_at_load = 0, unread = 0, guarded = 0;
  for (const HostTensor& t : tensors) {
    ASSERT_EQ(t.dtype, DType::f32);
    const std::string name = canonical_name(t.name);
    const auto first = reinterpret_cast<const char*>(t.bytes.data()) - file.whole.data();
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -INFINITY, 1e30f}) {
      if (values++ % kPart != 0) continue;
      const auto element = random() % static_cast<uint64_t>(t.shape.count());
      const auto at = static_cast<uint64_t>(first) + element * sizeof(float);
      file.put(at, {reinterpret_cast<const char*>(&bad), sizeof(bad)});
      const Health health = checkpoint.health();
      const bool found = std::ranges::any_of(health.findings, [&](const Finding& f) {
        return f.level == Finding::Level::error && f.subject == name;
      });
      EXPECT_TRUE(found) << name << " with " << bad;
      named += found;
      try {
        EXPECT_EQ(actions_of(checkpoint), sound) << name << " with " << bad;
        ++unread;
      } catch (const Error& e) {
        EXPECT_EQ(e.fault(), Fault::checkpoint) << e.what();
        EXPECT_TRUE(says(e.what(), name));
        ++refused_at_load;
      }
      try {
        for (const double action : actions_unchecked(checkpoint))
          ASSERT_TRUE(std::isfinite(action)) << name << " with " << bad;
      } catch (const Error& e) {
        EXPECT_EQ(e.fault(), Fault::internal) << e.what();
        ++guarded;
      }
      file.restore(at, sizeof(bad));
    }
  }
  EXPECT_GT(refused_at_load, 5 * unread);
  EXPECT_GT(guarded, 200 / kPart);
  fmt::print(
      "row 19: {} tensors, {} bad values: {} named, {} refused at load, {} in tensors that "
      "nothing reads, {} guarded where nothing was checked\n",
      tensors.size(), (values + kPart - 1) / kPart, named, refused_at_load, unread, guarded);
}

TEST(Engine, gives_the_same_bytes_ten_thousand_times_on_any_number_of_threads) {
  const Scratch scratch("hostile_determinism");
  const std::string tower = R"("heads":2,"kv_heads":1,"head_dim":16,"width":32,"mlp":32,"depth":1)";
  const std::string sizes =
      R"({"vision":{"image":28,"patch":14,"width":16,"heads":1,"mlp":16,"depth":1},"vlm":{)" +
      tower + R"(,"vocab":64},"expert":{)" + tower + R"(},"cameras":1,"horizon":4})";
  const std::string config = scratch.write("config.json", sizes).string();
  Observation seen{.prompt = "fold", .state = std::vector<double>(32, 0.25)};
  seen.images["base_0_rgb"] = {
      .height = 28, .width = 28, .rgb = std::vector<uint8_t>(28 * 28 * 3, 9)};
  std::set<std::vector<double>> answers;
  // Fewer where threads wait for each other's cores.
  for (const auto& [threads, calls] : {std::pair(1, 9000), {2, 800}, {4, 100}, {8, 100}}) {
    Engine engine = Engine::open("synthetic:pi0-small", {.config = config, .threads = threads});
    for (int call = 0; call < calls / kPart; ++call)
      answers.insert(engine.infer(seen, {.seed = 7, .steps = 1}).values);
  }
  EXPECT_EQ(answers.size(), 1u);
  fmt::print("row 27: {} calls on 1, 2, 4 and 8 threads: {} answer\n", 10000 / kPart,
             answers.size());
}
