#include "model/taps.h"

#include <algorithm>
#include <string>
#include <variant>

#include "base/error.h"

namespace slimformer::model {
namespace {

// Whether a step reads nothing.
bool IsConstant(const Step& step) {
  const auto* link = std::get_if<LinkStep>(&step);
  return link != nullptr && std::holds_alternative<ConstantLink>(link->weights->map);
}

}  // namespace

Site SiteNamed(std::string_view name) {
  static constexpr std::pair<std::string_view, Site> kSites[] = {
      {"attention_input", Site::attention_input}, {"attention_normed", Site::attention_normed},
      {"attention_heads", Site::attention_heads}, {"ffn_input", Site::ffn_input},
      {"ffn_normed", Site::ffn_normed},           {"ffn_neurons", Site::ffn_neurons},
      {"ffn_experts", Site::ffn_experts},         {"layer_output", Site::layer_output},
  };
  std::string known;
  for (const auto& [site_name, site] : kSites) {
    if (site_name == name) return site;
    known += (known.empty() ? "" : ", ") + std::string(site_name);
  }
  throw Error(ErrorKind::config,
              "no tap site \"" + std::string(name) + "\"; the sites are " + known);
}

std::optional<std::size_t> SiteWidth(const Plan& plan, std::size_t layer, Site site) {
  if (layer >= plan.end_layer()) return std::nullopt;
  const auto n_channels = static_cast<std::size_t>(plan.weights().spec.n_channels);
  const auto step_at = [&](Place place) {
    return std::ranges::find_if(plan.steps(), [&](const Step& step) {
      return LayerOf(step) == layer && PlaceOf(step) == place;
    });
  };
  switch (site) {
    case Site::attention_input:
    case Site::ffn_input:
    case Site::layer_output:
      return n_channels;
    case Site::attention_normed:
    case Site::ffn_normed: {
      const auto place = site == Site::attention_normed ? Place::attention : Place::ffn;
      const auto step = step_at(place);
      if (step == plan.steps().end() || IsConstant(*step)) return std::nullopt;
      return n_channels;
    }
    case Site::attention_heads: {
      const auto step = step_at(Place::attention);
      if (step == plan.steps().end()) return std::nullopt;
      const auto* attention = std::get_if<AttentionStep>(&*step);
      if (attention == nullptr) return std::nullopt;
      return attention->n_heads * attention->value_dim;
    }
    case Site::ffn_neurons: {
      const auto step = step_at(Place::ffn);
      if (step == plan.steps().end()) return std::nullopt;
      if (const auto* ffn = std::get_if<FfnStep>(&*step)) return ffn->n_neurons;
      if (const auto* routed = std::get_if<RoutedFfnStep>(&*step)) return routed->n_neurons;
      return std::nullopt;
    }
    case Site::ffn_experts: {
      const auto step = step_at(Place::ffn);
      if (step == plan.steps().end()) return std::nullopt;
      const auto* routed = std::get_if<RoutedFfnStep>(&*step);
      if (routed == nullptr) return std::nullopt;
      return routed->weights->experts.size();
    }
  }
  return std::nullopt;
}

void Taps::AddMoments(std::size_t layer, Site site, ops::Moments& moments) {
  taps_[{layer, site}].moments = &moments;
}

void Taps::AddCapture(std::size_t layer, Site site, float* destination) {
  taps_[{layer, site}].destination = destination;
}

void Taps::Observe(std::size_t layer, Site site, const float* x, std::size_t first_row,
                   std::size_t rows, std::size_t width) const {
  const auto found = taps_.find({layer, site});
  if (found == taps_.end()) return;
  const Tap& tap = found->second;
  if (tap.moments != nullptr) tap.moments->Update(x, nullptr, rows);
  if (tap.destination != nullptr) {
    std::copy_n(x, rows * width, tap.destination + first_row * width);
  }
}

}  // namespace slimformer::model
