// Loops over vectors of a row whose tail (n mod kLanes) runs as one masked vector, not as a scalar
// loop. To be included after the tier's vector-inl.h.
//
// Lanes of bfloat16 are templates so that only tiers that convert them need to know how.
#pragma once

#include <cstddef>
#include <cstdint>

namespace slimformer::kernels {
namespace {

struct WholeVector {
  static Vector::F Load(const float* p) noexcept { return Vector::Load(p); }
  static void Store(float* p, Vector::F x) noexcept { Vector::Store(p, x); }
  template <class V = Vector>
  static typename V::F Load(const std::uint16_t* p) noexcept {
    return V::LoadBf16(p);
  }
  template <class V = Vector>
  static void Store(std::uint16_t* p, typename V::F x) noexcept {
    V::StoreBf16(p, x);
  }
};

// The first n < kLanes lanes. Lanes beyond read as 0.
struct PartOfVector {
  std::size_t n;

  Vector::F Load(const float* p) const noexcept { return Vector::Load(p, n); }
  void Store(float* p, Vector::F x) const noexcept { Vector::Store(p, n, x); }
  template <class V = Vector>
  typename V::F Load(const std::uint16_t* p) const noexcept {
    std::uint16_t copy[V::kLanes] = {};
    for (std::size_t i = 0; i < n; ++i) copy[i] = p[i];
    return V::LoadBf16(copy);
  }
  template <class V = Vector>
  void Store(std::uint16_t* p, typename V::F x) const noexcept {
    std::uint16_t copy[V::kLanes];
    V::StoreBf16(copy, x);
    for (std::size_t i = 0; i < n; ++i) p[i] = copy[i];
  }
};

// Calls body(i, lanes) for every vector of n values.
template <class Body>
inline void ForEachVector(std::size_t n, Body body) noexcept {
  std::size_t i = 0;
  for (; i + Vector::kLanes <= n; i += Vector::kLanes) body(i, WholeVector{});
  if (i < n) body(i, PartOfVector{n - i});
}

}  // namespace
}  // namespace slimformer::kernels
