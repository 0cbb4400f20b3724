#include "model/transformer.h"

#include <algorithm>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "base/error.h"
#include "model/chunks.h"
#include "model/normalise.h"
#include "ops/activation.h"
#include "ops/embedding.h"
#include "ops/linear.h"

namespace slimformer::model {
namespace {

using Frame = tensor::Workspace::Frame;

// Logits that are looked at and dropped again are made for some rows at a time: enough that
// reading the head's weights is little work next to using them, in at most 32 MiB.
constexpr std::size_t kMostHeadRows = 128;
constexpr std::size_t kHeadValues = std::size_t{8} << 20;

std::size_t HeadRows(std::size_t vocab_size) {
  return std::clamp<std::size_t>(kHeadValues / vocab_size, 1, kMostHeadRows);
}

std::vector<std::size_t> Lengths(std::span<const SequenceTokens> batch) {
  std::vector<std::size_t> lengths;
  for (const SequenceTokens& sequence : batch) lengths.push_back(sequence.tokens.size());
  return lengths;
}

void CheckCapacity(const Session& session, std::size_t tokens) {
  const auto position = static_cast<std::size_t>(session.position());
  const auto capacity = static_cast<std::size_t>(session.capacity());
  if (tokens > capacity - position) {
    throw Error(ErrorKind::context_length, "the session holds " + std::to_string(position) +
                                               " of at most " + std::to_string(capacity) +
                                               " positions: " + std::to_string(tokens) +
                                               " more tokens do not fit");
  }
}

}  // namespace

Transformer::Transformer(std::shared_ptr<const Weights> weights, std::shared_ptr<ThreadPool> pool)
    : weights_(std::move(weights)),
      pool_(std::move(pool)),
      whole_plan_(std::make_shared<Plan>(weights_, Mask{})),
      n_channels_(static_cast<std::size_t>(weights_->spec.n_channels)),
      vocab_size_(static_cast<std::size_t>(weights_->spec.vocab_size)) {}

Transformer::WorkspaceLease::WorkspaceLease(const Transformer& owner) : owner_(owner) {
  const std::lock_guard lock(owner_.workspaces_mutex_);
  if (owner_.workspaces_.empty()) {
    workspace_ = std::make_unique<tensor::Workspace>();
  } else {
    workspace_ = std::move(owner_.workspaces_.back());
    owner_.workspaces_.pop_back();
  }
}

Transformer::WorkspaceLease::~WorkspaceLease() {
  const std::lock_guard lock(owner_.workspaces_mutex_);
  owner_.workspaces_.push_back(std::move(workspace_));
}

void Transformer::CheckTokens(std::span<const std::int32_t> tokens) const {
  for (const std::int32_t token : tokens) {
    if (token < 0 || static_cast<std::size_t>(token) >= vocab_size_) {
      throw Error(ErrorKind::token, "token id " + std::to_string(token) +
                                        " is outside the vocabulary of " +
                                        std::to_string(vocab_size_));
    }
  }
}

void Transformer::CheckCausal() const {
  if (weights_->spec.causal) return;
  throw Error(ErrorKind::data,
              "this model encodes whole texts and predicts no tokens; encode them");
}

void Transformer::CheckBatch(std::span<const SequenceTokens> batch) const {
  CheckCausal();
  if (batch.empty()) throw Error(ErrorKind::data, "a batch needs at least one session");
  std::set<const Session*> seen;
  const Session& first = *batch.front().session;
  for (const SequenceTokens& sequence : batch) {
    const Session& session = *sequence.session;
    if (&session.plan().weights() != weights_.get()) {
      throw Error(ErrorKind::data, "a session belongs to another model");
    }
    if (!seen.insert(&session).second) {
      throw Error(ErrorKind::data, "a session appears twice in one batch");
    }
    if (!session.plan().Equals(first.plan()) || session.kv_type() != first.kv_type()) {
      throw Error(ErrorKind::data, "the sessions of a batch must have the same mask and KV type");
    }
    if (sequence.tokens.empty()) throw Error(ErrorKind::data, "a sequence has no tokens");
    CheckTokens(sequence.tokens);
  }
}

void Transformer::Feed(const ops::Context& context, std::span<const SequenceTokens> batch,
                       LogitsRows wanted, const Sink& sink, const Poll& poll) const {
  CheckBatch(batch);
  std::deque<Session::Hold> holds;
  for (const SequenceTokens& sequence : batch) holds.emplace_back(*sequence.session);
  for (const SequenceTokens& sequence : batch) {
    CheckCapacity(*sequence.session, sequence.tokens.size());
  }
  try {
    std::size_t reached = 0;  // rows that the sink has seen
    const auto count = [&](const ops::Context& c, const float* hidden, std::size_t first,
                           std::size_t rows) {
      sink(c, hidden, first, rows);
      reached += rows;
    };
    for (const Chunk& chunk : CutIntoChunks(Lengths(batch), false)) {
      FeedChunk(context, batch, chunk, wanted, reached, count, poll);
    }
  } catch (...) {
    for (const SequenceTokens& sequence : batch) {
      Session& session = *sequence.session;
      session.cache().Truncate(static_cast<std::size_t>(session.position()));
    }
    throw;
  }
  for (const SequenceTokens& sequence : batch) {
    sequence.session->Advance(static_cast<int>(sequence.tokens.size()));
  }
}

// What the last attention step and those behind it make of a row nobody reads but who wants the
// row: the others leave it when their keys and values are stored.
void Transformer::FeedChunk(const ops::Context& context, std::span<const SequenceTokens> batch,
                            const Chunk& chunk, LogitsRows wanted, std::size_t first_wanted,
                            const Sink& sink, const Poll& poll) const {
  const Frame frame(context.workspace);
  const Plan& plan = batch.front().session->plan();
  auto* hidden = context.workspace.Take<float>(chunk.rows * n_channels_);
  std::vector<Piece> pieces;
  std::vector<Piece> last_pieces;       // the last tokens of sequences that end here, if wanted
  std::vector<const float*> last_rows;  // where they are
  float* next = hidden;
  for (const ChunkPart& part : chunk.parts) {
    const SequenceTokens& sequence = batch[part.sequence];
    EmbedAt(context, sequence.tokens.subspan(part.offset, part.rows),
            static_cast<std::size_t>(sequence.session->position()) + part.offset, next);
    next += part.rows * n_channels_;
    KvCache* cache = &sequence.session->cache();
    const auto position = static_cast<std::size_t>(sequence.session->position()) + part.offset;
    const std::optional<ops::KvWindow>& window = cache->window();
    const auto capacity = static_cast<std::size_t>(sequence.session->capacity());
    const std::size_t length = window ? std::min(capacity, window->Length()) : capacity;
    pieces.push_back({cache, part.rows, position, length});
    if (wanted == LogitsRows::last && part.offset + part.rows == sequence.tokens.size()) {
      last_pieces.push_back({cache, 1, position + part.rows - 1, length});
      last_rows.push_back(next - n_channels_);
    }
  }
  const Taps no_taps;
  const LayerPass pass(context, plan, pieces, no_taps, chunk.first_row);
  if (wanted == LogitsRows::all || last_rows.size() == chunk.rows) {
    pass.RunSteps(0, plan.steps().size(), hidden, poll);
    sink(context, hidden, first_wanted, chunk.rows);
    return;
  }
  const std::size_t split = plan.last_attention();
  pass.RunSteps(0, split, hidden, poll);
  if (split < plan.steps().size()) {
    if (const auto* attention = std::get_if<AttentionStep>(&plan.steps()[split])) {
      pass.StoreKeysAndValues(*attention, hidden);
    }
  }
  if (last_rows.empty()) return;
  auto* last_hidden = context.workspace.Take<float>(last_rows.size() * n_channels_);
  for (std::size_t i = 0; i < last_rows.size(); ++i) {
    std::copy_n(last_rows[i], n_channels_, last_hidden + i * n_channels_);
  }
  LayerPass(context, plan, last_pieces, no_taps, 0)
      .RunSteps(split, plan.steps().size(), last_hidden, poll);
  sink(context, last_hidden, first_wanted, last_rows.size());
}

void Transformer::Forward(std::span<const SequenceTokens> batch, LogitsRows rows, float* logits,
                          const Poll& poll) const {
  const WorkspaceLease lease(*this);
  const ops::Context context = lease.context();
  if (rows == LogitsRows::last) {
    const Frame frame(context.workspace);
    auto* last_hidden = context.workspace.Take<float>(batch.size() * n_channels_);
    const auto keep = [&](const ops::Context&, const float* hidden, std::size_t first,
                          std::size_t n) {
      std::copy_n(hidden, n * n_channels_, last_hidden + first * n_channels_);
      if (first + n == batch.size()) Head(context, last_hidden, batch.size(), logits, poll);
    };
    Feed(context, batch, rows, keep, poll);
    return;
  }
  const auto head = [&](const ops::Context&, const float* hidden, std::size_t first,
                        std::size_t n) {
    Head(context, hidden, n, logits + first * vocab_size_, poll);
  };
  Feed(context, batch, rows, head, poll);
}

void Transformer::Score(std::span<const SequenceTokens> batch, float* scores,
                        const Poll& poll) const {
  const WorkspaceLease lease(*this);
  std::vector<std::int32_t> targets;  // [all tokens]
  for (const SequenceTokens& sequence : batch) {
    if (sequence.tokens.empty()) continue;  // refused below
    targets.insert(targets.end(), sequence.tokens.begin() + 1, sequence.tokens.end());
    targets.push_back(-1);
  }
  const auto score = [&](const ops::Context& context, const float* hidden, std::size_t first_row,
                         std::size_t n) {
    ScoreRows(context, hidden, std::span(targets).subspan(first_row, n), scores + first_row, poll);
  };
  Feed(lease.context(), batch, LogitsRows::all, score, poll);
}

void Transformer::Embed(std::span<const std::int32_t> tokens, std::span<const std::size_t> lengths,
                        float* hidden) const {
  CheckTokens(tokens);
  const WorkspaceLease lease(*this);
  for (const std::size_t length : lengths) {
    EmbedAt(lease.context(), tokens.first(length), 0, hidden);
    tokens = tokens.subspan(length);
    hidden += length * n_channels_;
  }
}

void Transformer::EmbedAt(const ops::Context& context, std::span<const std::int32_t> tokens,
                          std::size_t position, float* hidden) const {
  const ModelSpec& spec = weights_->spec;
  ops::Embed(context, *weights_->embedding, tokens, hidden);
  if (spec.embedding_scale != 1.0F) {
    ops::Scale(context, spec.embedding_scale, tokens.size(), n_channels_, hidden);
  }
  if (spec.learned_positions) {
    const std::size_t row = position + static_cast<std::size_t>(spec.position_offset);
    ops::Add(context, weights_->positions.data() + row * n_channels_, tokens.size(), n_channels_,
             hidden);
  }
  if (spec.token_types > 0) {
    for (std::size_t r = 0; r < tokens.size(); ++r) {
      context.kernels.add(weights_->token_types.data(), n_channels_, hidden + r * n_channels_);
    }
  }
  if (spec.embedding_norm) {
    NormaliseRows(context, spec, weights_->embedding_norm, hidden, tokens.size(), hidden);
  }
}

void Transformer::RunLayers(const Plan& plan, std::span<const std::size_t> lengths,
                            std::size_t first, std::size_t last, const Taps& taps, float* hidden,
                            const Poll& poll) const {
  const WorkspaceLease lease(*this);
  const ops::Context context = lease.context();
  std::map<std::size_t, KvCache> caches;  // of the sequences that the chunk at hand touches
  const bool whole = !weights_->spec.causal;
  for (const Chunk& chunk : CutIntoChunks(lengths, whole)) {
    const Frame frame(context.workspace);
    caches.erase(caches.begin(), caches.lower_bound(chunk.parts.front().sequence));
    std::vector<Piece> pieces;
    for (const ChunkPart& part : chunk.parts) {
      auto place = caches.find(part.sequence);
      if (place == caches.end()) {
        constexpr auto kType = ops::KvType::f32;
        KvCache made = whole ? KvCache::OfOnePass(plan, kType) : KvCache(plan, kType);
        place = caches.emplace(part.sequence, std::move(made)).first;
      }
      pieces.push_back({&place->second, part.rows, part.offset, lengths[part.sequence]});
    }
    LayerPass(context, plan, pieces, taps, chunk.first_row)
        .Run(first, last, hidden + chunk.first_row * n_channels_, poll);
  }
}

void Transformer::Logits(const float* hidden, std::size_t rows, float* logits,
                         const Poll& poll) const {
  const WorkspaceLease lease(*this);
  Head(lease.context(), hidden, rows, logits, poll);
}

void Transformer::ScoreHidden(const float* hidden, std::span<const std::int32_t> targets,
                              float* scores, const Poll& poll) const {
  const WorkspaceLease lease(*this);
  ScoreRows(lease.context(), hidden, targets, scores, poll);
}

void Transformer::Head(const ops::Context& context, const float* hidden, std::size_t rows,
                       float* logits, const Poll& poll) const {
  CheckCausal();
  const ModelSpec& spec = weights_->spec;
  for (std::size_t first = 0; first < rows; first += kMostHeadRows) {
    poll();
    const Frame frame(context.workspace);
    const std::size_t n = std::min(kMostHeadRows, rows - first);
    auto* x = context.workspace.Take<float>(n * n_channels_);  // [n, n_channels]
    const float* from = hidden + first * n_channels_;
    if (spec.final_norm) {
      NormaliseRows(context, spec, weights_->final_norm, from, n, x);
    } else {
      std::copy_n(from, n * n_channels_, x);
    }
    float* to = logits + first * vocab_size_;
    ops::Linear(context.pool, context.workspace, weights_->head(), x, n_channels_, n, to,
                vocab_size_);
    if (spec.logit_soft_cap) ops::SoftCap(context, *spec.logit_soft_cap, n, vocab_size_, to);
  }
}

void Transformer::ScoreRows(const ops::Context& context, const float* hidden,
                            std::span<const std::int32_t> targets, float* scores,
                            const Poll& poll) const {
  const std::size_t head_rows = HeadRows(vocab_size_);
  const Frame frame(context.workspace);
  auto* logits = context.workspace.Take<float>(head_rows * vocab_size_);  // [head_rows, vocab_size]
  for (std::size_t first = 0; first < targets.size(); first += head_rows) {
    const std::size_t n = std::min(head_rows, targets.size() - first);
    Head(context, hidden + first * n_channels_, n, logits, poll);
    context.pool.ParallelFor(n, [&](std::size_t r, int) {
      const std::int32_t target = targets[first + r];
      const float* row = logits + r * vocab_size_;
      scores[first + r] =
          target < 0 ? 0.0F : row[target] - context.kernels.log_sum_exp(row, vocab_size_);
    });
  }
}

}  // namespace slimformer::model
