// The scalar tier's product of int8 weights without their zeros.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernel_table.h"
#include "kernels/scalar/gemm_whole.h"
#include "kernels/scalar/sparse.h"

namespace slimformer::kernels {
namespace {
namespace sparse {

// Groups that are not rotated: a rotated one has no zeros left.
struct Int8Form {
  using Weights = whole::Int8Weights<false>;
  using Item = std::uint8_t;
  static constexpr Item kMagnitude = 0xff;
  static constexpr std::size_t kHeadBytes = Weights::kScaleBytes;
  static std::size_t Groups(std::size_t k) noexcept { return whole::Groups<Weights::kGroup>(k); }
  static std::size_t Items(std::size_t k, std::size_t group) noexcept {
    return whole::Size<Weights>(k, group) * whole::kWidth;
  }
};

void MultiplyInt8(const void* x, std::size_t, std::size_t rows, const void* compressed,
                  std::size_t k, float* y, std::size_t y_stride, std::size_t outputs,
                  bool accumulate) noexcept {
  using Weights = Int8Form::Weights;
  const auto* input = static_cast<const whole::Input<Weights::kGroup>*>(x);
  for (std::size_t r = 0; r < rows; ++r) {
    Reader<Int8Form> reader(compressed, k);
    float sums[whole::kWidth] = {};
    for (std::size_t g = 0; g < Int8Form::Groups(k); ++g, ++input) {
      unsigned char group[whole::GroupBytes<Weights>];
      reader.NextGroup(Int8Form::Items(k, g), group);
      whole::AddGroup<Weights>(*input, whole::Size<Weights>(k, g), group, sums);
    }
    for (std::size_t c = 0; c < outputs; ++c) {
      float& to = y[r * y_stride + c];
      to = accumulate ? to + sums[c] : sums[c];
    }
  }
}

constexpr SparseKernel MakeInt8() noexcept {
  return MakeSparse<Int8Form>(whole::MakeGemm<Int8Form::Weights>(), &MultiplyInt8);
}

}  // namespace sparse
}  // namespace
}  // namespace slimformer::kernels
