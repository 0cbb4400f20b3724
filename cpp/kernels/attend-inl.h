// One KV page of attention: scores, online softmax, weighted values. To be included after the
// tier's vector-inl.h.
//
// Both products are outer-product tiles: two vectors of the page (32 or 16 keys of one step of
// dimensions, or the values of one step of positions) are loaded once and multiplied by one
// broadcast multiplier per query, so nothing is ever summed across lanes. A tile has the shape of
// the matrix products' (gemm-inl.h): 6 queries by 2 vectors at 8 lanes, 12 by 2 at 16. Up to 3
// queries (the query heads of one KV head in decode) take 4 vectors of values instead.
//
// A tile reads positions from the first to the last that any of its queries sees; a position that a
// query does not see has the weight 0 there. Its own sums are those of a lower tile, bit for
// bit: each is one chain over dimensions or positions. The scores of a tile of 12 queries are
// 6 KiB, and a page of 64 wide bfloat16 keys or values 16 KiB: both in turn stay in the L1 cache.
//
// Few queries use a page up faster than memory delivers the next. So all but the highest tiles
// fetch as they go, a line for each that they read: the values while they read the keys, the keys
// of the next page while they read the values. All at once the fetches would fill the buffers for
// misses, and computing would wait for them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/exp-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/softmax-inl.h"

namespace slimformer::kernels {
namespace {

// Pages say how a step is stored, loaded and multiplied: it holds kPerStep values that are summed
// over, in kParts vectors that take one multiply-add each.

struct F32Page {
  static constexpr bool kScaled = false;
  using Value = float;
  using Multiplier = float;  // a query's value or a softmax weight
  using W = Vector::F;
  static constexpr std::size_t kPerStep = 1;
  static constexpr std::size_t kParts = 1;

  template <std::size_t kPart>
  static W Load(const float* step) noexcept {
    return Vector::Load(step);
  }
  static Vector::F Broadcast(const float* x) noexcept { return Vector::Set(*x); }
  static Vector::F MulAdd(Vector::F x, W w, Vector::F sum) noexcept {
    return Vector::MulAdd(x, w, sum);
  }
  // exp(score - max)
  static Vector::F Weight(Vector::F score, Vector::F max) noexcept {
    return Exp(Vector::Sub(score, max));
  }
  static void Store(float* to, Vector::F x) noexcept { Vector::Store(to, x); }
};

// Pairs of bfloat16, widened.
struct Bf16Page : F32Page {
  using Value = std::uint16_t;
  static constexpr std::size_t kPerStep = 2;
  static constexpr std::size_t kParts = 2;

  template <std::size_t kPart>
  static W Load(const std::uint16_t* step) noexcept {
    Vector::F parts[2];
    Vector::LoadBf16Pairs(step, parts[0], parts[1]);
    return parts[kPart];
  }
};

// Pages that were widened from int8. Whole numbers of 8 bits are exact in bfloat16; the scales of
// their positions multiply scores and softmax weights, of which there are fewer than keys and
// values have elements.
template <class Page>
struct ScaledPage : Page {
  static constexpr bool kScaled = true;
};

constexpr std::size_t kAttendRows = Vector::kLanes == 8 ? 6 : 12;
constexpr std::size_t kKeyVectors = 2;
constexpr std::size_t kKeysAtOnce = kKeyVectors * Vector::kLanes;

// sums [kRows, kVectors] += one part of a step: its vectors by the multipliers of each row.
template <class Page, std::size_t kPart, std::size_t kRows, std::size_t kVectors>
inline void AddPart(const typename Page::Multiplier* x, std::size_t x_stride,
                    const typename Page::Value* const (&step)[kVectors],
                    Vector::F (&sums)[kRows][kVectors]) noexcept {
  typename Page::W w[kVectors];
#pragma GCC unroll 8
  for (std::size_t v = 0; v < kVectors; ++v) w[v] = Page::template Load<kPart>(step[v]);
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kRows; ++r) {
    const auto multiplier = Page::Broadcast(x + r * x_stride + kPart);
#pragma GCC unroll 8
    for (std::size_t v = 0; v < kVectors; ++v) {
      sums[r][v] = Page::MulAdd(multiplier, w[v], sums[r][v]);
    }
  }
}

constexpr std::size_t kLine = 64;

// Sums over `steps` steps; vector v of a step is at from[v], the next step step_values further.
// All but the highest tiles fetch lines from `ahead` on.
template <class Page, std::size_t kRows, std::size_t kVectors>
inline void Accumulate(const typename Page::Multiplier* x, std::size_t x_stride, std::size_t steps,
                       const typename Page::Value* const (&from)[kVectors], std::size_t step_values,
                       const std::byte* ahead, Vector::F (&sums)[kRows][kVectors]) noexcept {
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (std::size_t v = 0; v < kVectors; ++v) sums[r][v] = Vector::Zero();
  }
  for (std::size_t i = 0; i < steps; ++i) {
    const typename Page::Value* step[kVectors];
#pragma GCC unroll 8
    for (std::size_t v = 0; v < kVectors; ++v) step[v] = from[v] + i * step_values;
    if constexpr (kRows < kAttendRows) {
#pragma GCC unroll 8
      for (std::size_t v = 0; v < kVectors; ++v) {
        Vector::Prefetch(ahead + (i * kVectors + v) * kLine);
      }
    }
    AddPart<Page, 0>(x, x_stride, step, sums);
    if constexpr (Page::kParts == 2) AddPart<Page, 1>(x, x_stride, step, sums);
    x += Page::kPerStep;
  }
}

