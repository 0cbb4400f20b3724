// Number formats of weights: how they are kept packed, and how a checkpoint holds them.
#pragma once

namespace slimformer::tensor {

// What packed weights are made of.
enum class WeightType { f32, bf16 };

// What a matrix that is still to be packed is made of.
enum class SourceType { f32, bf16, f16 };

}  // namespace slimformer::tensor
