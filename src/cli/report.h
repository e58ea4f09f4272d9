// What a verb found out is one JSON object: printed as it is, or shown as text by templates over
// it. A place in a template is {path:format}: "{stages/total/p50_ms:.2f}". The path leads to a
// value of the record, an empty one to the record's name. The format is fmt's, with a unit behind
// it for numbers: ".1%" per cent, ".2k", ".2M" and ".3T" for so many thousands, millions or 1e12;
// of a truth value it is two words, "ok|FAILED". null is "–".
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "tendon/types.h"

namespace tendon::cli {

using Json = nlohmann::ordered_json;

// A text as it is, other values as JSON, cut to 100 characters.
std::string shown(const Json& value);

// The lines of `text`, without those that need a value which the record does not have.
std::string lines(const std::string& text, const Json& record);

// A row per record of a list, or of an object, whose keys are the records' names. `row` is what a
// row looks like: "stage {} | p50 ms {p50_ms:.2f}", titles before places. A missing value is blank.
std::string table(const std::string& row, const Json& records);

// One of the two on standard output.
void print_report(bool as_json, const Json& json, const std::string& text);

// The stages of a call, as JSON and text name them, with the work of those that have their own.
struct Stage {
  const char* name = nullptr;
  double StageTimes::*ms = nullptr;
  int64_t StageWork::*flops = nullptr;
  int64_t StageWork::*bytes = nullptr;
};
inline constexpr std::array<Stage, 6> kStages = {
    {{"preprocess", &StageTimes::preprocess_ms},
     {"vision", &StageTimes::vision_ms, &StageWork::vision_flops, &StageWork::vision_bytes},
     {"prefill", &StageTimes::prefill_ms, &StageWork::prefill_flops, &StageWork::prefill_bytes},
     {"denoise", &StageTimes::denoise_ms, &StageWork::denoise_flops, &StageWork::denoise_bytes},
     {"postprocess", &StageTimes::postprocess_ms},
     {"total", &StageTimes::total_ms}}};

// {size, in_use, peak: {dram, l1_of_a_core}}, without peak where that is not known; and the lines
// for a record that has it as "device_memory".
Json memory_json(const DeviceMemory& memory);
inline constexpr const char* kDeviceMemoryLines =
    "device memory: DRAM {device_memory/in_use/dram:.2M} of {device_memory/size/dram:.0M} MB, L1 "
    "{device_memory/in_use/l1_of_a_core:.0k} of {device_memory/size/l1_of_a_core:.0k} kB per core\n"
    "at its peak: DRAM {device_memory/peak/dram:.2M} MB, L1 "
    "{device_memory/peak/l1_of_a_core:.0k} kB per core, with the buffers of a call";

// Zeros without any value.
std::array<double, 3> p50_p90_p99(std::vector<double> values);

}  // namespace tendon::cli
