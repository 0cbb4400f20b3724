#include "ops/kv_pages.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "ops/rows.h"

namespace slimformer::ops {
namespace {

using kernels::kPagePositions;

template <class T>
constexpr std::size_t kPerStep = std::is_same_v<T, float> ? 1 : 2;

// Writes positions of all heads as pages hold them.
template <class T>
class PageWriter {
 public:
  PageWriter(const Context& context, const KvLayout& layout)
      : kernels_(context.kernels),
        layout_(layout),
        converted_(std::max(layout.head_dim, layout.value_dim) + kPerStep<T>) {}

  // keys [head_dim] and values [value_dim] of a head of the page.
  void Write(const float* keys, const float* values, std::size_t slot, std::size_t head,
             std::byte* page) {
    const std::size_t scale = slot * sizeof(float);
    WriteKeys(Convert(keys, layout_.head_dim, page, layout_.KeyScaleOffset(head) + scale), slot,
              reinterpret_cast<T*>(page + layout_.KeyOffset(head)));
    WriteValues(Convert(values, layout_.value_dim, page, layout_.ValueScaleOffset(head) + scale),
                slot, reinterpret_cast<T*>(page + layout_.ValueOffset(head)));
  }

 private:
  void WriteKeys(const T* keys, std::size_t slot, T* to) const {
    to += layout_.KeyIndex(slot, 0);
    for (std::size_t d = 0; d < layout_.head_dim; d += kPerStep<T>) {
      std::memcpy(to + d * kernels::kKeyLanes, keys + d, kPerStep<T> * sizeof(T));
    }
  }

  void WriteValues(const T* values, std::size_t slot, T* to) const {
    to += layout_.ValueIndex(slot, 0);
    for (std::size_t c = 0; c < layout_.value_dim; ++c) to[c * kPerStep<T>] = values[c];
  }

  // A row as the page's type, followed by zeros up to a whole step; its scale, if it has one, goes
  // to the page.
  const T* Convert(const float* from, std::size_t n, std::byte* page, std::size_t scale_offset) {
    if constexpr (std::is_same_v<T, float>) {
      return from;
    } else {
      T* to = converted_.data();
      if constexpr (std::is_same_v<T, std::int8_t>) {
        const float scale = kernels_.to_int8(from, n, to);
        std::memcpy(page + scale_offset, &scale, sizeof(scale));
      } else {
        kernels_.to_bf16(from, n, to);
      }
      to[n] = T{};
      return to;
    }
  }

  const kernels::KernelTable& kernels_;
  const KvLayout& layout_;
  std::vector<T> converted_;
};

// Rows [begin, end) of a sequence.
template <class T>
void StoreRows(const Context& context, const KvLayout& layout, std::span<const HeadGroup> groups,
               const AttentionSequence& sequence, std::size_t begin, std::size_t end, float* keys,
               std::size_t key_stride, const Rotation* rotation, const float* values,
               std::size_t value_stride) {
  PageWriter<T> writer(context, layout);
  for (std::size_t r = begin; r < end; ++r) {
    const std::size_t row = sequence.first_row + r;
    const std::size_t position = sequence.position + r;
    std::byte* page = sequence.pages[position / kPagePositions];
    for (std::size_t i = 0; i < groups.size(); ++i) {
      const std::size_t head = groups[i].kv_head;
      float* key = keys + row * key_stride + head * layout.head_dim;
      if (rotation != nullptr) RotateHead(context.kernels, *rotation, row, key);
      writer.Write(key, values + row * value_stride + head * layout.value_dim,
                   position % kPagePositions, i, page);
    }
  }
}

}  // namespace

void StoreKeysAndValues(const Context& context, const KvLayout& layout,
                        std::span<const HeadGroup> groups,
                        std::span<const AttentionSequence> sequences, float* keys,
                        std::size_t key_stride, const Rotation* rotation, const float* values,
                        std::size_t value_stride) {
  const auto store = layout.type == KvType::f32    ? StoreRows<float>
                     : layout.type == KvType::bf16 ? StoreRows<std::uint16_t>
                                                   : StoreRows<std::int8_t>;
  const std::size_t row_values = groups.size() * (layout.head_dim + layout.value_dim);
  for (const AttentionSequence& sequence : sequences) {
    ForRows(context.pool, sequence.rows, row_values, [&](std::size_t begin, std::size_t end) {
      store(context, layout, groups, sequence, begin, end, keys, key_stride, rotation, values,
            value_stride);
    });
  }
}

void ClearPositions(const KvLayout& layout, std::size_t slot, std::byte* page) {
  const std::size_t element = layout.ElementBytes();
  for (std::size_t head = 0; head < layout.heads; ++head) {
    std::byte* keys = page + layout.KeyOffset(head);
    std::byte* values = page + layout.ValueOffset(head);
    for (std::size_t s = slot; s < kPagePositions; ++s) {
      for (std::size_t d = 0; d < layout.head_dim; ++d) {
        std::memset(keys + layout.KeyIndex(s, d) * element, 0, element);
      }
      for (std::size_t c = 0; c < layout.value_dim; ++c) {
        std::memset(values + layout.ValueIndex(s, c) * element, 0, element);
      }
    }
    if (layout.type != KvType::int8) continue;
    const std::size_t bytes = (kPagePositions - slot) * sizeof(float);
    std::memset(page + layout.KeyScaleOffset(head) + slot * sizeof(float), 0, bytes);
    std::memset(page + layout.ValueScaleOffset(head) + slot * sizeof(float), 0, bytes);
  }
}

}  // namespace slimformer::ops
