// labels: unit
// What the TTNN library answered on a simulated Wormhole, against the fake device.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tensor/bf16.h"
#include "tensor/compare.h"
#include "ttnn_cases.h"

namespace tendon::tt {
namespace {

using Values = std::vector<float>;

// ---- Uploads ----

struct Uploaded : testing::TestWithParam<std::string> {
  const Recording recording{"pack.safetensors"};
  const Dims dims = recording.dims(GetParam() + ".in");
  Values stored(Format format) const {
    const Spec spec{dims, format};
    Board board;
    return board.get({board.put(spec, recording.values(GetParam() + ".in")), spec});
  }
};

TEST_P(Uploaded, bfp8_is_what_the_library_gives_back) {
  EXPECT_EQ(stored(Format::bfp8), recording.values(GetParam() + ".bfp8_back"));
}

TEST_P(Uploaded, bf16_is_what_the_library_stores) {
  const HostTensor& rows = recording.at(GetParam() + ".bf16_rows");
  std::vector<uint16_t> halves(size_of(dims));
  ASSERT_EQ(rows.bytes.size(), halves.size() * sizeof(uint16_t));
  std::memcpy(halves.data(), rows.bytes.data(), rows.bytes.size());
  Values expected;
  for (const uint16_t half : halves) expected.push_back(from_bf16(half));
  EXPECT_EQ(stored(Format::bf16), expected);
}

INSTANTIATE_TEST_SUITE_P(recorded, Uploaded,
                         testing::Values("normal", "wide", "integers", "ties", "edges"));

// ---- Calls ----

struct Recorded : testing::TestWithParam<Case> {};

TEST_P(Recorded, is_what_the_fake_device_answers) {
  const Case& c = GetParam();
  const Recording recording("ops/" + c.name + ".safetensors");
  Board board;
  const std::vector<Output> outputs = play(c, recording, board);
  for (size_t i = 0; i < outputs.size(); ++i) {
    const std::string which = fmt::format("out.{}", i);
    const Values library = recording.values(which), ours = board.get(outputs[i]);
    const Spec& spec = outputs[i].spec;
    EXPECT_EQ(spec.dims, recording.dims(which));
    EXPECT_EQ(board.get({board.put(spec, ours), spec}), ours);  // rounded to its format
    EXPECT_EQ(spec.format == Format::bfp8, recording.metadata("out_dtype").ends_with("BFLOAT8_B"));
    EXPECT_EQ(spec.layout == Layout::tile, recording.metadata("out_layout").ends_with("TILE"));
    const Comparison apart = compare(ours, library);
    EXPECT_LE(apart.relative_l2, c.relative_l2);
    EXPECT_LE(apart.max_error, 4 * c.relative_l2 * apart.scale);
  }
}

INSTANTIATE_TEST_SUITE_P(of_the_library, Recorded, testing::ValuesIn(recorded_cases()),
                         [](const auto& row) { return row.param.name; });

}  // namespace
}  // namespace tendon::tt
