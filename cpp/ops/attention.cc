#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace slimformer::ops {
namespace {

using kernels::kPagePositions;

// Query rows that pass over a page together: whole tiles of 32, 12 or 6 for the usual numbers of
// heads on a KV head. With heads 64 wide a page of bfloat16 keys and one of values take 32 KiB, the
// queries and the outputs 24 KiB each: together well inside a 512 KiB L2.
constexpr std::size_t kBlockRows = 96;

// A few rows on a long context leave too few blocks to share between threads: their pages are cut
// into ranges of this many, whose results are merged. 512 positions: merging is then noise.
constexpr std::size_t kPagesPerRange = 512 / kPagePositions;

std::size_t CeilDiv(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

// The running softmax of a block's rows.
struct Softmax {
  float* max;  // [rows]
  float* sum;  // [rows]
  float* out;  // [rows, value_dim]
};

// Some rows of one sequence, all query heads of one group, one range of pages. Row p * heads + h is
// the h-th head of the group at the p-th position.
struct Block {
  const AttentionSequence* sequence;
  const HeadGroup* group;
  std::size_t kv_slot;
  std::size_t first;  // of the sequence's rows
  std::size_t positions;
  std::size_t page_begin;
  std::size_t page_end;
  bool sees_sinks;     // whether it is the range that also sees the sinks
  std::size_t ranges;  // ranges that this block's pages were cut into
  Softmax partial;     // where the result waits to be merged if ranges > 1

  std::size_t rows() const { return positions * group->heads.size(); }
};

// What the rows of a sequence see: windows of the layer and of the sequence, whichever is narrower.
class Sight {
 public:
  Sight(const ScoreRule& rule, const AttentionSequence& sequence)
      : causal_(rule.causal),
        end_(sequence.position + sequence.rows),
        window_(NarrowerWindow(rule.window, sequence.window)) {}

  // The first position that the row at `position` sees, sinks left aside once they lie apart.
  std::size_t First(std::size_t position) const {
    if (!window_ || position < window_->Length()) return 0;
    return position + 1 - window_->positions;
  }

  // One past the last position that the row at `position` sees.
  std::size_t End(std::size_t position) const { return causal_ ? position + 1 : end_; }

  // How many sinks that lie apart the row at `position` sees.
  std::size_t Sinks(std::size_t position) const { return First(position) > 0 ? window_->sinks : 0; }

 private:
  bool causal_;
  std::size_t end_;
  std::optional<KvWindow> window_;
};

// Costly blocks, at the end of a sequence, come first, so that threads finish together.
std::vector<Block> CutIntoBlocks(const Context& context, const KvLayout& layout,
                                 std::span<const HeadGroup> groups, const ScoreRule& rule,
                                 std::span<const AttentionSequence> sequences) {
  std::vector<Block> blocks;
  for (const AttentionSequence& sequence : sequences) {
    const Sight sight(rule, sequence);
    for (std::size_t slot = 0; slot < groups.size(); ++slot) {
      const HeadGroup& group = groups[slot];
      const std::size_t step = std::max<std::size_t>(1, kBlockRows / group.heads.size());
      const std::size_t count = CeilDiv(sequence.rows, step);
      for (std::size_t b = count; b-- > 0;) {
        const std::size_t first = b * step;
        const std::size_t positions = std::min(step, sequence.rows - first);
        const std::size_t last = sequence.position + first + positions - 1;
        const std::size_t end = CeilDiv(sight.End(last), kPagePositions);
        const std::size_t begin = sight.First(sequence.position + first) / kPagePositions;
        const std::size_t ranges = count == 1 ? CeilDiv(end - begin, kPagesPerRange) : 1;
        const std::size_t range_pages = ranges == 1 ? end - begin : kPagesPerRange;
        for (std::size_t i = 0; i < ranges; ++i) {
          Block block{&sequence,
                      &group,
                      slot,
                      first,
                      positions,
                      begin + i * range_pages,
                      std::min(end, begin + (i + 1) * range_pages),
                      i == 0,
                      ranges,
                      {}};
          if (ranges > 1) {
            block.partial = {context.workspace.Take<float>(block.rows()),
                             context.workspace.Take<float>(block.rows()),
                             context.workspace.Take<float>(block.rows() * layout.value_dim)};
          }
          blocks.push_back(block);
        }
      }
    }
  }
  return blocks;
}

// What one thread needs to work on a block.
struct Scratch {
  float* q;             // [rows, head_dim]
  float* kernel;        // [AttendScratch(head_dim)]
  std::int32_t* begin;  // [rows]
  std::int32_t* end;    // [rows]
  Softmax softmax;
};

Scratch TakeScratch(const Context& context, const KvLayout& layout, std::size_t rows) {
  tensor::Workspace& workspace = context.workspace;
  return {workspace.Take<float>(rows * layout.head_dim),
          workspace.Take<float>(kernels::AttendScratch(layout.head_dim, layout.value_dim)),
          workspace.Take<std::int32_t>(rows),
          workspace.Take<std::int32_t>(rows),
          {workspace.Take<float>(rows), workspace.Take<float>(rows),
           workspace.Take<float>(rows * layout.value_dim)}};
}

void GatherQueries(const Context& context, const KvLayout& layout, const Block& block, float scale,
                   const Queries& q, const Rotation* rotation, float* gathered) {
  for (std::size_t p = 0; p < block.positions; ++p) {
    const std::size_t row = block.sequence->first_row + block.first + p;
    for (const std::size_t head : block.group->heads) {
      context.kernels.scale(scale, q.values + row * q.stride + head * layout.head_dim,
                            layout.head_dim, gathered);
      if (rotation != nullptr) RotateHead(context.kernels, *rotation, row, gathered);
      gathered += layout.head_dim;
    }
  }
}

kernels::AttendPage KernelFor(const Context& context, KvType type) {
  switch (type) {
    case KvType::f32:
      return context.kernels.attend_f32;
    case KvType::bf16:
      return context.kernels.attend_bf16;
    case KvType::int8:
      break;
  }
  return context.kernels.attend_int8;
}

// Lets the queries in scratch.q, all rows of the block, see positions seen(position) = {begin, end}
// of pages [page_begin, page_end).
template <class Seen>
void AttendPages(const Context& context, const KvLayout& layout, const ScoreRule& rule,
                 const Block& block, const Scratch& scratch, const Softmax& softmax,
                 std::size_t page_begin, std::size_t page_end, Seen seen) {
  const kernels::AttendPage attend = KernelFor(context, layout.type);
  const std::size_t rows = block.rows();
  const std::size_t heads = block.group->heads.size();
  const auto within = [](std::size_t position, std::size_t page) {
    const std::size_t before = std::min(position, page * kPagePositions);
    return static_cast<std::int32_t>(std::min(kPagePositions, position - before));
  };
  for (std::size_t page = page_begin; page < page_end; ++page) {
    std::int32_t* begin = scratch.begin;
    std::int32_t* end = scratch.end;
    for (std::size_t p = 0; p < block.positions; ++p) {
      const auto [first, last] = seen(block.sequence->position + block.first + p);
      begin = std::fill_n(begin, heads, within(first, page));
      end = std::fill_n(end, heads, within(last, page));
    }
    const std::byte* data = block.sequence->pages[page];
    const std::byte* next = page + 1 < page_end ? block.sequence->pages[page + 1] : data;
    attend(scratch.q, layout.head_dim, rows, layout.PartOf(data, next, block.kv_slot),
           layout.head_dim, layout.value_dim, scratch.begin, scratch.end,
           rule.soft_cap.value_or(0.0F), softmax.max, softmax.sum, softmax.out, layout.value_dim,
           scratch.kernel);
  }
}

void AttendBlock(const Context& context, const KvLayout& layout, const ScoreRule& rule,
                 const Queries& q, const Block& block, const Scratch& scratch,
                 const Softmax& softmax) {
  const std::size_t rows = block.rows();
  std::fill_n(softmax.max, rows, -std::numeric_limits<float>::infinity());
  std::fill_n(softmax.sum, rows, 0.0F);
  std::fill_n(softmax.out, rows * layout.value_dim, 0.0F);
  const Sight sight(rule, *block.sequence);
  const std::size_t last = block.sequence->position + block.first + block.positions - 1;
  if (block.sees_sinks && sight.Sinks(last) > 0) {
    GatherQueries(context, layout, block, rule.scale, q, q.sink_rotation, scratch.q);
    const auto sinks = [&](std::size_t position) {
      return std::pair(std::size_t{0}, sight.Sinks(position));
    };
    AttendPages(context, layout, rule, block, scratch, softmax, 0,
                CeilDiv(sight.Sinks(last), kPagePositions), sinks);
  }
  GatherQueries(context, layout, block, rule.scale, q, q.rotation, scratch.q);
  const auto seen = [&](std::size_t position) {
    return std::pair(sight.First(position), sight.End(position));
  };
  AttendPages(context, layout, rule, block, scratch, softmax, block.page_begin, block.page_end,
              seen);
}

// Folds the partial results of blocks[1 ...] into that of blocks[0]. A row may see nothing of a
// range: its maximum is then -inf.
void MergeRanges(const KvLayout& layout, std::span<const Block> blocks) {
  const Softmax& total = blocks[0].partial;
  for (const Block& block : blocks.subspan(1)) {
    for (std::size_t r = 0; r < block.rows(); ++r) {
      const float max = std::max(total.max[r], block.partial.max[r]);
      const float keep = total.max[r] == max ? 1.0F : std::exp(total.max[r] - max);
      const float take = block.partial.max[r] == max ? 1.0F : std::exp(block.partial.max[r] - max);
      total.max[r] = max;
      total.sum[r] = total.sum[r] * keep + block.partial.sum[r] * take;
      float* out = total.out + r * layout.value_dim;
      const float* partial = block.partial.out + r * layout.value_dim;
      for (std::size_t j = 0; j < layout.value_dim; ++j) out[j] = out[j] * keep + partial[j] * take;
    }
  }
}

void ScatterOutputs(const Context& context, const KvLayout& layout, const Block& block,
                    const Softmax& softmax, float* out, std::size_t out_stride) {
  std::size_t r = 0;
  for (std::size_t p = 0; p < block.positions; ++p) {
    float* row = out + (block.sequence->first_row + block.first + p) * out_stride;
    for (const std::size_t head : block.group->heads) {
      context.kernels.scale(1.0F / softmax.sum[r], softmax.out + r * layout.value_dim,
                            layout.value_dim, row + head * layout.value_dim);
      ++r;
    }
  }
}

}  // namespace

void Attend(const Context& context, const KvLayout& layout, std::span<const HeadGroup> groups,
            const ScoreRule& rule, std::span<const AttentionSequence> sequences, const Queries& q,
            float* out, std::size_t out_stride) {
  const tensor::Workspace::Frame frame(context.workspace);
  const std::vector<Block> blocks = CutIntoBlocks(context, layout, groups, rule, sequences);
  std::size_t most_rows = 0;
  for (const Block& block : blocks) most_rows = std::max(most_rows, block.rows());
  std::vector<Scratch> scratch;
  scratch.reserve(static_cast<std::size_t>(context.pool.size()));
  for (int worker = 0; worker < context.pool.size(); ++worker) {
    scratch.push_back(TakeScratch(context, layout, most_rows));
  }

  context.pool.ParallelFor(blocks.size(), [&](std::size_t i, int worker) {
    const Block& block = blocks[i];
    const Scratch& mine = scratch[static_cast<std::size_t>(worker)];
    if (block.ranges == 1) {
      AttendBlock(context, layout, rule, q, block, mine, mine.softmax);
      ScatterOutputs(context, layout, block, mine.softmax, out, out_stride);
    } else {
      AttendBlock(context, layout, rule, q, block, mine, block.partial);
    }
  });
  for (std::size_t i = 0; i < blocks.size(); i += blocks[i].ranges) {
    if (blocks[i].ranges > 1) {
      MergeRanges(layout, std::span(blocks).subspan(i, blocks[i].ranges));
      ScatterOutputs(context, layout, blocks[i], blocks[i].partial, out, out_stride);
    }
  }
}

}  // namespace slimformer::ops
