// Number formats of weights: how they are kept packed, and how a checkpoint holds them.
#pragma once

#include <string_view>
#include <utility>

namespace slimformer::tensor {

// What packed weights are made of.
enum class WeightType { f32, bf16, int8, int4 };

inline constexpr std::pair<std::string_view, WeightType> kWeightTypes[] = {
    {"f32", WeightType::f32},
    {"bf16", WeightType::bf16},
    {"int8", WeightType::int8},
    {"int4", WeightType::int4}};

// What a matrix that is still to be packed is made of.
enum class SourceType { f32, bf16, f16 };

}  // namespace slimformer::tensor
