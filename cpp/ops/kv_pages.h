// Pages of keys and values: how they are laid out, and how positions are written to them.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "ops/context.h"
#include "ops/rope.h"

namespace slimformer::ops {

enum class KvType { f32, bf16, int8 };

// A page holds kPagePositions positions of every KV head that one attention step uses: the keys of
// a head before its values, each laid out as the kernels say, so that memory is read from end to
// end; then, of int8, the scales of all heads' keys and of all heads' values, [kPagePositions]
// float32 each.
struct KvLayout {
  KvType type;
  std::size_t heads;
  std::size_t head_dim;
  std::size_t value_dim;

  std::size_t ElementBytes() const noexcept {
    return type == KvType::f32 ? 4 : type == KvType::bf16 ? 2 : 1;
  }

  // Dimensions, or positions, that lie side by side.
  std::size_t PerStep() const noexcept { return type == KvType::f32 ? 1 : 2; }

  std::size_t KeyOffset(std::size_t head) const noexcept {
    return head * kernels::kPagePositions * (PaddedHeadDim() + value_dim) * ElementBytes();
  }
  std::size_t ValueOffset(std::size_t head) const noexcept {
    return KeyOffset(head) + kernels::kPagePositions * PaddedHeadDim() * ElementBytes();
  }
  std::size_t KeyScaleOffset(std::size_t head) const noexcept {
    return KeyOffset(heads) + head * kScaleBytes;
  }
  std::size_t ValueScaleOffset(std::size_t head) const noexcept {
    return KeyScaleOffset(heads) + head * kScaleBytes;
  }
  std::size_t PageBytes() const noexcept {
    return type == KvType::int8 ? ValueScaleOffset(heads) : KeyOffset(heads);
  }

  bool operator==(const KvLayout&) const = default;

  // A head's part of a page, which `next` follows. Scales are there in pages of int8 only.
  kernels::KvPart PartOf(const std::byte* page, const std::byte* next,
                         std::size_t head) const noexcept {
    kernels::KvPart part{page + KeyOffset(head), page + ValueOffset(head), nullptr, nullptr,
                         next + KeyOffset(head)};
    if (type == KvType::int8) {
      part.key_scales = reinterpret_cast<const float*>(page + KeyScaleOffset(head));
      part.value_scales = reinterpret_cast<const float*>(page + ValueScaleOffset(head));
    }
    return part;
  }

  // Where a value lies within its head's keys or values, in elements.
  std::size_t KeyIndex(std::size_t position, std::size_t dim) const noexcept {
    const std::size_t per_step = PerStep();
    const std::size_t group = position / kernels::kKeyLanes * PaddedHeadDim();
    const std::size_t step = dim / per_step * per_step;
    return (group + step) * kernels::kKeyLanes + position % kernels::kKeyLanes * per_step +
           dim % per_step;
  }
  std::size_t ValueIndex(std::size_t position, std::size_t column) const noexcept {
    const std::size_t per_step = PerStep();
    return position / per_step * per_step * value_dim + column * per_step + position % per_step;
  }

 private:
  static constexpr std::size_t kScaleBytes = kernels::kPagePositions * sizeof(float);

  std::size_t PaddedHeadDim() const noexcept {
    return (head_dim + PerStep() - 1) / PerStep() * PerStep();
  }
};

// What a sequence keeps of its past: the last `positions` positions, the one at hand included, and
// the first `sinks`, on which models rest the attention that they have no other use for (Xiao et
// al. 2023, StreamingLLM). Sinks are seen at the distance that they have when the window begins to
// move, which models know, not at their own, which grows without end.
struct KvWindow {
  std::size_t positions;
  std::size_t sinks;

  // The length of a sequence up to which every position sees all before it, and the distances that
  // a model gets to know.
  std::size_t Length() const noexcept { return positions + sinks; }

  bool operator==(const KvWindow&) const = default;
};

// What remains in sight where a layer has a window of its own and the sequence has one: the
// sequence's, if the layer would see all of that, else its own, which needs no sinks.
inline std::optional<KvWindow> NarrowerWindow(std::optional<std::size_t> of_layer,
                                              const std::optional<KvWindow>& of_sequence) {
  if (of_sequence && (!of_layer || *of_layer >= of_sequence->Length())) return of_sequence;
  return of_layer ? std::optional(KvWindow{*of_layer, 0}) : std::nullopt;
}

// A KV head and the query heads that read it. The i-th group is the i-th head of a page.
struct HeadGroup {
  std::size_t kv_head;
  std::vector<std::size_t> heads;

  bool operator==(const HeadGroup&) const = default;
};

// Consecutive tokens of one sequence within the rows of a batch.
struct AttentionSequence {
  std::size_t first_row;
  std::size_t rows;
  std::size_t position;           // of the first row
  std::vector<std::byte*> pages;  // at least up to the last row's position; null where none is seen
  std::optional<KvWindow> window;
};

// Rotates the keys [rows, *, head_dim] of the groups' KV heads, if there is a rotation, and writes
// them and the values [rows, *, value_dim] into the pages. Strides are in floats.
void StoreKeysAndValues(const Context& context, const KvLayout& layout,
                        std::span<const HeadGroup> groups,
                        std::span<const AttentionSequence> sequences, float* keys,
                        std::size_t key_stride, const Rotation* rotation, const float* values,
                        std::size_t value_stride);

// Zeroes all slots of a page from `slot` on.
void ClearPositions(const KvLayout& layout, std::size_t slot, std::byte* page);

}  // namespace slimformer::ops
