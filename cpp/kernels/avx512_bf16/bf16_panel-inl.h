// Panels of bfloat16 pairs and the rows that they are multiplied by. To be included after the
// tier's vector-inl.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/avx512/vector-inl.h"
#include "kernels/avx512_bf16/bf16_page-inl.h"
#include "kernels/gemm-inl.h"

namespace slimformer::kernels {
namespace {

struct Bf16DotPanel {
  using Weight = std::uint16_t;
  using Input = std::uint32_t;  // two bfloat16, the lower k in the low half
  using W = __m512i;
  static constexpr std::size_t kPerStep = 2;

  static void Load(const std::uint16_t* step, W& low, W& high) noexcept {
    low = _mm512_loadu_si512(step);
    high = _mm512_loadu_si512(step + 2 * Vector::kLanes);
  }
  static __m512i Broadcast(const std::uint32_t* x) noexcept {
    return _mm512_set1_epi32(static_cast<int>(*x));
  }
  static Vector::F MulAdd(__m512i x, W w, Vector::F sum) noexcept {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
  }
  static std::size_t Slot(std::size_t output, std::size_t of_pair) noexcept {
    return 2 * output + of_pair;
  }
  static std::uint16_t Narrow(float w) noexcept { return Bf16FromFloat(w); }
  static float Widen(std::uint16_t w) noexcept { return FloatFromBf16(w); }
};

// Bytes of a row of pairs of bfloat16.
std::size_t InputRowBytes(std::size_t k) noexcept {
  return PreparedStride<Bf16DotPanel>(k) * sizeof(std::uint32_t);
}

void PrepareInput(const float* x, std::size_t stride, std::size_t rows, const InputColumns& columns,
                  void* prepared) noexcept {
  const std::size_t k = columns.count;
  const std::size_t row_bytes = InputRowBytes(columns.of);
  auto* row = static_cast<std::byte*>(prepared);
  for (std::size_t r = 0; r < rows; ++r, row += row_bytes) {
    auto* to = reinterpret_cast<std::uint16_t*>(row) + columns.first;
    const float* from = x + r * stride;
    std::size_t i = 0;
    for (; i + Vector::kLanes <= k; i += Vector::kLanes) {
      Bf16DotPage::Store(to + i, Vector::Load(from + i));
    }
    if (i < k) {  // masked stores of halves are slow, so only where they must be
      const auto mask = static_cast<__mmask16>((1U << (k - i)) - 1U);
      const __m256bh halves = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, from + i));
      _mm256_mask_storeu_epi16(to + i, mask, reinterpret_cast<__m256i>(halves));
    }
    if (k % 2 != 0) to[k] = 0;
  }
}

// A product over such panels; `multiply` is the dot products' own.
constexpr GemmKernel MakeBf16Gemm() noexcept {
  GemmKernel kernel = MakeGemm<Bf16DotPanel>();
  kernel.input_row_bytes = &InputRowBytes;
  kernel.prepare_input = &PrepareInput;
  return kernel;
}

}  // namespace
}  // namespace slimformer::kernels