// scores [kRows, kKeysAtOnce] (rows kPagePositions apart) = q [kRows, steps] keys.
template <class Page, std::size_t kRows>
inline void Scores(const typename Page::Multiplier* q, const typename Page::Value* keys,
                   std::size_t steps, const std::byte* ahead, float* scores) noexcept {
  constexpr std::size_t kStepValues = kKeyLanes * Page::kPerStep;
  const std::size_t second =
      Vector::kLanes < kKeyLanes ? Vector::kLanes * Page::kPerStep : steps * kStepValues;
  const typename Page::Value* const from[kKeyVectors] = {keys, keys + second};
  Vector::F sums[kRows][kKeyVectors];
  Accumulate<Page>(q, steps * Page::kPerStep, steps, from, kStepValues, ahead, sums);
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (std::size_t v = 0; v < kKeyVectors; ++v) {
      Vector::Store(scores + r * kPagePositions + v * Vector::kLanes, sums[r][v]);
    }
  }
}

// out [kRows, kVectors * kLanes] = factor[r] out + weights [kRows, steps] values, whose steps are
// value_dim columns long.
template <class Page, std::size_t kRows, std::size_t kVectors>
inline void WeightedValues(const typename Page::Multiplier* weights,
                           const typename Page::Value* values, std::size_t steps,
                           std::size_t value_dim, const float* factor, const std::byte* ahead,
                           float* out, std::size_t out_stride) noexcept {
  const typename Page::Value* from[kVectors];
#pragma GCC unroll 8
  for (std::size_t v = 0; v < kVectors; ++v) from[v] = values + v * Vector::kLanes * Page::kPerStep;
  Vector::F sums[kRows][kVectors];
  Accumulate<Page>(weights, kPagePositions, steps, from, value_dim * Page::kPerStep, ahead, sums);
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (std::size_t v = 0; v < kVectors; ++v) {
      float* to = out + r * out_stride + v * Vector::kLanes;
      Vector::Store(to, Vector::MulAdd(Vector::Load(to), Vector::Set(factor[r]), sums[r][v]));
    }
  }
}

// The same for the last columns, fewer than a vector: one row after another, through copies.
template <class Page>
inline void LastValues(const typename Page::Multiplier* weights, const typename Page::Value* values,
                       std::size_t steps, std::size_t value_dim, std::size_t columns, float factor,
                       float* out) noexcept {
  Vector::F sum = Vector::Zero();
  for (std::size_t i = 0; i < steps; ++i) {
    typename Page::Value copy[Vector::kLanes * Page::kPerStep] = {};
    const typename Page::Value* row = values + i * value_dim * Page::kPerStep;
    for (std::size_t j = 0; j < columns * Page::kPerStep; ++j) copy[j] = row[j];
    const typename Page::Value* const step[1] = {copy};
    Vector::F sums[1][1] = {{sum}};
    AddPart<Page, 0>(weights + i * Page::kPerStep, 0, step, sums);
    if constexpr (Page::kParts == 2) AddPart<Page, 1>(weights + i * Page::kPerStep, 0, step, sums);
    sum = sums[0][0];
  }
  const Vector::F before = Vector::Load(out, columns);
  Vector::Store(out, columns, Vector::MulAdd(before, Vector::Set(factor), sum));
}

// What one call of Attend works on; rows are taken off the front.
template <class Page>
struct Attention {
  const float* q;
  std::size_t q_stride;
  const typename Page::Value* keys;
  const typename Page::Value* values;
  const float* key_scales;
  const float* value_scales;
  const std::byte* next_keys;
  std::size_t head_dim;
  std::size_t value_dim;
  const std::int32_t* begin;
  const std::int32_t* end;
  float soft_cap;
  float* max;
  float* sum;
  float* out;
  std::size_t out_stride;
  // Of as many rows as the highest tile has:
  typename Page::Multiplier* multipliers;  // [rows, steps * kPerStep], the queries
  float* scores;                           // [rows, kPagePositions]
  typename Page::Multiplier* weights;      // [rows, kPagePositions], which may be the scores
};

