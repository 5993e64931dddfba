#include "mla/train/train_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <iterator>
#include <numbers>

#include "mla/chart/line_chart.h"
#include "mla/core/error.h"
#include "mla/core/mapped_file.h"

namespace mla {
namespace {

constexpr std::string_view heading =
    "step,tokens,loss,learning_rate,gradient_norm,tokens_per_second,held_back_bits_per_byte";

std::string line_of(const TrainLogRow& row) {
  std::string line = fmt::format("{},{},{:.7g},{:.7g},{:.6g},{:.5g},", row.step, row.tokens, row.loss,
                                 row.learning_rate, row.gradient_norm, row.tokens_per_second);
  if (row.held_back) fmt::format_to(std::back_inserter(line), "{:.6g}", *row.held_back);
  return line + "\n";
}

/// Takes one line's fields from left to right.
class LineReader {
 public:
  LineReader(std::string_view line, const std::string& source, std::size_t number)
      : line_(line), left_(line), source_(source), number_(number) {}

  template <class T>
  T next() {
    const std::string_view field = left_.substr(0, left_.find(','));
    T value{};
    const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), value);
    if (error != std::errc() || end != field.data() + field.size() || field.size() == left_.size()) refuse();
    left_.remove_prefix(field.size() + 1);
    return value;
  }
  /// The last one, which may be empty.
  std::optional<double> last() {
    if (left_.empty()) return std::nullopt;
    double value = 0;
    const auto [end, error] = std::from_chars(left_.data(), left_.data() + left_.size(), value);
    if (error != std::errc() || end != left_.data() + left_.size()) refuse();
    return value;
  }

 private:
  [[noreturn]] void refuse() const {
    std::string shown(line_.substr(0, 100));
    for (char& c : shown) {
      if (c < ' ' || c > '~') c = '?';
    }
    fail("{}: line {}: found '{}', expected numbers for {}", source_, number_, shown, heading);
  }

  std::string_view line_, left_;
  const std::string& source_;
  std::size_t number_;
};

/// Lines that end, without the heading, with what each says.
struct ReadLine {
  std::string_view text;
  TrainLogRow row;
};

std::vector<ReadLine> read_lines(std::string_view text, const std::string& source) {
  std::vector<ReadLine> lines;
  std::size_t number = 0;
  for (std::size_t end = 0; (end = text.find('\n')) != text.npos; text.remove_prefix(end + 1)) {
    const std::string_view line = text.substr(0, end);
    LineReader reader(line, source, ++number);
    if (number == 1) {
      require(line == heading, "{}: line 1: found {} other bytes, expected {}", source, line.size(), heading);
      continue;
    }
    TrainLogRow row;
    row.step = reader.next<std::int64_t>();
    row.tokens = reader.next<std::int64_t>();
    for (double* value : {&row.loss, &row.learning_rate, &row.gradient_norm, &row.tokens_per_second})
      *value = reader.next<double>();
    row.held_back = reader.last();
    lines.push_back({line, row});
  }
  return lines;
}

/// At most `most` points: means of equally many successive rows.
ChartSeries training_series(std::span<const TrainLogRow> rows, double bits_per_nat) {
  constexpr std::size_t most = 300;
  const std::size_t together = (rows.size() + most - 1) / most;
  ChartSeries series{"training", {}};
  for (std::size_t first = 0; first < rows.size(); first += together) {
    const auto group = rows.subspan(first, std::min(together, rows.size() - first));
    double step = 0, loss = 0;
    for (const TrainLogRow& row : group) {
      step += static_cast<double>(row.step);
      loss += row.loss;
    }
    const auto count = static_cast<double>(group.size());
    series.points.push_back({step / count, loss / count * bits_per_nat});
  }
  if (together > 1) {
    const auto steps = static_cast<double>(rows.back().step - rows.front().step);
    series.name += fmt::format(" (means of {:.0f} steps)",
                               steps / static_cast<double>(rows.size() - 1) * static_cast<double>(together));
  }
  return series;
}

}  // namespace

TrainLog::TrainLog(const std::filesystem::path& path, std::int64_t resumed_step) : source_(path.string()) {
  std::string kept = std::string(heading) + "\n";
  std::error_code ignored;  // what isn't there or can't be seen, write_text reports
  if (resumed_step > 0 && std::filesystem::exists(path, ignored)) {
    const std::string text = read_text(path);
    for (const ReadLine& line : read_lines(text, source_)) {
      if (line.row.step <= resumed_step) kept.append(line.text).append("\n");
    }
  }
  write_text(path, kept);
  fd_ = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  require(fd_ >= 0, "{}: can't open: {}", source_, std::strerror(errno));
}

TrainLog::~TrainLog() {
  if (fd_ >= 0) ::close(fd_);
}

void TrainLog::append(const TrainLogRow& row) {
  const std::string line = line_of(row);
  for (std::size_t done = 0; done < line.size();) {
    const ssize_t wrote = ::write(fd_, line.data() + done, line.size() - done);
    if (wrote < 0 && errno == EINTR) continue;
    require(wrote >= 0, "{}: can't write: {}", source_, std::strerror(errno));
    done += static_cast<std::size_t>(wrote);
  }
}

std::vector<TrainLogRow> parse_train_log(std::string_view text, const std::string& source) {
  std::vector<TrainLogRow> rows;
  for (const ReadLine& line : read_lines(text, source)) rows.push_back(line.row);
  return rows;
}

std::string loss_curve_svg(std::span<const TrainLogRow> rows, double bytes_per_token,
                           const std::string& title) {
  require(bytes_per_token > 0 && std::isfinite(bytes_per_token),
          "loss curve: bytes per token: found {}, expected a number above 0", bytes_per_token);
  LineChart chart{title, "step", "bits per byte", {}};
  chart.series.push_back(training_series(rows, 1 / (std::numbers::ln2 * bytes_per_token)));
  ChartSeries held_back{"held back", {}};
  for (const TrainLogRow& row : rows) {
    if (row.held_back) held_back.points.push_back({static_cast<double>(row.step), *row.held_back});
  }
  if (!held_back.points.empty()) chart.series.push_back(std::move(held_back));
  return line_chart_svg(chart);
}

}  // namespace mla
