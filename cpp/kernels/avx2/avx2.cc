// The avx2 tier: eight float32 lanes, FMA. It replaces every kernel of the scalar tier.
#include "kernels/avx2/vector-inl.h"
// The bodies below are written in terms of Vector.
#include "kernels/activation-inl.h"
#include "kernels/attend-inl.h"
#include "kernels/elementwise-inl.h"
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
void Overlay<Tier::avx2>(KernelTable& table) noexcept {
  table.gemm_f32 = MakeGemm<F32Panel>();
  table.gemm_bf16 = MakeGemm<Bf16Panel>();
  table.gemm_int8 = whole::MakeGemm<Int8Weights<PairDot<true, NoSums>>>();
  table.gemm_int4 = whole::MakeGemm<Int4Weights<PairDot<false, FloatSums>>>();
  table.sparse_bf16 =
      sparse::MakeSparse<sparse::PanelForm<Bf16Panel>, TableExpander<2, 32>>(table.gemm_bf16, 0.4F);
  table.sparse_int8 =
      sparse::MakeSparseInt8<PairDot<false, NoSums>, TableExpander<1, 16>>(kNeverFaster);
  table.attend_f32 = &Attend<F32Page>;
  table.attend_bf16 = &Attend<Bf16Page>;
  table.attend_int8 = &AttendInt8<Bf16Page, VectorWidener>;
  table.rms_norm = &RmsNorm;
  table.layer_norm = &LayerNorm;
  table.rope = &Rope;
  table.silu = &Activate<Silu>;
  table.gelu_tanh = &Activate<GeluTanh>;
  table.gelu = &Activate<Gelu>;
  table.relu = &Activate<Relu>;
  table.add = &Add;
  table.multiply = &MultiplyElements;
  table.scale = &Scale;
  table.soft_cap = &SoftCap;
  table.log_sum_exp = &LogSumExp;
  table.to_bf16 = &ToBf16;
  table.to_int8 = &ToInt8;
  table.from_bf16 = &FromBf16;
  table.probe_fma = &ProbeFma;
  table.probe_read = &ProbeRead;
}

}  // namespace slimformer::kernels
