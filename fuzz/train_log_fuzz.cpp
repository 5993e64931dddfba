// A train_log.csv from anyone: parse_train_log either gives rows, which can be drawn, or throws mla::Error.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "mla/core/error.h"
#include "mla/train/train_log.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const std::vector<mla::TrainLogRow> rows =
        mla::parse_train_log({reinterpret_cast<const char*>(data), size}, "train_log.csv");
    if (mla::loss_curve_svg(rows, 4).size() > 100000 + 40 * rows.size()) std::abort();
  } catch (const mla::Error&) {
  }
  return 0;
}
