// mla explain: every topic holds, every topic can fail, and what a page says of the code is there.
#include <nlohmann/json.hpp>
#include <set>

#include "support/program.h"

namespace mla {
namespace {

using nlohmann::json;

class ExplainTest : public test::WithProgram {
 protected:
  /// The names that --list prints.
  std::vector<std::string> names() {
    std::vector<std::string> all;
    std::istringstream lines(mla("explain --list").out);
    for (std::string line; std::getline(lines, line);) all.push_back(line.substr(0, line.find(' ')));
    return all;
  }
};

TEST_F(ExplainTest, HasTheTopicsOfTheChapterInItsOrder) {
  EXPECT_EQ(names(),
            (std::vector<std::string>{"best-of-both", "query-path", "kv-path", "derivation", "absorption",
                                      "context-vector", "new-token", "latent-cache", "decompress",
                                      "cache-formula", "head-diversity", "module", "order", "integer",
                                      "binary", "sinusoidal", "rotary", "decoupled"}));
  EXPECT_EQ(mla("explain").out, mla("explain --list").out);
}

TEST_F(ExplainTest, AllHold) {
  const test::Outcome run = mla("explain all --json");
  ASSERT_EQ(run.status, 0) << run.out << run.err;
  const json all = json::parse(run.out);
  ASSERT_EQ(all.size(), names().size());
  for (const json& topic : all) {
    EXPECT_TRUE(topic.at("holds")) << topic;
    EXPECT_FALSE(topic.at("checks").empty()) << topic.at("topic");
    EXPECT_FALSE(topic.at("numbers").empty()) << topic.at("topic");
    ASSERT_FALSE(topic.at("code").empty()) << topic.at("topic");
    for (const json& place : topic.at("code")) {
      const std::string file = std::string(MLA_SOURCE_DIR) + "/" + place.at("file").get<std::string>();
      ASSERT_TRUE(std::filesystem::exists(file)) << file;
      const std::string function = place.at("function");
      EXPECT_NE(read_text(file).find(function), std::string::npos) << file << " lacks " << function;
    }
  }
}

/// A claim that could not fail would be worth nothing: with one input wrong, each topic's does.
TEST_F(ExplainTest, EachCanFail) {
  for (const std::string& name : names()) {
    const test::Outcome run = mla("explain " + name + " --break");
    EXPECT_EQ(run.status, 1) << name;
    EXPECT_NE(run.out.find("DOES NOT HOLD"), std::string::npos) << name;
    EXPECT_EQ(run.err, "") << name;
  }
}

TEST_F(ExplainTest, FitsATerminal) {
  for (const std::string& name : names()) {
    const test::Outcome run = mla("explain " + name);
    EXPECT_EQ(run.status, 0) << name;
    EXPECT_EQ(run.out.find('\033'), std::string::npos) << name << ": colours in a pipe";
    std::istringstream lines(run.out);
    int count = 0;
    for (std::string line; std::getline(lines, line); ++count) {
      const auto columns = std::count_if(line.begin(), line.end(), [](char c) { return (c & 0xc0) != 0x80; });
      EXPECT_LE(columns, line.starts_with("in the code:") ? 200 : 80) << name << ": " << line;
    }
    EXPECT_LE(count, 70) << name;
  }
}

TEST_F(ExplainTest, WritesASiteThatNeedsNothingElse) {
  const std::filesystem::path site = directory / "site";
  ASSERT_EQ(mla("explain all --html " + site.string()).status, 0);
  const std::string index = read_text(site / "index.html");
  for (const std::string& name : names()) {
    EXPECT_NE(index.find("href=\"" + name + ".html\""), std::string::npos) << name;
    const std::string page = read_text(site / (name + ".html"));
    for (const char* outside : {"src=\"http", "href=\"http", "@import", "url(http"})
      EXPECT_EQ(page.find(outside), std::string::npos) << name;
    EXPECT_TRUE(page.find("<svg") != std::string::npos || page.find("class=\"boxes\"") != std::string::npos)
        << name;
  }
}

TEST_F(ExplainTest, TheMapInTheDocumentsIsUpToDate) {
  EXPECT_EQ(mla("explain all --map").out, read_text(std::string(MLA_SOURCE_DIR) + "/docs/chapter.md"))
      << "build/mla explain all --map > docs/chapter.md";
}

TEST_F(ExplainTest, RefusesInOneLine) {
  expect_error(mla("explain nothing"), {"topic", "'nothing'", "--list"});
  std::ofstream(directory / "file") << "x";
  expect_error(mla("explain absorption --html " + (directory / "file").string()), {"file"});
}

}  // namespace
}  // namespace mla
