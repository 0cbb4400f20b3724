// What one tier of kernels offers: plain function pointers over raw memory.
//
// Kernels are leaves. They throw nothing, allocate nothing and know no model. Sizes are
// arbitrary (1, 7, 37, 1021 ...); padding lives inside packed panels only. Pointers need no
// alignment unless a comment says so. Every function gives the same bits however its rows
// are split between threads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace slimformer::kernels {

enum class Tier { scalar, avx2, avx512, avx512_vnni, avx512_bf16, amx };

// Columns [first, first + count) of rows that have `of`: from a multiple of a kernel's input_unit
// to another or to the end.
struct InputColumns {
  std::size_t first;
  std::size_t count;
  std::size_t of;
};

// One weight type's matrix product: kernel, packer and tile geometry are one unit, and a
// higher tier inherits the unit whole or replaces it whole.
//
// A weight matrix W [outputs, inputs] is cut into panels of `panel_width` outputs; the last
// panel is padded with zeros. `multiply` computes y = x W' for one panel.
struct GemmKernel {
  std::size_t panel_width;  // outputs in a panel
  std::size_t tile_rows;    // rows of x a register tile holds; row blocks should be multiples of it

  // Bytes of one packed panel over k inputs, a multiple of 64.
  std::size_t (*panel_bytes)(std::size_t k) noexcept;

  // Packs `outputs` <= panel_width rows of w (float32, `stride` floats apart, k long each) into
  // `panel` (64-byte aligned, panel_bytes(k) long), padding included.
  void (*pack_panel)(const float* w, std::size_t stride, std::size_t outputs, std::size_t k,
                     void* panel) noexcept;

  // Writes row `output` of a packed panel, widened to float32, to w [k].
  void (*unpack_row)(const void* panel, std::size_t output, std::size_t k, float* w) noexcept;

  // Bytes of a row of x once prepared, a multiple of 4; 0 where `multiply` reads float32 rows as
  // they are.
  std::size_t (*input_row_bytes)(std::size_t k) noexcept;

  // Columns of x that are prepared together: any multiple of it can be prepared before the rest.
  std::size_t input_unit;

  // Rewrites `columns` of x (float32, [rows, columns.count], rows `stride` floats apart) into the
  // form that `multiply` reads, in rows of input_row_bytes(columns.of) from `prepared` on, which is
  // aligned to 64. Null where float32 is that form.
  void (*prepare_input)(const float* x, std::size_t stride, std::size_t rows,
                        const InputColumns& columns, void* prepared) noexcept;

  // y[r, c] (+)= sum_k x[r, k] W[c, k] for r < rows and c < outputs <= panel_width.
  // x is float32 rows `x_stride` floats apart, or what prepare_input made (x_stride ignored).
  // A row's result does not depend on the rows computed beside it.
  void (*multiply)(const void* x, std::size_t x_stride, std::size_t rows, const void* panel,
                   std::size_t k, float* y, std::size_t y_stride, std::size_t outputs,
                   bool accumulate) noexcept;
};

// The sparse form of a weight type's matrix product: panels of `dense` from which the zeros were
// taken out. Both forms of the same weights give the same bits.
//
// A panel of `dense` is a row of groups, each a head (scales, or nothing) before items of one size;
// compressed it is
//   heads    [groups], as they are
//   masks    a bit an item in the panel's order, set where the item is not zero
//   values   the items that are not zero, in the same order
//
// least_zeros is what `bench/kernels.py --zeros` measured, with two threads, on the machine of
// bench/RESULTS.md: where a core has more memory bandwidth, more zeros are needed.
struct SparseKernel {
  GemmKernel dense;   // the panels that are compressed
  float least_zeros;  // the share of zeros from which one row is faster by a fifth, or kNeverFaster
  std::size_t most_rows;  // that `multiply` takes

  // Bytes of a panel of `dense` once compressed, a multiple of 64.
  std::size_t (*compressed_bytes)(const void* panel, std::size_t k) noexcept;

  // Bytes of a compressed panel of which `available` are there, by what its masks say; more than
  // `available` where they are not all there. For panels from a file, whose masks may say anything.
  std::size_t (*stored_bytes)(const void* compressed, std::size_t k,
                              std::size_t available) noexcept;

  // Compresses a panel, padding included.
  void (*compress)(const void* panel, std::size_t k, void* compressed) noexcept;

  // Makes dense.panel_bytes(k) bytes (64-byte aligned) of it again.
  void (*expand)(const void* compressed, std::size_t k, void* panel) noexcept;

  // dense.multiply of the panel, for up to most_rows rows: weights are expanded on their way to the
  // registers. For more rows expanding the panel first takes less time.
  void (*multiply)(const void* x, std::size_t x_stride, std::size_t rows, const void* compressed,
                   std::size_t k, float* y, std::size_t y_stride, std::size_t outputs,
                   bool accumulate) noexcept;
};

inline constexpr float kNeverFaster = __builtin_inff();

// Bytes behind a compressed panel that expand and multiply may read, whatever they hold.
inline constexpr std::size_t kSparseOverrun = 64;

