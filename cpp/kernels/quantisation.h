// How weights and activations become whole numbers: the same in every tier, bit for bit.
//
// The inputs of a matrix product are cut into groups of kInt8Group: weights in each output,
// activations in each row. For int8 a whole group is rotated first: the Walsh-Hadamard
// transform, butterflies of sums and differences over strides of 32, 16 ... 1, turns x into t and
// the weights, divided by kInt8Group, into u, so that t . u = x . w (Ashkboos et al. 2024, QuaRot;
// here within a group). An outlier is spread over its group and no longer takes all of its
// resolution: the products of smollm2-135m's layers are off by 0.3 to 0.7 % of their size instead
// of 0.6 to 1.8 %. A last group that is short stays as it is.
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
// int4 weights are w = scale q + min, 0 <= q <= 15, with a scale and a minimum for every kInt4Group
// of them, a part of a group of activations (int4_search.h): 5 bits a weight. They lose so much
// more than their activations, which are int8 too, that rotation would gain nothing, and weights
// that come from a file of 4 or 5 bits lie on a grid that it would blur. The minimum multiplies the
// sum of the part's activations, which dot products of bfloat16 round to bfloat16: off by 2^-9 of
// one of two terms, it is a third of what rounding the activations to int8 loses.
//
// Why 64 for int8: the largest of 64 normal values is 2.4 standard deviations, a rounding is then
// off by 0.59 % of one (of 32 values: 0.53 %), and a rotation spreads an outlier twice as far. A
// scale of 2 bytes adds 3 % to the weights, and adding a group up costs two multiplications to 16
// dot products of 4. int4 has less to lose by its activations than by coarser scales of its
// weights: theirs are of 32, those of its activations of 64, which saves a multiplication a part.
#pragma once

#include <cstddef>

namespace slimformer::kernels {

inline constexpr std::size_t kInt8Group = 64;
inline constexpr std::size_t kInt4Group = 32;
inline constexpr std::size_t kInt4Parts = kInt8Group / kInt4Group;
inline constexpr float kLargestInt8 = 127.0F;
inline constexpr float kSmallestScale = 0x1p-126F;

}  // namespace slimformer::kernels
