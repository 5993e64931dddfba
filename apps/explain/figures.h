#pragma once
#include <cstdint>
#include <string>

#include "mla/kernels/matmul.h"

// Numbers as pages write them.

namespace mla::app {

/// "70,272".
std::string grouped(std::int64_t value);

/// "144 bytes", "68.6 KiB", "7.63 GiB".
std::string in_bytes(double bytes);

/// A small difference: "4.2e-07", or "0".
std::string tiny(double value);

/// "[rows, cols]".
std::string shape_text(const Weight& w);

/// a / b.
double ratio(std::int64_t a, std::int64_t b);

}  // namespace mla::app
