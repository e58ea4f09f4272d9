// An action chunk as a file, and numbers from files.
#pragma once

#include <string>
#include <vector>

#include "tendon/tendon.h"

namespace tendon::cli {

// Numbers from "0.1,0.2 0.3", from a .json array (nested ones are flattened), a .npy array
// (little-endian f4 or f8, C order) or a text file. `what` names them in errors.
std::vector<double> read_numbers(const std::string& text_or_file, const std::string& what);

// A file of at most 16 MB; `what` is the option that names it.
std::string read_text(const std::string& path, const std::string& what);

// One list per row of the chunk, and the values of one action over the rows.
std::vector<std::vector<double>> rows_of(const Actions& actions);
std::vector<double> column_of(const Actions& actions, size_t column);

// By ending: .json (an object with "actions" as rows) or .npy (float64, C order). Written to a
// temporary name first.
void write_actions(const std::string& path, const Actions& actions,
                   const std::vector<std::string>& names);

// One small plot per joint over the horizon, as SVG.
std::string plot_svg(const Actions& actions, const std::vector<std::string>& names);

// Temporary name, then rename: the file is there completely or not at all.
void write_file(const std::string& path, const std::string& bytes);

}  // namespace tendon::cli
