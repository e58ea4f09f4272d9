// labels: unit
// LoRA adapters: merged as PEFT merges them and as their formulas say in double precision, and
// refused by name where they cannot be.
#include "checkpoint/adapter.h"

#include "model/weights.h"
#include "tuned_checkpoint.h"

using namespace tendon;
using nlohmann::json;
namespace fs = std::filesystem;

TEST(Adapter, is_merged_as_peft_merges_it) {
  int cases = 0;
  const auto base = SafetensorsFile::open(test_data("peft/base.safetensors"));
  for (const auto& folder : fs::directory_iterator(test_data("peft"))) {
    if (!folder.is_directory()) continue;
    ++cases;
    const auto merged = SafetensorsFile::open(folder.path() / "merged.safetensors");
    const auto weights =
        open_weights({base}, {.files = {SafetensorsFile::open(folder.path() / kAdapter)},
                              .settings = read_adapter_config(folder.path() / kSettings)});
    for (const HostTensor& t : base->tensors()) {
      const HostTensor* changed = merged->find(t.name);
      expect_near(weights->get(canonical_name(t.name), t.shape), numbers(changed ? *changed : t),
                  folder.path().string() + " " + t.name);
    }
    for (const HostTensor& t : merged->tensors())
      EXPECT_NE(numbers(t), numbers(*base->find(t.name))) << t.name;
  }
  EXPECT_EQ(cases, 8);
}

TEST(Adapter, has_a_scale_of_alpha_by_rank_or_by_its_root) {
  const Tuned tuned;
  const auto check = [&](const json& settings, int64_t rank, double scale) {
    tuned.save(settings, tuned.low_rank(kQuery, rank) + tuned.low_rank(kUp, rank));
    for (const std::string& module : {kQuery, kUp})
      expect_near(tuned.weight(module + ".weight"), tuned.expected(module, rank, scale),
                  module + settings.dump());
    expect_near(tuned.weight(kValue + ".weight"), tuned.before(kValue + ".weight"), kValue);
  };
  check(json::object(), 2, 3);
  check({{"r", 4}, {"lora_alpha", 1.5}, {"fan_in_fan_out", true}}, 4, 0.375);
  check({{"r", 4}, {"use_rslora", true}}, 4, 3);
  check({{"alpha_pattern", {{"q_proj", 5}, {R"(mlp\.fc1)", 5}}}}, 2, 2.5);
  check({{"rank_pattern", {{"model." + kQuery, 3}, {"fc1", 3}}}}, 3, 2);
}

TEST(Adapter, that_makes_a_bias_too_large_is_refused) {
  const Tuned tuned;
  const int64_t rows = tuned.shape(kUp + ".weight")[0];
  tuned.save(
      {{"lora_bias", true}, {"lora_alpha", 1e6}},
      tuned.low_rank(kUp, 2) + Tensors{some_tensor(kPeft + kUp + ".lora_B.bias", {rows}, 6)});
  EXPECT_TRUE(refuses(Fault::checkpoint, kUp + ".bias", [&] { tuned.weight(kUp + ".bias"); }));
}

// A whole model as PEFT wraps it, saved as one file: names of layers inside layers.
TEST(Adapter, may_lie_among_the_weights_under_the_names_of_the_wrapped_model) {
  const Tuned tuned;
  const Shape w = tuned.shape(kQuery + ".weight"), state = tuned.shape("state_proj.weight");
  const std::vector<double> wanted = tuned.expected(kQuery, 2, 3);
  tuned.write(kSettings, R"({"peft_type": "LORA", "r": 2, "lora_alpha": 6})");
  tuned.tensors(tuned.kWeights, [&](Tensors& all) {
    for (HostTensor& t : all) {
      if (t.name.ends_with(kQuery + ".weight"))
        t.name.replace(t.name.size() - 7, 1, ".base_layer.");
      if (t.name.ends_with("state_proj.weight"))
        t.name.replace(t.name.size() - 7, 1, ".original_module.");
      t.name = "base_model.model." + t.name;
    }
    all.push_back(some_tensor(kPeft + kQuery + ".lora_A.default.weight", {2, w[1]}, 1));
    all.push_back(some_tensor(kPeft + kQuery + ".lora_B.default.weight", {w[0], 2}, 2));
    all.push_back(some_tensor(kPeft + "state_proj.modules_to_save.default.weight", state, 4));
  });
  expect_near(tuned.weight(kQuery + ".weight"), wanted, kQuery);
  const HostTensor saved = some_tensor("", state, 4);
  EXPECT_EQ(numbers(tuned.weight("state_proj.weight")), numbers(saved));
}

