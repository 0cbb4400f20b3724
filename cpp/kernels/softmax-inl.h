// The online softmax of attention over the positions of one page. To be included after the tier's
// vector-inl.h; what a Page is says attend-inl.h.
//
// Sum and rescaling, and at times a new maximum, cost a row dozens of cycles a page whatever the
// page holds; its products cost 128 positions * 128 multiply-adds / 16 lanes = 1024. That is why
// pages are not shorter.
#pragma once

#include <cstdint>

#include "kernels/exp-inl.h"
#include "kernels/tanh-inl.h"

namespace slimformer::kernels {
namespace {

// The highest of `highest` and the scores of positions [first, last), lane by lane.
inline Vector::F Highest(const float* scores, std::int32_t first, std::int32_t last,
                         Vector::F highest) noexcept {
  const auto lanes = static_cast<std::int32_t>(Vector::kLanes);
  for (std::int32_t at = first; at < last; at += lanes) {
    highest = Vector::Max(Vector::Load(scores + at), highest);
  }
  return highest;
}

// The same of scores that it first scales if the page is scaled, caps where soft_cap is above 0,
// and makes -inf outside of [begin, end).
template <class Page>
inline Vector::F AdjustScores(float* scores, const float* key_scales, float soft_cap,
                              std::int32_t first, std::int32_t last, std::int32_t begin,
                              std::int32_t end, Vector::F highest) noexcept {
  const auto lanes = static_cast<std::int32_t>(Vector::kLanes);
  for (std::int32_t at = first; at < last; at += lanes) {
    Vector::F score = Vector::Load(scores + at);
    if constexpr (Page::kScaled) score = Vector::Mul(score, Vector::Load(key_scales + at));
    if (soft_cap > 0.0F) {
      score = CapSoftly(score, Vector::Set(soft_cap), Vector::Set(1.0F / soft_cap));
    }
    if (at < begin || at + lanes > end) {
      score = Vector::Select(score, Vector::Set(-__builtin_inff()), begin - at, end - at);
    }
    Vector::Store(scores + at, score);
    highest = Vector::Max(score, highest);
  }
  return highest;
}

// Turns the scores of positions [begin, end) of one row into weights exp(score - max), those of the
// other positions in [first, last) into 0, and updates max and sum; then it multiplies weights by
// the scales of values. Returns what the sums so far are to be multiplied by. `first` and `last`
// are multiples of kLanes; weights may be scores.
template <class Page>
inline float Softmax(float* scores, const float* key_scales, const float* value_scales,
                     float soft_cap, std::int32_t first, std::int32_t last, std::int32_t begin,
                     std::int32_t end, float* max, float* sum,
                     typename Page::Multiplier* weights) noexcept {
  const auto lanes = static_cast<std::int32_t>(Vector::kLanes);
  if (begin >= end) {
    for (std::int32_t at = first; at < last; at += lanes) {
      Page::Store(weights + at, Vector::Zero());
    }
    return 1.0F;
  }
  const bool adjust = Page::kScaled || soft_cap > 0.0F || first < begin || end < last;
  const Vector::F old_max = Vector::Set(*max);
  const Vector::F highest =
      adjust ? AdjustScores<Page>(scores, key_scales, soft_cap, first, last, begin, end, old_max)
             : Highest(scores, first, last, old_max);
  // Later pages seldom hold a new maximum: the weights then need not wait for it.
  float factor = 1.0F;
  if (Vector::AnyAbove(highest, old_max)) {
    const float new_max = Vector::MaxLanes(highest);
    factor = Vector::FirstLane(Exp(Vector::Set(*max - new_max)));
    *max = new_max;
  }
  const Vector::F row_max = Vector::Set(*max);
  Vector::F total = Vector::Zero();
  for (std::int32_t at = first; at < last; at += lanes) {
    Vector::F weight = Page::Weight(Vector::Load(scores + at), row_max);
    total = Vector::Add(total, weight);
    if constexpr (Page::kScaled) weight = Vector::Mul(weight, Vector::Load(value_scales + at));
    Page::Store(weights + at, weight);
  }
  *sum = *sum * factor + Vector::SumLanes(total);
  return factor;
}

}  // namespace
}  // namespace slimformer::kernels