template <class Page>
inline std::size_t KeySteps(const Attention<Page>& a) noexcept {
  return (a.head_dim + Page::kPerStep - 1) / Page::kPerStep;
}

// The queries as multipliers, with zeros up to `padded`, less than two vectors behind head_dim.
template <class Page>
inline void CopyQueries(const Attention<Page>& a, std::size_t rows, std::size_t padded) noexcept {
  for (std::size_t r = 0; r < rows; ++r) {
    const float* from = a.q + r * a.q_stride;
    typename Page::Multiplier* to = a.multipliers + r * padded;
    std::size_t d = 0;
    for (; d + Vector::kLanes <= a.head_dim; d += Vector::kLanes) {
      Page::Store(to + d, Vector::Load(from + d));
    }
    if (d == padded) continue;
    typename Page::Multiplier rest[3 * Vector::kLanes] = {};
    Page::Store(rest, Vector::Load(from + d, a.head_dim - d));
    for (std::size_t i = d; i < padded; ++i) to[i] = rest[i - d];
  }
}

// The positions [first, last) of the page that any of `rows` rows sees; none if first >= last.
struct Seen {
  std::int32_t first;
  std::int32_t last;
};
template <class Page>
inline Seen SeenBy(const Attention<Page>& a, std::size_t rows) noexcept {
  Seen seen{static_cast<std::int32_t>(kPagePositions), 0};
  for (std::size_t r = 0; r < rows; ++r) {
    if (a.begin[r] >= a.end[r]) continue;
    if (a.begin[r] < seen.first) seen.first = a.begin[r];
    if (a.end[r] > seen.last) seen.last = a.end[r];
  }
  return seen;
}

template <class Page, std::size_t kRows>
inline void AttendRows(const Attention<Page>& a) noexcept {
  const auto [first, last] = SeenBy(a, kRows);
  if (first >= last) return;

  const std::size_t key_steps = KeySteps(a);
  CopyQueries(a, kRows, key_steps * Page::kPerStep);
  constexpr auto kAtOnce = static_cast<std::int32_t>(kKeysAtOnce);
  const std::int32_t first_group = first / kAtOnce * kAtOnce;
  const std::int32_t last_group = (last + kAtOnce - 1) / kAtOnce * kAtOnce;
  for (std::int32_t group = first_group; group < last_group; group += kAtOnce) {
    const auto at = static_cast<std::size_t>(group);
    const std::size_t lines = at / kKeysAtOnce * key_steps * kKeyVectors;
    Scores<Page, kRows>(a.multipliers, a.keys + at * key_steps * Page::kPerStep, key_steps,
                        reinterpret_cast<const std::byte*>(a.values) + lines * kLine,
                        a.scores + at);
  }
  float factor[kRows];
  for (std::size_t r = 0; r < kRows; ++r) {
    factor[r] = Softmax<Page>(a.scores + r * kPagePositions, a.key_scales, a.value_scales,
                              a.soft_cap, first_group, last_group, a.begin[r], a.end[r], a.max + r,
                              a.sum + r, a.weights + r * kPagePositions);
  }

  constexpr std::size_t kVectors = kRows <= 3 ? 4 : 2;
  constexpr std::size_t kColumns = kVectors * Vector::kLanes;
  const std::size_t skip = static_cast<std::size_t>(first) / Page::kPerStep;
  const std::size_t steps =
      (static_cast<std::size_t>(last) + Page::kPerStep - 1) / Page::kPerStep - skip;
  const typename Page::Multiplier* weights = a.weights + skip * Page::kPerStep;
  const typename Page::Value* values = a.values + skip * Page::kPerStep * a.value_dim;
  std::size_t column = 0;
  for (; column + kColumns <= a.value_dim; column += kColumns) {
    const std::size_t lines = column / Vector::kLanes * steps;
    WeightedValues<Page, kRows, kVectors>(weights, values + column * Page::kPerStep, steps,
                                          a.value_dim, factor, a.next_keys + lines * kLine,
                                          a.out + column, a.out_stride);
  }
  for (; column + Vector::kLanes <= a.value_dim; column += Vector::kLanes) {
    const std::size_t lines = column / Vector::kLanes * steps;
    WeightedValues<Page, kRows, 1>(weights, values + column * Page::kPerStep, steps, a.value_dim,
                                   factor, a.next_keys + lines * kLine, a.out + column,
                                   a.out_stride);
  }
  if (column == a.value_dim) return;
  for (std::size_t r = 0; r < kRows; ++r) {
    LastValues<Page>(weights + r * kPagePositions, values + column * Page::kPerStep, steps,
                     a.value_dim, a.value_dim - column, factor[r],
                     a.out + r * a.out_stride + column);
  }
}

// Register tiles of vectors.
template <class Page>
struct VectorTiles {
  static constexpr std::size_t kMostRows = kAttendRows;