// openpi: lora_a and lora_b beside the weight, of one matrix or, as in JAX, per head.
TEST(Adapter, of_openpi_is_merged_per_head_with_the_scale_that_somebody_tells) {
  Tuned tuned("openpi-pi05");
  const Shape q = tuned.shape(kQuery + ".weight"), o = tuned.shape(kExpert + "o_proj.weight");
  constexpr int64_t kHeads = 2, kRank = 3;
  const int64_t width = q[1], head = q[0] / kHeads;
  const std::vector<double> query = tuned.before(kQuery + ".weight"),
                            output = tuned.before(kExpert + "o_proj.weight");
  const std::vector<double> up = tuned.expected(kUp, 2, 0.5);
  const Shape u = tuned.shape(kUp + ".weight");
  const HostTensor qa = some_tensor(kQuery + ".lora_a", {kHeads, width, kRank}, 1),
                   qb = some_tensor(kQuery + ".lora_b", {kHeads, kRank, head}, 2),
                   oa = some_tensor(kExpert + "o_proj.lora_a", {kHeads, head, kRank}, 3),
                   ob = some_tensor(kExpert + "o_proj.lora_b", {kHeads, kRank, width}, 4);
  tuned.tensors(tuned.kWeights, [&](Tensors& all) {
    all = all + Tensors{qa, qb, oa, ob} +
          Tensors{some_tensor(kUp + ".lora_a", {2, u[1]}, 1),
                  some_tensor(kUp + ".lora_b", {u[0], 2}, 2)};
  });
  EXPECT_TRUE(refuses(Fault::checkpoint, "--lora-scale", [&] { tuned.open(); }));
  tuned.options.lora_scale = 0.5;
  // x [inputs] -> A x per head -> B: einsum "BTD,NDL->BTNL" and "BTNL,NLH->BTNH".
  std::vector<double> wanted = query;
  const auto at = [](const HostTensor& t, int64_t i, int64_t j, int64_t k) {
    return static_cast<double>(element(t, (i * t.shape[1] + j) * t.shape[2] + k));
  };
  for (int64_t n = 0; n < kHeads; ++n)
    for (int64_t h = 0; h < head; ++h)
      for (int64_t d = 0; d < width; ++d)
        for (int64_t l = 0; l < kRank; ++l)
          wanted[static_cast<size_t>((n * head + h) * width + d)] +=
              0.5 * at(qa, n, d, l) * at(qb, n, l, h);
  expect_near(tuned.weight(kQuery + ".weight"), wanted, "q_proj");
  // "BTNH,NHL->BTL" sums over the heads, "BTL,NLD->BTD" once more.
  wanted = output;
  for (int64_t d = 0; d < width; ++d)
    for (int64_t n = 0; n < kHeads; ++n)
      for (int64_t h = 0; h < head; ++h)
        for (int64_t l = 0; l < kRank; ++l)
          for (int64_t m = 0; m < kHeads; ++m)
            wanted[static_cast<size_t>(d * o[1] + n * head + h)] +=
                0.5 * at(oa, n, h, l) * at(ob, m, l, d);
  expect_near(tuned.weight(kExpert + "o_proj.weight"), wanted, "o_proj");
  expect_near(tuned.weight(kUp + ".weight"), up, "fc1");
}

