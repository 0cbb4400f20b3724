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
#include "ops/linear_input.h"
#include "ops/rope.h"

namespace slimformer::model {

// Called between steps of long work; may throw to stop it.
using Poll = std::function<void()>;

// Consecutive tokens of one sequence.
struct Piece {
  KvCache* cache;
  std::size_t rows;
  std::size_t position;  // of the first row
  std::size_t length;    // positions that the sequence, or its window, may come to
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
  // How queries and keys of the rows are rotated, or queries that look at the sinks of a window.
  ops::Rotation MakeRotation(const RotarySpec& rotary, bool to_sinks) const;

  // Each reads `input` [rows, n_channels], which may be hidden, and adds to hidden.
  void Run(const Step& step, float* hidden) const;
  void Run(const AttentionStep& step, const float* input, float* hidden) const;
  void Run(const FfnStep& step, const float* input, float* hidden) const;
  void Run(const RoutedFfnStep& step, const float* input, float* hidden) const;
  void Run(const LinkStep& step, const float* input, float* hidden) const;

  // Normalises queries or keys x [rows, heads, head_dim] in place.
  void NormaliseHeads(const AttentionStep& step, const NormWeights& norm,
                      const std::vector<float>& mask, std::size_t heads, int divisor,
                      float* x) const;

  // The pieces as attention sees them, with room in their caches for the step's keys and values.
  std::vector<ops::AttentionSequence> Sequences(const AttentionStep& step) const;

  // What queries or keys of a step are rotated by, if anything.
  static const ops::Rotation* RotationOf(const AttentionStep& step,
                                         const std::vector<ops::Rotation>& rotations);

  // Normalises and rotates k [rows, n_kv_heads, head_dim] and writes it, and v [rows, n_kv_heads,
  // value_dim], into the caches.
  void Store(const AttentionStep& step, std::span<const ops::AttentionSequence> sequences, float* k,
             const float* v) const;

  // What a sub-block works on, [rows, n_channels], as each of the kernels reads it: its input,
  // normalised where it has a norm. The tap at `site` sees it.
  void NormInputs(std::size_t layer, Site site, const float* input, const NormWeights& norm,
                  std::span<const kernels::GemmKernel* const> kernels,
                  ops::LinearInput* inputs) const;
  // The same in float32.
  const float* Norm(std::size_t layer, Site site, const float* input,
                    const NormWeights& norm) const;
  void Normalise(const float* x, const NormWeights& norm, float* y) const;

  // Room for what is observed at a site, [rows, width]; null where nobody looks.
  float* Observed(std::size_t layer, Site site, std::size_t width) const;

  // hidden += output [rows, n_channels], of which one or the other is normalised where the place
  // says so. The output is spent.
  void AddNormalised(const NormWeights& post_norm, NormPlace place, float* output,
                     float* hidden) const;

  // hidden += w x, of which one or the other is normalised where the place says so.
  void AddOutput(const LinearWeights& w, const NormWeights& post_norm, NormPlace place,
                 const ops::LinearInput& x, float* hidden) const;
  void Observe(std::size_t layer, Site site, const float* x, std::size_t width) const;

  ops::Context context_;
  const Plan& plan_;
  const ModelSpec& spec_;
  std::span<const Piece> pieces_;
  const Taps& taps_;
  std::size_t first_row_;
  std::size_t rows_ = 0;
  std::size_t n_channels_;
  float* entry_ = nullptr;  // [rows, n_channels], what entered a layer, if one is parallel
  // One for each of the plan's rotaries; the second, for queries that look at sinks, empty while no
  // window has moved.
  std::vector<ops::Rotation> rotations_;
  std::vector<ops::Rotation> sink_rotations_;
};

}  // namespace slimformer::model
