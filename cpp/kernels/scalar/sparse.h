// The scalar tier's panels without their zeros, as SparseKernel in kernel_table.h describes them.
//
// A Form says what a dense panel looks like: Item, the bits of one that tell it from zero
// (kMagnitude), kHeadBytes before each of Groups(k) groups and Items(k, group) items in it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernel_table.h"

namespace slimformer::kernels {
namespace {
namespace sparse {

template <class Form>
std::size_t AllItems(std::size_t k) noexcept {
  std::size_t items = 0;
  for (std::size_t g = 0; g < Form::Groups(k); ++g) items += Form::Items(k, g);
  return items;
}

template <class Form>
typename Form::Item ItemAt(const unsigned char* items, std::size_t i) noexcept {
  typename Form::Item item;
  __builtin_memcpy(&item, items + i * sizeof(item), sizeof(item));
  return item;
}

template <class Form>
bool IsZero(typename Form::Item item) noexcept {
  return (item & Form::kMagnitude) == 0;
}

// Reads a compressed panel from its beginning.
template <class Form>
class Reader {
 public:
  using Item = typename Form::Item;

  Reader(const void* compressed, std::size_t k) noexcept
      : head_(static_cast<const unsigned char*>(compressed)),
        masks_(head_ + Form::Groups(k) * Form::kHeadBytes),
        value_(masks_ + AllItems<Form>(k) / 8) {}

  Item NextItem() noexcept {
    const bool present = (masks_[item_ / 8] >> item_ % 8 & 1) != 0;
    ++item_;
    if (!present) return 0;
    const Item item = ItemAt<Form>(value_, 0);
    value_ += sizeof(Item);
    return item;
  }

  // Writes the head and the items of the next group.
  void NextGroup(std::size_t items, unsigned char* group) noexcept {
    __builtin_memcpy(group, head_, Form::kHeadBytes);
    head_ += Form::kHeadBytes;
    group += Form::kHeadBytes;
    for (std::size_t i = 0; i < items; ++i, group += sizeof(Item)) {
      const Item item = NextItem();
      __builtin_memcpy(group, &item, sizeof(item));
    }
  }

 private:
  const unsigned char* head_;
  const unsigned char* masks_;
  const unsigned char* value_;
  std::size_t item_ = 0;
};

template <class Form>
std::size_t CompressedBytes(const void* panel, std::size_t k) noexcept {
  const auto* from = static_cast<const unsigned char*>(panel);
  std::size_t bytes = Form::Groups(k) * Form::kHeadBytes + AllItems<Form>(k) / 8;
  for (std::size_t g = 0; g < Form::Groups(k); ++g) {
    from += Form::kHeadBytes;
    for (std::size_t i = 0; i < Form::Items(k, g); ++i) {
      if (!IsZero<Form>(ItemAt<Form>(from, i))) bytes += sizeof(typename Form::Item);
    }
    from += Form::Items(k, g) * sizeof(typename Form::Item);
  }
  return (bytes + 63) / 64 * 64;
}

template <class Form>
std::size_t StoredBytes(const void* compressed, std::size_t k, std::size_t available) noexcept {
  const std::size_t masks = Form::Groups(k) * Form::kHeadBytes;
  const std::size_t values = masks + AllItems<Form>(k) / 8;
  if (values > available) return values;
  std::size_t bytes = values;
  for (std::size_t i = masks * 8; i < values * 8; ++i) {
    const bool present = (static_cast<const unsigned char*>(compressed)[i / 8] >> i % 8 & 1) != 0;
    if (present) bytes += sizeof(typename Form::Item);
  }
  return (bytes + 63) / 64 * 64;
}

template <class Form>
void Compress(const void* panel, std::size_t k, void* compressed) noexcept {
  const auto* from = static_cast<const unsigned char*>(panel);
  auto* head = static_cast<unsigned char*>(compressed);
  auto* masks = head + Form::Groups(k) * Form::kHeadBytes;
  auto* value = masks + AllItems<Form>(k) / 8;
  __builtin_memset(compressed, 0, CompressedBytes<Form>(panel, k));
  std::size_t bit = 0;
  for (std::size_t g = 0; g < Form::Groups(k); ++g) {
    __builtin_memcpy(head, from, Form::kHeadBytes);
    head += Form::kHeadBytes;
    from += Form::kHeadBytes;
    for (std::size_t i = 0; i < Form::Items(k, g); ++i, ++bit) {
      const typename Form::Item item = ItemAt<Form>(from, i);
      if (IsZero<Form>(item)) continue;
      masks[bit / 8] = static_cast<unsigned char>(masks[bit / 8] | 1U << bit % 8);
      __builtin_memcpy(value, &item, sizeof(item));
      value += sizeof(item);
    }
    from += Form::Items(k, g) * sizeof(typename Form::Item);
  }
}

template <class Form>
void Expand(const void* compressed, std::size_t k, void* panel) noexcept {
  Reader<Form> reader(compressed, k);
  auto* to = static_cast<unsigned char*>(panel);
  for (std::size_t g = 0; g < Form::Groups(k); ++g) {
    reader.NextGroup(Form::Items(k, g), to);
    to += Form::kHeadBytes + Form::Items(k, g) * sizeof(typename Form::Item);
  }
}

// The sparse form of `dense`. Every item takes a branch.
template <class Form>
constexpr SparseKernel MakeSparse(const GemmKernel& dense,
                                  decltype(GemmKernel::multiply) multiply) noexcept {
  return {.dense = dense,
          .least_zeros = kNeverFaster,
          .most_rows = 1,
          .compressed_bytes = &CompressedBytes<Form>,
          .stored_bytes = &StoredBytes<Form>,
          .compress = &Compress<Form>,
          .expand = &Expand<Form>,
          .multiply = multiply};
}

}  // namespace sparse
}  // namespace
}  // namespace slimformer::kernels