namespace {

HostTensor& named(Tensors& all, const std::string& end) {
  return *std::ranges::find_if(all, [&](const HostTensor& t) { return t.name.ends_with(end); });
}

std::function<void(Tensors&)> reshaped(const std::string& end, const Shape& shape) {
  return [=](Tensors& all) { named(all, end) = some_tensor(named(all, end).name, shape, 1); };
}

std::function<void(Tensors&)> valued(const std::string& end, float value) {
  return [=](Tensors& all) {
    HostTensor& t = named(all, end);
    std::vector<float> values = some(t.shape.count(), 1);
    values.at(3) = value;
    t = host_tensor(t.name, t.shape, values);
  };
}

std::function<void(Tensors&)> beside(const std::string& name, const Shape& shape) {
  return [=](Tensors& all) { all.push_back(some_tensor(kPeft + name, shape, 1)); };
}

}  // namespace

TEST(Adapter, that_does_not_fit_is_refused_by_the_tensor_that_does_not) {
  const Tuned tuned;
  const Shape w = tuned.shape(kQuery + ".weight");
  const std::string a = kQuery + ".lora_A.weight", b = kQuery + ".lora_B.weight";
  const std::vector<std::pair<std::function<void(Tensors&)>, std::vector<std::string>>> cases = {
      {[](Tensors& all) { all.pop_back(); }, {a, "has no lora_B beside it"}},
      {[](Tensors& all) { all.erase(all.begin()); }, {b, "has no lora_A beside it"}},
      {reshaped(a, {2, w[1] + 1}), {a, "another model"}},
      {reshaped(a, {2, 1, w[1]}), {a, "another model"}},
      {reshaped(a, {3, w[1]}), {b, fmt::format("expected [{}, 3]", w[0])}},
      {reshaped(b, {w[0] + 2, 2}), {b, "another model"}},
      {reshaped(b, {1, 1, 1}), {b, "another model"}},
      {[&](Tensors& all) {
         reshaped(a, {3, w[1]})(all);
         reshaped(b, {w[0], 3})(all);
       },
       {a, "its rank is 3", kSettings, "says 2"}},
      {[](Tensors& all) {
         for (HostTensor& t : all) t.name.replace(t.name.find("layers.2"), 8, "layers.9");
       },
       {"layers.9.self_attn.q_proj", "does not have", "nearest", "another model"}},
      {valued(a, std::nanf("")), {a, "value 3", "nan"}},
      {valued(b, 1e30f), {b, "value 3"}},
      {[&](Tensors& all) {
         valued(a, 9e3f)(all);
         valued(b, 9e3f)(all);
       },
       {kQuery + ".weight"}},
      {[&](Tensors& all) { named(all, b).dtype = DType::i32; }, {b, "type I32"}},
      {beside(kQuery + ".lora_A.left.weight", {2, w[1]}), {"'left'", "one adapter is merged"}},
      {beside(kQuery + ".lora_a", {2, w[1]}), {"stored twice"}},
      {beside(kQuery + ".lora_magnitude_vector", {w[0]}), {a, "use_dora false"}},
      {beside(kQuery + ".lora_B.bias", {w[0]}), {b, "lora_bias false"}},
      {beside(kQuery + ".lora_embedding_A", {2, w[1]}), {"lora_embedding_A", "merge_and_unload"}},
      {beside(kQuery + ".lora_E", {2}), {"lora_E", "merge_and_unload"}},
      {beside("state_proj.weight", {2, 3}), {"state_proj.weight is [2, 3]"}},
      {beside("state_proj.gain", {2}), {"state_proj.gain", "does not have"}},
  };
  for (const auto& [change, pieces] : cases) {
    Tensors all = tuned.low_rank(kQuery, 2);
    change(all);
    tuned.save(json::object(), all);
    EXPECT_TRUE(refuses(Fault::checkpoint, pieces, [&] { tuned.weight(kQuery + ".weight"); }));
  }
}

