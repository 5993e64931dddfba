#pragma once
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "mla/core/mapped_file.h"
#include "support/files.h"

namespace mla::test {

struct Outcome {
  int status;
  std::string out, err;
};

/// Tests that run the program as a script does.
class WithProgram : public testing::Test {
 protected:
  /// Runs `mla ARGUMENTS` in a shell, standard input from `input`.
  Outcome mla(const std::string& arguments, const std::string& input = "") {
    std::ofstream(directory / "in") << input;
    const std::string path = directory.string();
    const std::string command =
        fmt::format("{} {} < {}/in > {}/out 2> {}/err", MLA_PROGRAM, arguments, path, path, path);
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_text(directory / "out"),
            read_text(directory / "err")};
  }

  /// An error is status 1 and one line on standard error that has all of `parts`; standard output stays
  /// empty.
  void expect_error(const Outcome& run, const std::vector<std::string>& parts) {
    EXPECT_EQ(run.status, 1);
    EXPECT_EQ(run.out, "");
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
    for (const std::string& part : parts)
      EXPECT_NE(run.err.find(part), std::string::npos) << run.err << "lacks " << part;
  }

  TemporaryDirectory temporary;
  std::filesystem::path directory = temporary.path();
};

}  // namespace mla::test