  // The highest tile that fits into `rows` rows takes the first of them; returns its height.
  template <std::size_t kRows = kMostRows>
  static std::size_t AttendSome(const Attention<Page>& a, std::size_t rows) noexcept {
    if (rows >= kRows) {
      AttendRows<Page, kRows>(a);
      return kRows;
    }
    if constexpr (kRows > 4) return AttendSome<kRows == 12 ? 6 : 4>(a, rows);
    if constexpr (kRows > 1 && kRows <= 4) return AttendSome<kRows - 1>(a, rows);
    return 0;
  }
};

// Tiles say how many rows they take at once: see VectorTiles.
template <class Page, template <class> class Tiles = VectorTiles>
void Attend(const float* q, std::size_t q_stride, std::size_t rows, const KvPart& page,
            std::size_t head_dim, std::size_t value_dim, const std::int32_t* begin,
            const std::int32_t* end, float soft_cap, float* max, float* sum, float* out,
            std::size_t out_stride, float* scratch) noexcept {
  using Multiplier = typename Page::Multiplier;
  constexpr std::size_t kTallest = Tiles<Page>::kMostRows;
  float* scores = scratch;
  float* weights = scores;
  if constexpr (sizeof(Multiplier) < sizeof(float)) weights += kTallest * kPagePositions;
  Attention<Page> a{
      .q = q,
      .q_stride = q_stride,
      .keys = static_cast<const typename Page::Value*>(page.keys),
      .values = static_cast<const typename Page::Value*>(page.values),
      .key_scales = page.key_scales,
      .value_scales = page.value_scales,
      .next_keys = static_cast<const std::byte*>(page.next_keys),
      .head_dim = head_dim,
      .value_dim = value_dim,
      .begin = begin,
      .end = end,
      .soft_cap = soft_cap,
      .max = max,
      .sum = sum,
      .out = out,
      .out_stride = out_stride,
      .multipliers = reinterpret_cast<Multiplier*>(weights + kTallest * kPagePositions),
      .scores = scores,
      .weights = reinterpret_cast<Multiplier*>(weights)};
  while (rows > 0) {
    const std::size_t done = Tiles<Page>::AttendSome(a, rows);
    a.q += done * q_stride;
    a.begin += done;
    a.end += done;
    a.max += done;
    a.sum += done;
    a.out += done * out_stride;
    rows -= done;
  }
}

// What turns int8 into bfloat16, the vectors that a tier has at hand.
struct VectorWidener {
  static constexpr std::size_t kAtOnce = 2 * Vector::kLanes;
  static void Widen(const std::byte* from, std::uint16_t* to) noexcept {
    Vector::Int8ToBf16(from, to);
  }
};

// to [n] = from [n]; n is a multiple of kPagePositions, and so of what a widener takes at once. As
// many bytes are fetched from `ahead` on.
template <class Widener>
inline void WidenInt8(const void* from, std::size_t n, const void* ahead,
                      std::uint16_t* to) noexcept {
  static_assert(kPagePositions % Widener::kAtOnce == 0 && Widener::kAtOnce <= kLine);
  const auto* bytes = static_cast<const std::byte*>(from);
  const auto* next = static_cast<const std::byte*>(ahead);
  for (std::size_t i = 0; i < n; i += Widener::kAtOnce) {
    if (i % kLine == 0) Vector::Prefetch(next + i);
    Widener::Widen(bytes + i, to + i);
  }
}

// A page of int8, as pages of bfloat16 are read. Few rows then wait for some two instructions a
// vector of keys or values, which memory takes longer to deliver; for many it is nothing.
template <class Page, class Widener, template <class> class Tiles = VectorTiles>
void AttendInt8(const float* q, std::size_t q_stride, std::size_t rows, const KvPart& page,
                std::size_t head_dim, std::size_t value_dim, const std::int32_t* begin,
                const std::int32_t* end, float soft_cap, float* max, float* sum, float* out,
                std::size_t out_stride, float* scratch) noexcept {
  const std::size_t n_keys = kPagePositions * ((head_dim + 1) / 2 * 2);
  const std::size_t n_values = kPagePositions * value_dim;
  auto* keys = reinterpret_cast<std::uint16_t*>(scratch);
  std::uint16_t* values = keys + n_keys;
  WidenInt8<Widener>(page.keys, n_keys, page.values, keys);
  WidenInt8<Widener>(page.values, n_values, page.next_keys, values);
  const KvPart widened{keys, values, page.key_scales, page.value_scales, keys};
  Attend<ScaledPage<Page>, Tiles>(q, q_stride, rows, widened, head_dim, value_dim, begin, end,
                                  soft_cap, max, sum, out, out_stride,
                                  scratch + (n_keys + n_values) / 2);
}

}  // namespace
}  // namespace slimformer::kernels
