// The words that Python uses for the core's choices. Each function throws Error(config), listing
// the words there are, for any other.
#pragma once

#include <pybind11/numpy.h>

#include <optional>
#include <string>

#include "kernels/registry.h"
#include "model/transformer.h"
#include "tensor/dtype.h"

namespace slimformer::bindings {

tensor::WeightType WeightTypeNamed(const std::string& name);
std::string WeightTypeName(tensor::WeightType type);
tensor::Form FormNamed(const std::string& name);
ops::KvType KvTypeNamed(const std::string& name);
model::LogitsRows LogitsRowsNamed(const std::string& name);

// The kernels of the named tier, or those that this machine runs best.
const kernels::KernelTable& KernelsNamed(const std::optional<std::string>& tier);

// float32, float16, or bfloat16 as its bits in uint16; Error(format) for any other.
tensor::SourceType SourceTypeOf(const pybind11::array& values, const std::string& tensor_name);

}  // namespace slimformer::bindings
