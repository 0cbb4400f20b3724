// The avx512 tier: sixteen float32 lanes.
//
// It replaces what is bound by arithmetic: the matrix products, attention, activations. CPUs with
// two 512-bit FMA pipes then issue twice the arithmetic; Zen 4, which runs a 512-bit operation as
// two 256-bit ones, has the same peak as with AVX2 and half the instructions to decode. What is
// bound by the caches (norms, conversions) stays the avx2 tier's.
#include "kernels/avx512/vector-inl.h"
// The bodies below are written in terms of Vector.
#include "kernels/activation-inl.h"
#include "kernels/attend-inl.h"
#include "kernels/expand_table-inl.h"
#include "kernels/gemm-inl.h"
#include "kernels/gemm-whole-inl.h"
#include "kernels/int4-inl.h"
#include "kernels/int8-inl.h"
#include "kernels/overlay.h"
#include "kernels/pair_dot-inl.h"
#include "kernels/probe-inl.h"
#include "kernels/sparse_gemm-inl.h"
#include "kernels/sparse_whole-inl.h"

namespace slimformer::kernels {

template <>
void Overlay<Tier::avx512>(KernelTable& table) noexcept {
  table.gemm_f32 = MakeGemm<F32Panel>();
  table.gemm_bf16 = MakeGemm<Bf16Panel>();
  table.gemm_int8 = whole::MakeGemm<Int8Weights<PairDot<true, NoSums>>>();
  table.gemm_int4 = whole::MakeGemm<Int4Weights<PairDot<false, FloatSums>>>();
  table.sparse_bf16 =
      sparse::MakeSparse<sparse::PanelForm<Bf16Panel>, TableExpander<2, 64>>(table.gemm_bf16, 0.3F);
  table.sparse_int8 =
      sparse::MakeSparseInt8<PairDot<false, NoSums>, TableExpander<1, 32>>(kNeverFaster);
  table.attend_f32 = &Attend<F32Page>;
  table.attend_bf16 = &Attend<Bf16Page>;
  table.attend_int8 = &AttendInt8<Bf16Page, VectorWidener>;
  table.silu = &Activate<Silu>;
  table.gelu_tanh = &Activate<GeluTanh>;
  table.gelu = &Activate<Gelu>;
  table.relu = &Activate<Relu>;
  table.probe_fma = &ProbeFma;
  table.probe_read = &ProbeRead;
}

}  // namespace slimformer::kernels
