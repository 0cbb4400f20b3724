// The amx tier: matrix products and attention by tile registers, which multiply 16 times as many
// pairs of bfloat16 in a cycle as two FMAs do float32, and 32 times as many bytes. Panels, pages
// and prepared rows are those of the tiers below, whose kernels do a few rows.
//
// int4 weights take the sums of their activations in float32: where there are tiles, dot products
// of bfloat16 do half of what FMAs do.
#include "kernels/avx512/vector-inl.h"
// The bodies below are written in terms of Vector.
#include "kernels/amx/attend-inl.h"
#include "kernels/amx/gemm_bf16-inl.h"
#include "kernels/amx/gemm_whole-inl.h"
#include "kernels/amx/sparse_bf16-inl.h"
#include "kernels/avx512_bf16/bf16_page-inl.h"
#include "kernels/avx512_bf16/widen-inl.h"
#include "kernels/avx512_vnni/quad_dot-inl.h"
#include "kernels/int4-inl.h"
#include "kernels/int8-inl.h"
#include "kernels/overlay.h"

namespace slimformer::kernels {

template <>
void Overlay<Tier::amx>(KernelTable& table) noexcept {
  table.gemm_bf16 = MakeBf16Gemm();
  table.gemm_bf16.tile_rows = amx::kMostRows;
  table.gemm_bf16.multiply = &amx::MultiplyBf16;
  table.gemm_int8 = amx::MakeWholeGemm<Int8Weights<QuadDot<true, NoSums>>>();
  table.gemm_int4 = amx::MakeWholeGemm<Int4Weights<QuadDot<false, FloatSums>>>();
  table.sparse_bf16 = amx::MakeSparseBf16(table.gemm_bf16, 0.25F);
  table.sparse_int8.dense = amx::MakeWholeGemm<Int8Weights<QuadDot<false, NoSums>>>();
  table.attend_bf16 = &Attend<Bf16DotPage, amx::Tiles>;
  table.attend_int8 = &AttendInt8<Bf16DotPage, LookUpWidener, amx::Tiles>;
}

}  // namespace slimformer::kernels
