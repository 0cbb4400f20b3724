// The layers of a Transformer, over the rows of a ragged batch.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include "model/kv_cache.h"
#include "model/plan.h"
#include "model/taps.h"
#include "ops/context.h"
#include "ops/rope.h"

namespace slimformer::model {

// Called between steps of long work; may throw to stop it.
using Poll = std::function<void()>;

// Consecutive tokens of one sequence.
struct Piece {
  KvCache* cache;
  std::size_t rows;
  std::size_t position;  // of the first row
};

// Runs layers over all rows of some pieces, one after another, at once. Lives no longer than the
// frame of the workspace it was made in.
class LayerPass {
 public:
  // `first_row` is what taps are told the first row to be.
  LayerPass(const ops::Context& context, const Plan& plan, std::span<const Piece> pieces,
            const Taps& taps, std::size_t first_row);

  // Runs layers [first, last) of the plan on hidden [rows, n_channels], in place.
  void Run(std::size_t first, std::size_t last, float* hidden, const Poll& poll) const;

  // Runs the plan's steps [first, last) on hidden, untapped.
  void RunSteps(std::size_t first, std::size_t last, float* hidden, const Poll& poll) const;

  // What a step leaves in the caches, and nothing else: hidden stays as it is.
  void StoreKeysAndValues(const AttentionStep& step, const float* hidden) const;

 private:
  void Run(const Step& step, float* hidden) const;
  void Run(const AttentionStep& step, float* hidden) const;
  void Run(const FfnStep& step, float* hidden) const;
  void Run(const LinkStep& step, float* hidden) const;

  // The pieces as attention sees them, with room in their caches for the step's keys and values.
  std::vector<ops::AttentionSequence> Sequences(const AttentionStep& step) const;

  // Rotates k [rows, n_kv_heads, head_dim] and writes it, and v [rows, n_kv_heads, value_dim],
  // into the caches.
  void Store(const AttentionStep& step, std::span<const ops::AttentionSequence> sequences, float* k,
             const float* v) const;

  float* Norm(const float* hidden, const Vector& weight) const;  // [rows, n_channels]
  void Observe(std::size_t layer, Site site, const float* x, std::size_t width) const;

  ops::Context context_;
  const Plan& plan_;
  const ModelSpec& spec_;
  std::span<const Piece> pieces_;
  const Taps& taps_;
  std::size_t first_row_;
  std::size_t rows_ = 0;
  std::size_t n_channels_;
  std::vector<ops::Rotation> rotations_;  // one for each of the plan's rotaries
};

}  // namespace slimformer::model
