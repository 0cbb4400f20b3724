// One KV page of attention: scores, online softmax, weighted values. To be included after the
// tier's vector-inl.h.
//
// Both products are outer-product tiles: a row of the page (16 keys of one dimension, or the values
// of one position) is loaded once and multiplied by one broadcast value per query, so nothing
// is ever summed across lanes. Scores: kRows queries by 16 positions, 12 accumulators for 6
// queries at 8 lanes. Values: 6 queries by 2 vectors, or 3 (the query heads of one KV head in
// decode) by 4. A tile reads positions from the first to the last that any of its queries sees;
// a position that a query does not see has the weight 0 there.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/exp-inl.h"
#include "kernels/kernel_table.h"

namespace slimformer::kernels {
namespace {

constexpr std::size_t kKeyVectors = kKeyLanes / Vector::kLanes;
constexpr std::size_t kAttendRows = 6;

// A vector of a page, widened; the partial form reads n < kLanes values and nothing beyond.
inline Vector::F LoadPage(const float* p) noexcept { return Vector::Load(p); }
inline Vector::F LoadPage(const std::uint16_t* p) noexcept { return Vector::LoadBf16(p); }
inline Vector::F LoadPage(const float* p, std::size_t n) noexcept { return Vector::Load(p, n); }
inline Vector::F LoadPage(const std::uint16_t* p, std::size_t n) noexcept {
  std::uint16_t copy[Vector::kLanes] = {};
  for (std::size_t i = 0; i < n; ++i) copy[i] = p[i];
  return Vector::LoadBf16(copy);
}

// scores [kRows, 16] (rows kPagePositions apart) = q [kRows, head_dim] keys [head_dim, 16].
template <class Value, std::size_t kRows>
inline void Scores(const float* q, std::size_t q_stride, const Value* keys, std::size_t head_dim,
                   float* scores) noexcept {
  Vector::F sums[kRows][kKeyVectors];
#pragma GCC unroll 8
  for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (std::size_t v = 0; v < kKeyVectors; ++v) sums[r][v] = Vector::Zero();
  }
  for (std::size_t d = 0; d < head_dim; ++d) {
    Vector::F key[kKeyVectors];
#pragma GCC unroll 2
    for (std::size_t v = 0; v < kKeyVectors; ++v) {
      key[v] = LoadPage(keys + d * kKeyLanes + v * Vector::kLanes);
    }
#pragma GCC unroll 8
    for (std::size_t r = 0; r < kRows; ++r) {
      const Vector::F value = Vector::Set(q[r * q_stride + d]);
#pragma GCC unroll 2
      for (std::size_t v = 0; v < kKeyVectors; ++v) {
        sums[r][v] = Vector::MulAdd(value, key[v], sums[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (std::size_t v = 0; v < kKeyVectors; ++v) {
      Vector::Store(scores + r * kPagePositions + v * Vector::kLanes, sums[r][v]);
    }
  }
}

// out [kRows, kVectors * kLanes] = factor[r] out + weights [kRows, positions] values.
// With kPart only the first `part` < kLanes columns exist and kVectors is 1.
template <class Value, std::size_t kRows, std::size_t kVectors, bool kPart>
inline void WeightedValues(const float* weights, const Value* values, std::size_t positions,
                           std::size_t value_dim, std::size_t part, const float* factor, float* out,
                           std::size_t out_stride) noexcept {
  Vector::F sums[kRows][kVectors];
#pragma GCC unroll 8
  for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (std::size_t v = 0; v < kVectors; ++v) sums[r][v] = Vector::Zero();
  }
  for (std::size_t position = 0; position < positions; ++position) {
    const Value* row = values + position * value_dim;
    Vector::F value[kVectors];
#pragma GCC unroll 8
    for (std::size_t v = 0; v < kVectors; ++v) {
      value[v] = kPart ? LoadPage(row, part) : LoadPage(row + v * Vector::kLanes);
    }
#pragma GCC unroll 8
    for (std::size_t r = 0; r < kRows; ++r) {
      const Vector::F weight = Vector::Set(weights[r * kPagePositions + position]);
#pragma GCC unroll 8
      for (std::size_t v = 0; v < kVectors; ++v) {
        sums[r][v] = Vector::MulAdd(weight, value[v], sums[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (std::size_t v = 0; v < kVectors; ++v) {
      float* to = out + r * out_stride + v * Vector::kLanes;
      if constexpr (kPart) {
        const Vector::F before = Vector::Load(to, part);
        Vector::Store(to, part, Vector::MulAdd(before, Vector::Set(factor[r]), sums[r][v]));
      } else {
        Vector::Store(to, Vector::MulAdd(Vector::Load(to), Vector::Set(factor[r]), sums[r][v]));
      }
    }
  }
}

// Turns the scores of positions [begin, end) of one row into weights exp(score - max), those of the
// other positions in [first, last) into 0, and updates max and sum. Returns what the sums so far
// are to be multiplied by. `first` is a multiple of kLanes.
inline float Softmax(float* scores, std::int32_t first, std::int32_t last, std::int32_t begin,
                     std::int32_t end, float* max, float* sum) noexcept {
  const auto lanes = static_cast<std::int32_t>(Vector::kLanes);
  const float lowest = -__builtin_inff();
  if (begin >= end) {
    for (std::int32_t at = first; at < last; at += lanes) {
      Vector::Store(scores + at, Vector::Zero());
    }
    return 1.0F;
  }
  Vector::F highest = Vector::Set(*max);
  for (std::int32_t at = first; at < last; at += lanes) {
    const Vector::F score =
        Vector::Select(Vector::Load(scores + at), Vector::Set(lowest), begin - at, end - at);
    highest = Vector::Max(score, highest);
    Vector::Store(scores + at, score);
  }
  const float new_max = Vector::MaxLanes(highest);
  Vector::F total = Vector::Zero();
  for (std::int32_t at = first; at < last; at += lanes) {
    const Vector::F weight = Exp(Vector::Sub(Vector::Load(scores + at), Vector::Set(new_max)));
    total = Vector::Add(total, weight);
    Vector::Store(scores + at, weight);
  }
  const float factor = Vector::FirstLane(Exp(Vector::Set(*max - new_max)));
  *sum = *sum * factor + Vector::SumLanes(total);
  *max = new_max;
  return factor;
}

template <class Value>
struct Page {
  const Value* keys;    // [kPagePositions / 16, head_dim, 16]
  const Value* values;  // [kPagePositions, value_dim]
  std::size_t head_dim;
  std::size_t value_dim;
};

template <class Value, std::size_t kRows>
inline void AttendRows(const Page<Value>& page, const float* q, std::size_t q_stride,
                       const std::int32_t* begin, const std::int32_t* end, float* max, float* sum,
                       float* out, std::size_t out_stride, float* scores) noexcept {
  auto first = static_cast<std::int32_t>(kPagePositions);
  std::int32_t last = 0;
  for (std::size_t r = 0; r < kRows; ++r) {
    if (begin[r] >= end[r]) continue;
    if (begin[r] < first) first = begin[r];
    if (end[r] > last) last = end[r];
  }
  if (first >= last) return;

  constexpr auto kLanes = static_cast<std::int32_t>(kKeyLanes);
  const std::int32_t first_group = first / kLanes * kLanes;
  const std::int32_t last_group = (last + kLanes - 1) / kLanes * kLanes;
  for (std::int32_t group = first_group; group < last_group; group += kLanes) {
    const auto at = static_cast<std::size_t>(group);
    Scores<Value, kRows>(q, q_stride, page.keys + at * page.head_dim, page.head_dim, scores + at);
  }
  float factor[kRows];
  for (std::size_t r = 0; r < kRows; ++r) {
    factor[r] = Softmax(scores + r * kPagePositions, first_group, last_group, begin[r], end[r],
                        max + r, sum + r);
  }

  constexpr std::size_t kVectors = kRows <= 3 ? 4 : 2;
  constexpr std::size_t kColumns = kVectors * Vector::kLanes;
  const auto skip = static_cast<std::size_t>(first);
  const std::size_t positions = static_cast<std::size_t>(last) - skip;
  const float* weights = scores + skip;
  const Value* values = page.values + skip * page.value_dim;
  std::size_t column = 0;
  for (; column + kColumns <= page.value_dim; column += kColumns) {
    WeightedValues<Value, kRows, kVectors, false>(
        weights, values + column, positions, page.value_dim, 0, factor, out + column, out_stride);
  }
  for (; column + Vector::kLanes <= page.value_dim; column += Vector::kLanes) {
    WeightedValues<Value, kRows, 1, false>(weights, values + column, positions, page.value_dim, 0,
                                           factor, out + column, out_stride);
  }
  if (column < page.value_dim) {
    WeightedValues<Value, kRows, 1, true>(weights, values + column, positions, page.value_dim,
                                          page.value_dim - column, factor, out + column,
                                          out_stride);
  }
}

template <class Value, std::size_t kRows, class... Arguments>
inline void AttendHeight(std::size_t height, const Arguments&... arguments) noexcept {
  if (height == kRows) {
    AttendRows<Value, kRows>(arguments...);
  } else if constexpr (kRows > 1) {
    AttendHeight<Value, kRows - 1>(height, arguments...);
  }
}

template <class Value>
void Attend(const float* q, std::size_t q_stride, std::size_t rows, const void* keys,
            const void* values, std::size_t head_dim, std::size_t value_dim,
            const std::int32_t* begin, const std::int32_t* end, float* max, float* sum, float* out,
            std::size_t out_stride, float* scratch) noexcept {
  const Page<Value> page{static_cast<const Value*>(keys), static_cast<const Value*>(values),
                         head_dim, value_dim};
  for (std::size_t r = 0; r < rows;) {
    const std::size_t height = rows - r < kAttendRows ? rows - r : kAttendRows;
    AttendHeight<Value, kAttendRows>(height, page, q + r * q_stride, q_stride, begin + r, end + r,
                                     max + r, sum + r, out + r * out_stride, out_stride,
                                     scratch + r * kPagePositions);
    r += height;
  }
}

}  // namespace
}  // namespace slimformer::kernels
