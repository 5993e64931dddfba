#pragma once
// In an anonymous namespace, since each instruction-set file has its own.

namespace mla {
namespace {

/// The 8 bytes at `p`, whatever values they hold. Through a pointer to double or long long, a compiler may
/// read them ahead of writes of those values.
inline long long read64(const void* p) {
  long long bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return bits;
}

}  // namespace
}  // namespace mla
