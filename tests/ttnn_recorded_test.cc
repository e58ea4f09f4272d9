// labels: unit
// What the TTNN library answered on a simulated Wormhole, against our packers and the fake device.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tensor/compare.h"
#include "ttnn_cases.h"

namespace tendon::tt {
namespace {

using Values = std::vector<float>;

// ---- Packers ----

struct Packer : testing::TestWithParam<const char*> {
  const Recording recording{"pack.safetensors"};
  const std::string name = GetParam();
  const Dims dims = recording.dims(name + ".in");
  const Values in = recording.values(name + ".in");
  std::vector<std::byte> bytes(const std::string& what) const {
    const HostTensor& t = recording.at(name + "." + what);
    return {t.bytes.begin(), t.bytes.end()};
  }
};

TEST_P(Packer, writes_every_byte_of_a_bfp8_tensor_as_the_library_does) {
  EXPECT_EQ(pack({dims, Format::bfp8}, in), bytes("bfp8"));
}

TEST_P(Packer, reads_bfp8_as_the_library_does) {
  EXPECT_EQ(unpack({dims, Format::bfp8}, bytes("bfp8")), recording.values(name + ".bfp8_back"));
}

TEST_P(Packer, writes_and_reads_bf16_tiles_and_rows_as_the_library_does) {
  const Spec tiles{dims, Format::bf16}, rows{dims, Format::bf16, Layout::row_major};
  EXPECT_EQ(pack(tiles, in), bytes("bf16_tile"));
  EXPECT_EQ(pack(rows, in), bytes("bf16_rows"));
  const Values back = unpack(tiles, bytes("bf16_tile"));
  EXPECT_EQ(back, unpack(rows, bytes("bf16_rows")));
  EXPECT_EQ(pack(rows, back), bytes("bf16_rows"));
}

INSTANTIATE_TEST_SUITE_P(recorded, Packer,
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
    EXPECT_EQ(unpack(spec, pack(spec, ours)), ours);  // rounded to its format
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
