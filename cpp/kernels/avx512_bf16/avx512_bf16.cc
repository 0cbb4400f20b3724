// The avx512_bf16 tier: matrix products of bfloat16 weights with VDPBF16PS, which multiplies pairs
// and adds both products to a float32 lane: twice the multiply-adds of an FMA per instruction, on
// Zen 4 and on Intel twice the peak.
//
// A step consumes two k: lane i of the panel's vectors holds output i's weights for both, and x is
// rounded to bfloat16 pairs first (prepare_input). The panel halves the loads and broadcasts per
// multiply-add, so the register tile of avx512, 12 rows by 2 vectors, stays as good. Odd k: the
// last pair is padded with zeros on both sides. The instruction takes denormals for zero and
// adds the two products with a rounding of its own; against the rounding of x, 2^-9, both vanish.
//
// Attention over bfloat16 pages is made of the same instruction: queries and softmax weights are
// rounded to bfloat16, keys and values are already. Each rounding is 2^-9 of what it rounds, as
// that of x is in the matrix products.
#include "kernels/avx512/vector-inl.h"
#include "kernels/avx512_bf16/bf16_sums-inl.h"
#include "kernels/avx512_bf16/expand-inl.h"
#include "kernels/avx512_bf16/widen-inl.h"
#include "kernels/avx512_vnni/quad_dot-inl.h"
// The bodies below are written in terms of Vector.
#include "kernels/attend-inl.h"
#include "kernels/gemm-inl.h"
#include "kernels/gemm-whole-inl.h"
#include "kernels/int4-inl.h"
#include "kernels/int8-inl.h"
#include "kernels/overlay.h"
#include "kernels/sparse_gemm-inl.h"
#include "kernels/sparse_whole-inl.h"

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

// exp(score - max), off by 2^-18 at most where the rounding that follows is off by 2^-9: the
// difference times log2 e is a whole number and a fraction f in [0, 1), and 2^f a polynomial of
// degree 4 fitted for the least greatest relative error. 0 for -inf; NaN for NaN. max log2 e is
// rounded before it is subtracted, which multiplies all weights beside a maximum by one factor, and
// so changes none of their shares.
inline Vector::F CoarseExp(Vector::F score, Vector::F max) noexcept {
  const Vector::F log2_e = Vector::Set(1.44269504F);
  const Vector::F x = _mm512_fmsub_ps(score, log2_e, Vector::Mul(max, log2_e));
  const Vector::F f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  Vector::F p = Vector::Set(1.35341678e-02F);
  p = Vector::MulAdd(p, f, Vector::Set(5.20114601e-02F));
  p = Vector::MulAdd(p, f, Vector::Set(2.41442755e-01F));
  p = Vector::MulAdd(p, f, Vector::Set(6.93003833e-01F));
  p = Vector::MulAdd(p, f, Vector::Set(1.00000262F));
  return _mm512_scalef_ps(p, x);
}

// Pairs of bfloat16, multiplied by pairs of bfloat16.
struct Bf16DotPage {
  static constexpr bool kScaled = false;
  using Value = std::uint16_t;
  using Multiplier = std::uint16_t;
  using W = __m512i;
  static constexpr std::size_t kPerStep = 2;
  static constexpr std::size_t kParts = 1;

  template <std::size_t kPart>
  static W Load(const std::uint16_t* step) noexcept {
    return _mm512_loadu_si512(step);
  }
  static __m512i Broadcast(const std::uint16_t* pair) noexcept {
    int bits;
    __builtin_memcpy(&bits, pair, sizeof(bits));
    return _mm512_set1_epi32(bits);
  }
  static Vector::F MulAdd(__m512i x, W w, Vector::F sum) noexcept {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
  }
  static Vector::F Weight(Vector::F score, Vector::F max) noexcept { return CoarseExp(score, max); }
  static void Store(std::uint16_t* to, Vector::F x) noexcept {
    const __m256bh halves = _mm512_cvtneps_pbh(x);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(halves));
  }
};

std::size_t InputRowBytes(std::size_t k) noexcept {
  return Steps<Bf16DotPanel>(k) * sizeof(std::uint32_t);
}

// prepared [rows, steps], a pair of bfloat16 each.
void PrepareInput(const float* x, std::size_t stride, std::size_t rows, std::size_t k,
                  void* prepared, std::size_t prepared_stride) noexcept {
  for (std::size_t r = 0; r < rows; ++r) {
    auto* row = static_cast<std::byte*>(prepared) + r * prepared_stride;
    auto* to = reinterpret_cast<std::uint16_t*>(row);
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

}  // namespace

template <>
void Overlay<Tier::avx512_bf16>(KernelTable& table) noexcept {
  table.gemm_bf16 = MakeGemm<Bf16DotPanel>();
  table.gemm_bf16.input_row_bytes = &InputRowBytes;
  table.gemm_bf16.prepare_input = &PrepareInput;
  table.gemm_int4 = whole::MakeGemm<Int4Weights<QuadDot<false, Bf16Sums>>>();
  table.sparse_bf16 = sparse::MakeSparse<sparse::PanelForm<Bf16DotPanel>, RegisterExpander<2>>(
      table.gemm_bf16, 0.25F);
  table.sparse_int8 = sparse::MakeSparseInt8<QuadDot<false, NoSums>, RegisterExpander<1>>(0.25F);
  table.attend_bf16 = &Attend<Bf16DotPage>;
  table.attend_int8 = &AttendInt8<Bf16DotPage, LookUpWidener>;
}

}  // namespace slimformer::kernels
