// The amx tier: matrix products and attention by tiles.
#include "kernels/avx512/vector-inl.h"
#include "kernels/avx512_bf16/expand-inl.h"
#include "kernels/avx512_bf16/widen-inl.h"
#include "kernels/avx512_vnni/quad_dot-inl.h"
// The bodies below are written in terms of Vector.
#include "kernels/attend-inl.h"
#include "kernels/avx512_bf16/bf16_page-inl.h"
#include "kernels/gemm-inl.h"
#include "kernels/avx512_bf16/bf16_panel-inl.h"
#include "kernels/amx/attend-inl.h"
#include "kernels/amx/gemm_bf16-inl.h"
#include "kernels/int4-inl.h"
#include "kernels/int8-inl.h"
#include "kernels/amx/gemm_whole-inl.h"
#include "kernels/sparse_gemm-inl.h"
#include "kernels/amx/sparse_bf16-inl.h"
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
  table.attend_bf16 = &Attend<Bf16DotPage, amx::Tiles>;
  table.attend_int8 = &AttendInt8<Bf16DotPage, LookUpWidener, amx::Tiles>;
}

}  // namespace slimformer::kernels
