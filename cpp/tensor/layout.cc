#include "tensor/layout.h"

#include <cstddef>
#include <span>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/error.h"
#include "tensor/packed_matrix.h"

namespace slimformer::tensor {
namespace {

// Two whole groups of any kernel and a part of a third, of no even length.
constexpr std::size_t kInputs = 157;

// [outputs, kInputs]: about half zeros, the others of many sizes.
std::vector<float> Sample(std::size_t outputs) {
  std::vector<float> values(outputs * kInputs);
  std::uint32_t state = 1;
  for (float& value : values) {
    state = state * 1664525U + 1013904223U;
    const auto size = static_cast<float>(state >> 16 & 0x7fffU) - 16384.0F;
    value = (state & 0x80000000U) != 0 ? size / 4096.0F : 0.0F;
  }
  return values;
}

// FNV-1a.
std::uint64_t Hash(std::span<const std::byte> bytes) {
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const std::byte byte : bytes) {
    hash = (hash ^ static_cast<std::uint64_t>(byte)) * 0x100000001b3U;
  }
  return hash;
}

}  // namespace

std::uint64_t LayoutOf(const kernels::KernelTable& kernels, WeightType type, bool sparse) {
  const kernels::SparseKernel* form = SparseFor(kernels, type);
  if (sparse && form == nullptr) {
    throw Error(ErrorKind::config, "weights of this type have no sparse form");
  }
  const kernels::GemmKernel& kernel = sparse ? form->dense : GemmFor(kernels, type);
  const std::vector<float> sample = Sample(kernel.panel_width);
  AlignedBuffer<std::byte> panel(kernel.panel_bytes(kInputs));
  kernel.pack_panel(sample.data(), kInputs, kernel.panel_width, kInputs, panel.data());
  if (!sparse) return Hash({panel.data(), panel.size()});
  AlignedBuffer<std::byte> compressed(form->compressed_bytes(panel.data(), kInputs));
  form->compress(panel.data(), kInputs, compressed.data());
  return Hash({compressed.data(), compressed.size()});
}

}  // namespace slimformer::tensor
