// How weights and activations become whole numbers: the same in every tier, bit for bit.
//
// The inputs of a matrix product are cut into groups of kGroup: weights in each output, activations
// in each row. For int8 a whole group is rotated first: the Walsh-Hadamard transform, butterflies
// of sums and differences over strides of 16, 8 ... 1, turns x into t and the weights, divided by
// kGroup, into u, so that t . u = x . w (Ashkboos et al. 2024, QuaRot; here within a group). An
// outlier is spread over its group and no longer takes all of its resolution: the products of
// smollm2-135m's layers are off by 0.3 to 0.7 % of their size instead of 0.6 to 1.8 %. A last group
// that is short stays as it is.
//
// A group of int8 values is q[i] = round(v[i] * (1 / scale)), -127 <= q <= 127, to nearest, ties
// to even, with scale = max |v| / 127, but not below kSmallestScale: the reciprocal of a smaller
// one would overflow, and what it would keep is nothing to a float32 sum. Products of groups are
// exact in int32, and float32 adds up the groups:
// y = sum over groups of (scale of w) (scale of x) (q of w) . (q of x).
//
// A scale of weights is rounded to bfloat16, upwards so that q stays in its range; q is made with
// the rounded one, so that this costs a step up to 2^-7 coarser and no error of its own.
// A group with a value that is not finite has a scale that is NaN. Weights up to 2^114 are safe: a
// group's sum times their scale, before that of x makes it small again, is finite.
//
// int4 weights are w = scale q + min, 0 <= q <= 15 (int4_search.h): 5 bits a weight. They lose so
// much more than their activations, which are int8 too, that rotation would gain nothing, and
// weights that come from a file of 4 or 5 bits lie on a grid that it would blur.
//
// Why 32: the largest of 32 normal values is 2.1 standard deviations, a rounding is then off by
// 0.53 % of one (of 64 values: 0.59 %). A scale of 2 bytes adds 6 % to the weights, and adding a
// group up costs two multiplications to 8 dot products of 4.
#pragma once

#include <cstddef>

namespace slimformer::kernels {

inline constexpr std::size_t kGroup = 32;
inline constexpr float kLargestInt8 = 127.0F;
inline constexpr float kSmallestScale = 0x1p-126F;

}  // namespace slimformer::kernels
