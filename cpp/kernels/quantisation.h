// How weights and activations become whole numbers: the same in every tier, bit for bit.
//
// The inputs of a matrix product are cut into groups: weights in each output, activations in each
// row. For int8 they are rotated first, in blocks of kRotatedBlock: the Walsh-Hadamard transform,
// butterflies of sums and differences over strides of 32, 16 ... 1, turns x into t and the weights,
// divided by kRotatedBlock, into u, so that t . u = x . w (Ashkboos et al. 2024, QuaRot; here
// within a block). An outlier is spread over its block and no longer takes all of the resolution of
// its group: with groups of one block, the products of smollm2-135m's layers are off by 0.3 to
// 0.7 % of their size instead of 0.6 to 1.8 %. A last block that is short stays as it is.
//
// A group of int8 values is q[i] = round(v[i] * (1 / scale)), -127 <= q <= 127, to nearest, ties
// to even, with scale = max |v| / 127, but not below kSmallestScale: the reciprocal of a smaller
// one would overflow, and what it would keep is nothing to a float32 sum. Products of groups are
// exact in int32, and float32 adds up the groups:
// y = sum over groups of (scale of w) (scale of x) (q of w) . (q of x).
//
// A scale of weights is rounded to bfloat16, upwards so that q stays in its range; q is made with
// the rounded one, so that this costs a step up to 2^-7 coarser and no error of its own.
// A group with a value that is not finite has a scale that is NaN. Weights up to 2^110 are safe: a
// group's sum times their scale, before that of x makes it small again, is finite.
//
// int4 weights are w = scale q + min, 0 <= q <= 15, with a scale and a minimum for every kInt4Group
// of them, a part of a group of activations (int4_search.h): 5 bits a weight. They lose so much
// more than their activations, which are int8 in groups of kInt4Inputs, that rotation would gain
// nothing, and weights that come from a file of 4 or 5 bits lie on a grid that it would blur. The
// minimum multiplies the sum of the part's activations, which dot products of bfloat16 round to
// bfloat16: off by 2^-9 of one of two terms, it is a third of what rounding the activations to int8
// loses.
//
// Why 192 for int8: what a group costs beside its products. Its sums leave the integers to be
// scaled: with groups of 64, two multiplications to 16 dot products of 4, and beside tiles, which
// sum 64 inputs up at once, longer than the products themselves. A scale of 2 bytes adds 1 % to the
// weights. smollm2-135m, balanced as `pack` does it, loses 0.08 % of perplexity with groups of 192,
// 0.10 % with 64 and 0.25 % with 256; as it is 0.52, 0.39 and 0.63 %. int4 has less to lose by its
// activations than by coarser scales of its weights: theirs are of 32, those of its activations of
// 64, which saves a multiplication a part.
#pragma once

#include <cstddef>

namespace slimformer::kernels {

inline constexpr std::size_t kRotatedBlock = 64;
inline constexpr std::size_t kInt8Group = 3 * kRotatedBlock;
inline constexpr std::size_t kInt4Group = 32;
inline constexpr std::size_t kInt4Parts = 2;
inline constexpr std::size_t kInt4Inputs = kInt4Parts * kInt4Group;
inline constexpr float kLargestInt8 = 127.0F;
inline constexpr float kSmallestScale = 0x1p-126F;

}  // namespace slimformer::kernels