TEST(Adapter, whose_settings_are_not_understood_is_refused_by_the_key) {
  const Tuned tuned;
  const std::vector<std::pair<json, std::string>> cases = {
      {{{"peft_type", "LOHA"}}, "peft_type is \"LOHA\""},
      {{{"r", 0}}, "'r' is 0"},
      {{{"r", "2"}}, "'r' is \"2\", expected an integer"},
      {{{"lora_alpha", 1e300}}, "'lora_alpha' is 1e+300"},
      {{{"lora_alpha", nullptr}}, "'lora_alpha' is null"},
      {{{"use_rslora", 1}}, "'use_rslora' is 1, expected true or false"},
      {{{"use_dora", true}}, "no lora_magnitude_vector, but"},
      {{{"lora_bias", true}}, "no bias, but"},
      {{{"use_dora", true}, {"lora_bias", true}}, "use_dora and lora_bias together"},
      {{{"use_qalora", true}}, "use_qalora is true"},
      {{{"layer_replication", {{0, 2}}}}, "layer_replication is [[0,2]]"},
      {{{"alora_invocation_tokens", {1}}}, "alora_invocation_tokens"},
      {{{"some_new_method", "x"}}, "some_new_method is \"x\""},
      {{{"init_lora_weights", "pissa"}}, "init_lora_weights is \"pissa\""},
      {{{"init_lora_weights", "olora"}}, "changes the base weights before training"},
      {{{"rank_pattern", {{".*q_proj", 4}}}}, "regular expressions are not read"},
      {{{"alpha_pattern", {{"q_proj", "4"}}}}, "'q_proj' is \"4\", expected a number"},
      {{{"alpha_pattern", {{"q_proj", 4}, {"self_attn.q_proj", 5}}}}, "patterns say 4 and 5"},
      {{{"rank_pattern", {4}}}, "rank_pattern is no object"},
      {{{"modules_to_save", {"state_proj"}}}, "lacks state_proj.bias, which modules_to_save"},
      {{{"modules_to_save", "state_proj"}}, "'modules_to_save' is no list"},
  };
  for (const auto& [settings, piece] : cases) {
    tuned.save(settings, tuned.low_rank(kQuery, 2));
    EXPECT_TRUE(refuses(Fault::checkpoint, piece, [&] { tuned.open(); }));
  }
  // Of the training alone, or the usual value.
  tuned.save({{"task_type", "X"},
              {"lora_dropout", 0.5},
              {"init_lora_weights", "gaussian"},
              {"use_qalora", false},
              {"megatron_config", nullptr},
              {"loftq_config", json::object()},
              {"target_modules", ".*q_proj"},
              {"modules_to_save", {"classifier"}}},
             tuned.low_rank(kQuery, 2));
  EXPECT_NO_THROW(tuned.open());
}

// A base stored in bf16 moves by whole steps only, so that rounding its sum loses small updates.
TEST(Adapter, that_rounding_to_bf16_would_lose_is_warned_of) {
  Tuned tuned("openpi-pi0");
  ASSERT_EQ(tuned.stored(kQuery + ".weight").dtype, DType::bf16);
  const auto warnings = [&](double alpha, const char* precision) {
    tuned.save({{"lora_alpha", alpha}}, tuned.low_rank(kQuery, 2));
    tuned.options.precision = precision;
    return tuned.open().warnings;
  };
  EXPECT_TRUE(one_says(warnings(1e-3, "bf16"), {"keeps about", "--precision f32 keeps all"}));
  EXPECT_TRUE(one_says(warnings(1e-3, ""), "keeps about"));
  EXPECT_FALSE(one_says(warnings(1e-3, "f32"), "keeps about"));
  EXPECT_FALSE(one_says(warnings(6, "bf16"), "keeps about"));
}
