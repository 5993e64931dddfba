#include "apps/explain/figures.h"

#include <fmt/format.h>

#include "mla/chart/svg.h"

namespace mla::app {

std::string grouped(std::int64_t value) {
  return chart::number(static_cast<double>(value), 0);
}

std::string in_bytes(double bytes) {
  if (bytes < 1024) return fmt::format("{:.0f} bytes", bytes);
  const char* units[] = {"KiB", "MiB", "GiB", "TiB"};
  int unit = 0;
  for (bytes /= 1024; bytes >= 1000 && unit < 3; ++unit) bytes /= 1024;
  return fmt::format("{:.{}f} {}", bytes, bytes >= 100 ? 0 : bytes >= 10 ? 1 : 2, units[unit]);
}

std::string tiny(double value) {
  return value == 0 ? "0" : fmt::format("{:.1e}", value);
}

std::string shape_text(const Weight& w) {
  return fmt::format("[{}, {}]", w.rows, w.cols);
}

double ratio(std::int64_t a, std::int64_t b) {
  return static_cast<double>(a) / static_cast<double>(b);
}

}  // namespace mla::app
