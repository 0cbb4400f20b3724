#include "ops/kv_pages.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "ops/rows.h"

namespace slimformer::ops {
namespace {

using kernels::kPagePositions;

// Writes one position of one head as a page holds it.
template <class T>
class RowWriter {
 public:
  RowWriter(const Context& context, const KvLayout& layout)
      : kernels_(context.kernels), layout_(layout) {}

  void Keys(const float* key, std::size_t slot, T* page) const {
    Convert(key, layout_.head_dim, [&](std::size_t first, std::size_t count, const T* row) {
      T* to = page + layout_.KeyIndex(slot, first);
      for (std::size_t i = 0; i < count; i += kPerStep) {
        std::memcpy(to + i * kernels::kKeyLanes, row + i, kPerStep * sizeof(T));
      }
    });
  }

  void Values(const float* value, std::size_t slot, T* page) const {
    T* to = page + layout_.ValueIndex(slot, 0);
    Convert(value, layout_.value_dim, [&](std::size_t first, std::size_t count, const T* row) {
      for (std::size_t i = 0; i < count; ++i) to[(first + i) * kPerStep] = row[i];
    });
  }

 private:
  static constexpr std::size_t kPerStep = std::is_same_v<T, float> ? 1 : 2;

  // Calls store(first, count, converted) for a row, some values at a time; a value that is short of
  // a step is followed by zero.
  template <class Store>
  void Convert(const float* from, std::size_t n, Store store) const {
    if constexpr (std::is_same_v<T, float>) {
      store(0, n, from);
    } else {
      constexpr std::size_t kAtOnce = 64;
      T row[kAtOnce];
      for (std::size_t first = 0; first < n; first += kAtOnce) {
        const std::size_t count = std::min(kAtOnce, n - first);
        kernels_.to_bf16(from + first, count, row);
        if (count % kPerStep != 0) row[count] = T{};
        store(first, count, row);
      }
    }
  }

  const kernels::KernelTable& kernels_;
  const KvLayout& layout_;
};

template <class T>
void StoreRow(const Context& context, const KvLayout& layout, std::span<const HeadGroup> groups,
              std::byte* page, std::size_t slot, const float* keys, const float* values) {
  const RowWriter<T> writer(context, layout);
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const std::size_t head = groups[i].kv_head;
    writer.Keys(keys + head * layout.head_dim, slot,
                reinterpret_cast<T*>(page + layout.KeyOffset(i)));
    writer.Values(values + head * layout.value_dim, slot,
                  reinterpret_cast<T*>(page + layout.ValueOffset(i)));
  }
}

}  // namespace

void StoreKeysAndValues(const Context& context, const KvLayout& layout,
                        std::span<const HeadGroup> groups,
                        std::span<const AttentionSequence> sequences, float* keys,
                        std::size_t key_stride, const Rotation* rotation, const float* values,
                        std::size_t value_stride) {
  const auto store = layout.type == KvType::f32 ? StoreRow<float> : StoreRow<std::uint16_t>;
  const std::size_t row_values = groups.size() * (layout.head_dim + layout.value_dim);
  for (const AttentionSequence& sequence : sequences) {
    ForRows(context.pool, sequence.rows, row_values, [&](std::size_t begin, std::size_t end) {
      for (std::size_t r = begin; r < end; ++r) {
        const std::size_t row = sequence.first_row + r;
        const std::size_t position = sequence.position + r;
        float* row_keys = keys + row * key_stride;
        if (rotation != nullptr) {
          for (const HeadGroup& group : groups) {
            RotateHead(context.kernels, *rotation, row, row_keys + group.kv_head * layout.head_dim);
          }
        }
        store(context, layout, groups, sequence.pages[position / kPagePositions],
              position % kPagePositions, row_keys, values + row * value_stride);
      }
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
  }
}

}  // namespace slimformer::ops
