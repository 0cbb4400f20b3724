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

// How a matrix is kept.
enum class Form {
  chosen,    // sparse where that is smaller and, with so many zeros, faster; else dense
  dense,     // with them
  smaller,   // sparse where that is smaller
  sparse,    // sparse, even if that is larger
  expanded,  // the dense panels that the sparse form stands for, to compare with
};

// The choices that users have.
inline constexpr std::pair<std::string_view, Form> kForms[] = {
    {"auto", Form::chosen}, {"never", Form::dense}, {"smaller", Form::smaller}};

// What a matrix that is still to be packed is made of.
enum class SourceType { f32, bf16, f16 };

}  // namespace slimformer::tensor
