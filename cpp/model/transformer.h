// A model that runs: ragged batches of sequences in, logits or log-probabilities out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "model/chunks.h"
#include "model/layer_pass.h"
#include "model/plan.h"
#include "model/session.h"
#include "model/taps.h"
#include "model/weights.h"
#include "tensor/workspace.h"

namespace slimformer::model {

// New tokens of one session.
struct SequenceTokens {
  Session* session;
  std::span<const std::int32_t> tokens;
};

enum class LogitsRows { none, last, all };

// Several threads may call one Transformer at once, each with sessions of its own. If a call
// fails, or `poll` throws, no session has moved. A batch of any length takes scratch memory for
// some hundred rows only.
class Transformer {
 public:
  Transformer(std::shared_ptr<const Weights> weights, std::shared_ptr<ThreadPool> pool);

  const std::shared_ptr<const Weights>& weights() const { return weights_; }
  const std::shared_ptr<ThreadPool>& pool() const { return pool_; }
  const std::shared_ptr<const Plan>& whole_plan() const { return whole_plan_; }  // nothing masked

  // Feeds a batch. logits [sequences, vocab_size] of each sequence's last token, or
  // [all tokens, vocab_size], or null for none.
  void Forward(std::span<const SequenceTokens> batch, LogitsRows rows, float* logits,
               const Poll& poll) const;

  // Feeds a batch; scores [all tokens], each the natural logarithm of the probability that the
  // model gave to the token that follows; 0 at the end of a sequence.
  void Score(std::span<const SequenceTokens> batch, float* scores, const Poll& poll) const;

  // hidden [tokens, n_channels], what enters the first layer. Each length is a sequence that begins
  // at position 0.
  void Embed(std::span<const std::int32_t> tokens, std::span<const std::size_t> lengths,
             float* hidden) const;

  // Runs layers [first, last) of the plan on hidden [sum of lengths, n_channels], in place. Each
  // length is a sequence that begins at position 0.
  void RunLayers(const Plan& plan, std::span<const std::size_t> lengths, std::size_t first,
                 std::size_t last, const Taps& taps, float* hidden, const Poll& poll) const;

  // logits [rows, vocab_size] of hidden [rows, n_channels], what left the last layer.
  void Logits(const float* hidden, std::size_t rows, float* logits, const Poll& poll) const;

  // scores [rows]: log-probability of targets [rows]. A negative target is not scored but 0.
  void ScoreHidden(const float* hidden, std::span<const std::int32_t> targets, float* scores,
                   const Poll& poll) const;

  // Error(token) for an id outside the vocabulary.
  void CheckTokens(std::span<const std::int32_t> tokens) const;

 private:
  // Called with hidden [rows, n_channels], what left the last layer of the rows that are wanted,
  // in their order; the first of them is the `first`-th that is wanted of the batch.
  using Sink = std::function<void(const ops::Context& context, const float* hidden,
                                  std::size_t first, std::size_t rows)>;

  // One caller's scratch memory, kept for the next.
  class WorkspaceLease {
   public:
    explicit WorkspaceLease(const Transformer& owner);
    ~WorkspaceLease();
    WorkspaceLease(const WorkspaceLease&) = delete;
    WorkspaceLease& operator=(const WorkspaceLease&) = delete;
    ops::Context context() const { return {owner_.weights_->kernels, *owner_.pool_, *workspace_}; }

   private:
    const Transformer& owner_;
    std::unique_ptr<tensor::Workspace> workspace_;
  };

  // hidden [tokens, n_channels] of tokens from `position` on.
  void EmbedAt(const ops::Context& context, std::span<const std::int32_t> tokens,
               std::size_t position, float* hidden) const;
  void CheckCausal() const;  // Error(data) for an encoder
  void CheckBatch(std::span<const SequenceTokens> batch) const;
  void Feed(const ops::Context& context, std::span<const SequenceTokens> batch, LogitsRows wanted,
            const Sink& sink, const Poll& poll) const;
  void FeedChunk(const ops::Context& context, std::span<const SequenceTokens> batch,
                 const Chunk& chunk, LogitsRows wanted, std::size_t first_wanted, const Sink& sink,
                 const Poll& poll) const;
  void Head(const ops::Context& context, const float* hidden, std::size_t rows, float* logits,
            const Poll& poll) const;
  void ScoreRows(const ops::Context& context, const float* hidden,
                 std::span<const std::int32_t> targets, float* scores, const Poll& poll) const;

  std::shared_ptr<const Weights> weights_;
  std::shared_ptr<ThreadPool> pool_;
  std::shared_ptr<const Plan> whole_plan_;
  std::size_t n_channels_;
  std::size_t vocab_size_;

  mutable std::mutex workspaces_mutex_;
  mutable std::vector<std::unique_ptr<tensor::Workspace>> workspaces_;  // not in use
};

}  // namespace slimformer::model
