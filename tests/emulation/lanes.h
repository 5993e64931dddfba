#pragma once
// What emulated instructions are made of: vectors, lane by lane. (immintrin.h includes the compiler's first.)

#include <cstdint>
#include <cstring>

namespace mla::emulation {

using std::int32_t, std::int64_t, std::uint16_t, std::uint32_t, std::uint64_t, std::uint8_t;

template <class T, class V>
T lane(const V& x, int i) {
  T value;
  std::memcpy(&value, reinterpret_cast<const char*>(&x) + i * sizeof value, sizeof value);
  return value;
}

/// Lane i is of(i).
template <class V, class T, class Of>
V from_lanes(const Of& of) {
  V x;
  for (int i = 0; i < static_cast<int>(sizeof x / sizeof(T)); ++i) {
    const T value = static_cast<T>(of(i));
    std::memcpy(reinterpret_cast<char*>(&x) + i * sizeof value, &value, sizeof value);
  }
  return x;
}

/// Bit i is of(i), of sixteen.
template <class Of>
__mmask16 from_bits(const Of& of) {
  unsigned mask = 0;
  for (int i = 0; i < 16; ++i) mask |= static_cast<unsigned>(of(i)) << i;
  return static_cast<__mmask16>(mask);
}

/// Lanes of `set` where the mask has a bit, else of `clear`.
template <class T, class V>
V choose(uint64_t mask, const V& clear, const V& set) {
  return from_lanes<V, T>([&](int i) { return lane<T>(mask >> i & 1 ? set : clear, i); });
}

/// Both halves by an operation of AVX2.
template <class Op>
__m512 by_halves(const __m512& a, const __m512& b, const __m512& c, const Op& op) {
  return from_lanes<__m512, __m256>(
      [&](int i) { return op(lane<__m256>(a, i), lane<__m256>(b, i), lane<__m256>(c, i)); });
}

/// The same bits as another type, or the first of them.
template <class To, class From>
To bits(const From& x) {
  To to;
  std::memcpy(&to, &x, sizeof to);
  return to;
}

}  // namespace mla::emulation
