// In every test program: no test but the slow ones may need more than 1 GiB.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <string_view>

namespace {

constexpr long kKibibytesMax = 1 << 20;

bool ran_slow_tests() {
  const testing::UnitTest& all = *testing::UnitTest::GetInstance();
  for (int s = 0; s < all.total_test_suite_count(); ++s)
    for (int t = 0; t < all.GetTestSuite(s)->total_test_count(); ++t) {
      const testing::TestInfo& test = *all.GetTestSuite(s)->GetTestInfo(t);
      if (test.should_run() &&
          std::string_view(test.name()).find("slow_") != std::string_view::npos)
        return true;
    }
  return false;
}

class MemoryLimit final : public testing::Environment {
  void TearDown() override {
    rusage used{};
    getrusage(RUSAGE_SELF, &used);
    EXPECT_TRUE(used.ru_maxrss <= kKibibytesMax || ran_slow_tests())
        << "this process needed " << used.ru_maxrss / 1024 << " MiB, at most "
        << kKibibytesMax / 1024 << " are allowed but in tests called slow_";
  }
};

[[maybe_unused]] const testing::Environment* const kMemoryLimit =
    testing::AddGlobalTestEnvironment(new MemoryLimit);

}  // namespace
