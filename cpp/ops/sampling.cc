#include "ops/sampling.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>

#include "base/error.h"

namespace slimformer::ops {
namespace {

void Check(bool condition, const std::string& message) {
  if (!condition) throw Error(ErrorKind::config, "sampling: " + message);
}

// The likelier candidate first, of equals the lower id.
constexpr auto kLikelier = [](const auto& a, const auto& b) {
  return a.weight != b.weight ? a.weight > b.weight : a.token < b.token;
};

}  // namespace

Random::Random(std::uint64_t seed) {
  for (std::uint64_t& word : state_) {
    seed += 0x9e3779b97f4a7c15U;
    std::uint64_t z = seed;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    word = z ^ (z >> 31);
  }
}

double Random::Uniform() {
  auto& s = state_;
  const std::uint64_t result = std::rotl(s[0] + s[3], 23) + s[0];
  const std::uint64_t t = s[1] << 17;
  s[2] ^= s[0];
  s[3] ^= s[1];
  s[1] ^= s[2];
  s[0] ^= s[3];
  s[2] ^= t;
  s[3] = std::rotl(s[3], 45);
  return static_cast<double>(result >> 11) * 0x1p-53;
}

Sampler::Sampler(const SamplingOptions& options) : options_(options), random_(options.seed) {
  Check(std::isfinite(options.temperature) && options.temperature >= 0,
        "temperature: expected 0 or more");
  Check(options.top_k >= 0, "top_k: expected 0 (all) or more");
  Check(options.top_p > 0 && options.top_p <= 1, "top_p: expected above 0 and at most 1");
  Check(options.min_p >= 0 && options.min_p <= 1, "min_p: expected 0 to 1");
  Check(std::isfinite(options.repetition_penalty) && options.repetition_penalty > 0,
        "repetition_penalty: expected above 0");
}

std::int32_t Sampler::Sample(std::span<const float> logits, std::span<const std::int32_t> history) {
  candidates_.resize(logits.size());
  bool usable = false;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i]) || logits[i] == std::numeric_limits<float>::infinity()) {
      throw Error(ErrorKind::data, "sampling: the logit of token " + std::to_string(i) + " is " +
                                       (std::isnan(logits[i]) ? "not a number" : "infinite"));
    }
    usable = usable || std::isfinite(logits[i]);
    candidates_[i] = {static_cast<std::int32_t>(i), static_cast<double>(logits[i])};
  }
  if (!usable) throw Error(ErrorKind::data, "sampling: no token has a finite logit");
  Penalise(history);

  const Candidate best = *std::ranges::min_element(candidates_, kLikelier);
  if (options_.temperature == 0) return best.token;

  std::size_t count = candidates_.size();
  if (options_.top_k > 0 && static_cast<std::size_t>(options_.top_k) < count) {
    count = static_cast<std::size_t>(options_.top_k);
    const auto kept = candidates_.begin() + static_cast<std::ptrdiff_t>(count);
    std::nth_element(candidates_.begin(), kept - 1, candidates_.end(), kLikelier);
    std::sort(candidates_.begin(), kept, kLikelier);
  }
  for (std::size_t i = 0; i < count; ++i) {
    double& weight = candidates_[i].weight;
    weight = std::exp((weight - best.weight) / options_.temperature);  // 1 for the best
  }
  if (options_.top_p < 1) count = KeepTopP(count);
  if (options_.min_p > 0) {
    const auto end = candidates_.begin() + static_cast<std::ptrdiff_t>(count);
    const auto kept = std::stable_partition(
        candidates_.begin(), end, [&](const Candidate& c) { return c.weight >= options_.min_p; });
    count = static_cast<std::size_t>(kept - candidates_.begin());
  }
  return Draw(std::span(candidates_).first(count));
}

// Divides positive logits of tokens that occurred by the penalty and multiplies negative ones.
void Sampler::Penalise(std::span<const std::int32_t> history) {
  for (const std::int32_t token : history) {
    if (token < 0 || static_cast<std::size_t>(token) >= candidates_.size()) {
      throw Error(ErrorKind::token,
                  "sampling: token id " + std::to_string(token) + " of the history has no logit");
    }
  }
  if (options_.repetition_penalty == 1) return;
  std::vector<std::int32_t> tokens(history.begin(), history.end());
  std::ranges::sort(tokens);
  const auto repeated = std::ranges::unique(tokens);
  tokens.erase(repeated.begin(), repeated.end());
  for (const std::int32_t token : tokens) {
    double& logit = candidates_[static_cast<std::size_t>(token)].weight;
    logit = logit > 0 ? logit / options_.repetition_penalty : logit * options_.repetition_penalty;
  }
}

// Sorts only as many candidates as are kept: a whole vocabulary would take longer than a token of
// a small model.
std::size_t Sampler::KeepTopP(std::size_t count) {
  double total = 0;
  for (std::size_t i = 0; i < count; ++i) total += candidates_[i].weight;
  const auto begin = candidates_.begin();
  const auto end = begin + static_cast<std::ptrdiff_t>(count);
  double sum = 0;
  std::size_t sorted = 0;
  for (std::size_t step = 256; sorted < count; step *= 4) {
    const std::size_t next = std::min(count, sorted + step);
    std::partial_sort(begin + static_cast<std::ptrdiff_t>(sorted),
                      begin + static_cast<std::ptrdiff_t>(next), end, kLikelier);
    for (; sorted < next; ++sorted) {
      sum += candidates_[sorted].weight;
      if (sum >= options_.top_p * total) return sorted + 1;
    }
  }
  return count;
}

std::int32_t Sampler::Draw(std::span<const Candidate> candidates) {
  double total = 0;
  for (const Candidate& candidate : candidates) total += candidate.weight;
  const double wanted = random_.Uniform() * total;
  double sum = 0;
  const Candidate* last = &candidates.front();
  for (const Candidate& candidate : candidates) {
    if (candidate.weight == 0) continue;
    sum += candidate.weight;
    last = &candidate;
    if (wanted < sum) break;
  }
  return last->token;
}

}  // namespace slimformer::ops
