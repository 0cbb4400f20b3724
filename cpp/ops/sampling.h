// Choosing the next token from its logits.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace slimformer::ops {

struct SamplingOptions {
  double temperature = 0.0;         // 0 takes the most likely token
  int top_k = 0;                    // keep the k most likely; 0 keeps all
  double top_p = 1.0;               // of those, the fewest whose probabilities reach top_p together
  double min_p = 0.0;               // of those, what is at least min_p times as likely as the first
  double repetition_penalty = 1.0;  // Keskar et al. 2019; 1 leaves the logits as they are
  std::uint64_t seed = 0;
};

// xoshiro256++ (Blackman and Vigna 2019), seeded through splitmix64: the same numbers on every
// platform, which the distributions of the standard library do not promise.
class Random {
 public:
  explicit Random(std::uint64_t seed);
  double Uniform();  // in [0, 1), 53 bits

 private:
  std::array<std::uint64_t, 4> state_;
};

class Sampler {
 public:
  // Error(config) for an option out of its range.
  explicit Sampler(const SamplingOptions& options);

  // `history` holds the tokens so far, which the repetition penalty looks at. Ties go to the lower
  // id. Error(data) where a logit is NaN or +inf or all are -inf; Error(token) for a token of
  // the history that has no logit.
  std::int32_t Sample(std::span<const float> logits, std::span<const std::int32_t> history);

 private:
  struct Candidate {
    std::int32_t token;
    double weight;  // a logit, then a probability that is not normalised
  };

  void Penalise(std::span<const std::int32_t> history);
  std::size_t KeepTopP(std::size_t count);
  std::int32_t Draw(std::span<const Candidate> candidates);

  SamplingOptions options_;
  Random random_;
  std::vector<Candidate> candidates_;
};

}  // namespace slimformer::ops
