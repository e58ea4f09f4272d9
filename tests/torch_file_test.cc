// labels: unit
// metadata.pt: plain values are read, nothing is run, and what is not plain is named or refused.
#include "checkpoint/pickle.h"
#include "damaged_checkpoint.h"

using namespace tendon;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

const fs::path kMetadata = test_data("torch/metadata.pt");

json unpickled(const std::string& text) {
  return read_pickle(std::as_bytes(std::span(text)), "x.pt");
}

json archived(const std::string& archive) {
  const auto pickle = find_pickle(std::as_bytes(std::span(archive)), "x.pt");
  return read_pickle(pickle, "x.pt");
}

std::string text(const std::string& word) {
  return "X" + std::string{static_cast<char>(word.size()), 0, 0, 0} + word;
}

// A checkpoint of openpi whose horizon nobody tells but metadata.pt.
struct Trained : Checkpoint {
  explicit Trained(const std::string& kind) : Checkpoint(kind) {
    without_key("action_horizon")(*this);
    json sizes = read_json(options.config);
    for (const char* key : {"horizon", "max_token_len"}) sizes.erase(key);
    options.config = write("sizes.json", sizes.dump());
    fs::copy(kMetadata, path("metadata.pt"));
  }
};

}  // namespace

TEST(TorchFile, gives_plain_values_and_the_names_of_classes) {
  const json all = read_torch_file(kMetadata);
  EXPECT_EQ(all["global_step"], 30000);
  const json& config = all["config"];
  EXPECT_EQ(config["model"], (json{{"dtype", "bfloat16"},
                                   {"paligemma_variant", "gemma_2b"},
                                   {"action_horizon", 15},
                                   {"max_token_len", 120},
                                   {"action_dim", 32},
                                   {"pi05", true},
                                   {"discrete_state_input", false},
                                   {"pytorch_compile_mode", nullptr}}));
  EXPECT_EQ(config["same"], config["model"]);  // stored once
  EXPECT_EQ(config["freeze_filter"], (json{{"python", "__main__.Nothing"}}));
  EXPECT_EQ(config["space"], (json{{"python", "__builtin__.getattr"}}));  // a member, by name
  EXPECT_EQ(config["path"], (json{{"python", "pathlib.PurePosixPath"}}));
  EXPECT_EQ(config["order"], (json{{"python", "collections.OrderedDict"}}));
  EXPECT_EQ(config["scale"], (json{{"python", "torch._utils._rebuild_tensor_v2"}}));
  EXPECT_EQ(config["keys"], (json{"a", "b", "c", "d"}));
  EXPECT_EQ(config["big"], int64_t{1} << 40);
  EXPECT_EQ(config["negative"], -7);
  EXPECT_EQ(config["rate"], 2.5e-5);
  EXPECT_EQ(all["timestamp"], 1.7e9);
}

TEST(TorchFile, that_is_cut_or_holds_other_opcodes_is_refused) {
  const std::string whole = read_whole(kMetadata);
  for (size_t bytes = 0; bytes < whole.size(); bytes += 7)
    EXPECT_EQ(refused([&] { archived(whole.substr(0, bytes)); }).fault(), Fault::checkpoint);
  const std::string deep = std::string(100, ']') + std::string(99, 'a') + ".";
  std::string wide("]q\0", 3);  // each list holds the last one twice
  for (char i = 0; i < 40; ++i) wide += std::string("](h") + i + "h" + i + "eq" + char(i + 1);
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"i__main__\nsystem\n.", "opcode 0x69"},
      {"P1\n.", "opcode 0x50"},
      {"", "cut short"},
      {".", "takes more than it has"},
      {"(.", "takes more than it has"},
      {"u.", "without a mark"},
      {"h\x05.", "recalls what it has not seen"},
      {"}(" + text("a") + "u.", "key without a value"},
      {"K\x01K\x02"
       "a.",
       "fills what holds nothing"},
      {"\x8a\x09" + std::string(9, 'x') + ".", "integer of 9 bytes"},
      {text("a").substr(0, 4), "cut short"},
      {deep, "nested deeper"},
      {wide + ".", "nested deeper than 64 levels, or more than 65536 values"},
      {std::string(70000, 'N') + ".", "more than 65536 values"},
      {std::string((1 << 20) + 1, 'N'), "a pickle of 1048577 bytes"},
  };
  for (const auto& one : cases)
    EXPECT_TRUE(refuses(Fault::checkpoint, one.second, [&] { unpickled(one.first); }));
  std::string packed = whole;  // the method of the first entry, as the directory has it
  packed[packed.find("PK\x01\x02") + 10] = 8;
  EXPECT_TRUE(refuses(Fault::checkpoint, "compressed", [&] { archived(packed); }));
  EXPECT_EQ(unpickled("cos\nsystem\n" + text("rm -rf /") + "\x85R."),
            (json{{"python", "os.system"}}));
}

TEST(Metadata, tells_what_config_json_does_not) {
  const Trained trained("openpi-pi05");
  const OpenedModel m = trained.open();
  EXPECT_EQ(m.config.horizon, 15);
  EXPECT_EQ(m.config.max_token_len, 120);
  EXPECT_EQ(m.spec.prompt.tokens_max, 120);
  EXPECT_FALSE(m.spec.prompt.state_in_prompt);
  EXPECT_TRUE(one_says(m.notes, "metadata.pt: trained with 15 actions per chunk"));
  EXPECT_TRUE(trained.health().sound());
}

TEST(Metadata, that_contradicts_or_cannot_be_read_is_refused_unless_another_file_tells) {
  Trained trained("openpi-pi05");
  set_key("action_horizon", 10)(trained);
  EXPECT_TRUE(refuses(Fault::checkpoint, "action_horizon is 15, but config.json says 10",
                      [&] { trained.open(); }));
  const Trained of_pi0("openpi-pi0");
  EXPECT_TRUE(refuses(Fault::checkpoint, "pi05 is true, but of the tensors it is false",
                      [&] { of_pi0.open(); }));
  const Trained damaged("openpi-pi05");
  damaged.write("metadata.pt", "nothing");
  EXPECT_TRUE(refuses(Fault::checkpoint, "metadata.pt is no archive of torch.save",
                      [&] { damaged.open(); }));
  damaged.write("tendon.json", R"({"horizon": 7})");
  EXPECT_EQ(damaged.open().config.horizon, 7);
}
