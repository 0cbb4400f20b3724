// The avx512_vnni tier: matrix products of int8 and int4 weights by dot products of bytes.
#include "kernels/avx512/vector-inl.h"
// The bodies below are written in terms of Vector.
#include "kernels/avx512_vnni/quad_dot-inl.h"
#include "kernels/expand_table-inl.h"
#include "kernels/gemm-whole-inl.h"
#include "kernels/int4-inl.h"
#include "kernels/int8-inl.h"
#include "kernels/overlay.h"
#include "kernels/sparse_whole-inl.h"

namespace slimformer::kernels {

template <>
void Overlay<Tier::avx512_vnni>(KernelTable& table) noexcept {
  table.gemm_int8 = whole::MakeGemm<Int8Weights<QuadDot<true, NoSums>>>();
  table.gemm_int4 = whole::MakeGemm<Int4Weights<QuadDot<false, FloatSums>>>();
  table.sparse_int8 =
      sparse::MakeSparseInt8<QuadDot<false, NoSums>, TableExpander<1, 64>>(kNeverFaster);
}

}  // namespace slimformer::kernels
