// Where the tests' data lies, and how to read it.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "checkpoint/json.h"
#include "checkpoint/safetensors.h"
#include "refusals.h"

namespace tendon {

inline std::filesystem::path test_data(const std::string& name) {
  return std::filesystem::path(TENDON_TEST_DATA) / name;
}

inline std::filesystem::path golden(const std::string& name) { return test_data("golden/" + name); }

// Every element.
inline std::vector<double> numbers(const HostTensor& t) {
  std::vector<double> v(static_cast<size_t>(t.shape.count()));
  for (size_t i = 0; i < v.size(); ++i) v[i] = number(t, static_cast<int64_t>(i));
  return v;
}

// Equal but for `relative` of a value, or of 1 where it is smaller.
template <class Numbers>
void expect_close(const Numbers& got, const Numbers& expected, double relative,
                  const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  for (size_t i = 0; i < got.size(); ++i)
    EXPECT_NEAR(got[i], expected[i], relative * std::max(1.0, std::abs(double{expected[i]})))
        << what << "[" << i << "]";
}

// A folder of its own, removed at the end; several of one name may live at once.
class Scratch {
 public:
  explicit Scratch(const std::string& name)
      : path_(std::filesystem::temp_directory_path() /
              ("tendon_test_" + name + "_" + std::to_string(::getpid()) + "_" +
               std::to_string(count_++))) {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~Scratch() { std::filesystem::remove_all(path_); }
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path write(const std::string& name, const std::string& content) const {
    std::ofstream(path_ / name, std::ios::binary) << content;
    return path_ / name;
  }

 private:
  static inline int count_ = 0;
  std::filesystem::path path_;
};

inline std::string read_whole(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// A file whose bytes are changed where they lie: to write it anew ten thousand times costs a disk.
class Patched {
 public:
  explicit Patched(const std::filesystem::path& path)
      : whole(read_whole(path)), file_(path, std::ios::in | std::ios::out | std::ios::binary) {}
  void put(size_t at, std::string_view bytes) {
    file_.seekp(static_cast<std::streamoff>(at));
    file_.write(bytes.data(), std::ssize(bytes)).flush();
  }
  void restore(size_t at, size_t count) { put(at, whole.substr(at, count)); }

  const std::string whole;

 private:
  std::fstream file_;
};

}  // namespace tendon
