// The avx512_bf16 tier: matrix products of bfloat16 weights with VDPBF16PS, which multiplies pairs
// and adds both products to a float32 lane: twice the multiply-adds of an FMA per instruction and,
// on Zen 4, twice the peak. Intel's CPUs do one every other cycle, half the peak, and have tiles.
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
#include "kernels/avx512_bf16/bf16_page-inl.h"
#include "kernels/avx512_bf16/bf16_panel-inl.h"
#include "kernels/gemm-inl.h"
#include "kernels/gemm-whole-inl.h"
#include "kernels/int4-inl.h"
#include "kernels/int8-inl.h"
#include "kernels/overlay.h"
#include "kernels/sparse_gemm-inl.h"
#include "kernels/sparse_whole-inl.h"

namespace slimformer::kernels {

template <>
void Overlay<Tier::avx512_bf16>(KernelTable& table) noexcept {
  table.gemm_bf16 = MakeBf16Gemm();
  table.gemm_int4 = whole::MakeGemm<Int4Weights<QuadDot<false, Bf16Sums>>>();
  table.sparse_bf16 = sparse::MakeSparse<sparse::PanelForm<Bf16DotPanel>, RegisterExpander<2>>(
      table.gemm_bf16, 0.25F);
  table.sparse_int8 = sparse::MakeSparseInt8<QuadDot<false, NoSums>, RegisterExpander<1>>(0.25F);
  table.attend_bf16 = &Attend<Bf16DotPage>;
  table.attend_int8 = &AttendInt8<Bf16DotPage, LookUpWidener>;
}

}  // namespace slimformer::kernels