// A KV page holds kPagePositions positions of some KV heads; of one head
//   keys    [kPagePositions / 16][head_dim / per_step][16][per_step]
//   values  [kPagePositions / per_step][value_dim][per_step]
// in float32 with per_step 1, or in bfloat16 or int8 with per_step 2: pairs that are summed over
// lie side by side, as dot products want them and as a shift and a mask widen them. An odd head_dim
// is rounded up, with zeros for what is not there; unused positions hold zeros too. int8 keys and
// values of a position have a scale each: what they stand for is scale * q, as to_int8 makes it.
inline constexpr std::size_t kPagePositions = 128;
inline constexpr std::size_t kKeyLanes = 16;

// One head's part of a page.
struct KvPart {
  const void* keys;
  const void* values;
  const float* key_scales;    // [kPagePositions], of int8
  const float* value_scales;  // [kPagePositions], of int8
  const void* next_keys;      // of the page that follows; fetched ahead, never read
};

// Floats that attention needs to work with: queries, scores and weights of a tile, and a page of
// bfloat16 made from int8.
constexpr std::size_t AttendScratch(std::size_t head_dim, std::size_t value_dim) noexcept {
  constexpr std::size_t kMostRows = 32;
  constexpr std::size_t kMostPadding = 31;
  return kMostRows * (head_dim + kMostPadding + 2 * kPagePositions) +
         kPagePositions * (head_dim + 1 + value_dim) / 2;
}

// Online softmax over one KV page (Milakov and Gimelshein 2018), for `rows` queries that read the
// same KV head. Row r sees the page's positions begin[r] <= p < end[r]; it may see none.
//   q       [rows, head_dim], rows q_stride floats apart, already scaled
//   max     [rows] running maximum of the scores, -inf before the first page
//   sum     [rows] running sum of exp(score - max), 0 before the first page
//   out     [rows, value_dim], rows out_stride floats apart, running weighted sum, 0 before
//   scratch [AttendScratch(head_dim, value_dim)]
// Scores s become soft_cap * tanh(s / soft_cap) where soft_cap is above 0.
// The caller divides out by sum after the last page.
using AttendPage = void (*)(const float* q, std::size_t q_stride, std::size_t rows,
                            const KvPart& page, std::size_t head_dim, std::size_t value_dim,
                            const std::int32_t* begin, const std::int32_t* end, float soft_cap,
                            float* max, float* sum, float* out, std::size_t out_stride,
                            float* scratch) noexcept;

enum class Activation { silu, gelu_tanh, gelu, relu };

// y = activation(x) * factors, or activation(x) where `factors` is null, [n]; y may be either.
using ActivationKernel = void (*)(const float* x, const float* factors, std::size_t n,
                                  float* y) noexcept;

struct KernelTable {
  Tier tier;

  GemmKernel gemm_f32;
  GemmKernel gemm_bf16;
  GemmKernel gemm_int8;  // see quantisation.h
  GemmKernel gemm_int4;

  SparseKernel sparse_bf16;
  SparseKernel sparse_int8;  // its groups are not rotated: that leaves no zeros

  AttendPage attend_f32;
  AttendPage attend_bf16;
  AttendPage attend_int8;

  // y = x / sqrt(sum(x^2) / divisor + eps) * weight, [n]; y may be x.
  void (*rms_norm)(const float* x, const float* weight, float eps, std::size_t divisor,
                   std::size_t n, float* y) noexcept;

  // y = (x - mean) / sqrt(variance + eps) * weight + bias, [n]; y may be x.
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps,
                     std::size_t n, float* y) noexcept;

  // Rotates pairs (x[j], x[j + pairs]) by the angle whose cosine and sine are given, [pairs].
  void (*rope)(float* x, const float* cosine, const float* sine, std::size_t pairs) noexcept;

  ActivationKernel silu;       // x / (1 + exp(-x))
  ActivationKernel gelu_tanh;  // x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
  ActivationKernel gelu;       // x / 2 (1 + erf(x / sqrt(2)))
  ActivationKernel relu;

  void (*add)(const float* x, std::size_t n, float* y) noexcept;                  // y += x
  void (*multiply)(const float* x, std::size_t n, float* y) noexcept;             // y *= x
  void (*scale)(float factor, const float* x, std::size_t n, float* y) noexcept;  // y = factor x
  void (*soft_cap)(float cap, std::size_t n, float* y) noexcept;  // y = cap tanh(y / cap), cap > 0
  float (*log_sum_exp)(const float* x, std::size_t n) noexcept;   // n >= 1
  void (*to_bf16)(const float* x, std::size_t n, std::uint16_t* y) noexcept;  // nearest even
  // y = x / scale rounded to whole numbers, -127 to 127, [n]; returns the scale, see
  // quantisation.h.
  float (*to_int8)(const float* x, std::size_t n, std::int8_t* y) noexcept;
  void (*from_bf16)(const std::uint16_t* x, std::size_t n, float* y) noexcept;

  // Probes of the machine's limits. sink [3] feeds and receives values, so that nothing can be
  // optimised away. The first returns the float32 operations it did, a multiply-add being two; the
  // second reads x [n] once, n a multiple of 128.
  std::size_t (*probe_fma)(std::size_t iterations, float* sink) noexcept;
  void (*probe_read)(const float* x, std::size_t n, float* sink) noexcept;
};

inline ActivationKernel KernelOf(const KernelTable& table, Activation activation) noexcept {
  switch (activation) {
    case Activation::silu:
      return table.silu;
    case Activation::gelu_tanh:
      return table.gelu_tanh;
    case Activation::gelu:
      return table.gelu;
    case Activation::relu:
      break;
  }
  return table.relu;
}

}  // namespace slimformer::kernels
