// Where a forward pass lets others see what flows past.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <string_view>
#include <utility>

#include "model/plan.h"
#include "ops/moments.h"

namespace slimformer::model {

enum class Site {
  attention_input,   // the residual stream as it enters the layer
  attention_normed,  // what queries, keys and values, or the link, are made from
  attention_heads,   // the input of the output projection
  ffn_input,         // the residual stream as it enters the FFN sub-block
  ffn_normed,        // what gate and up, or the link, read
  ffn_neurons,       // the input of the down projection, or of all experts', weighted
  ffn_experts,       // the length of what each expert of a routed FFN adds
  layer_output,      // the residual stream as it leaves the layer
};

// Error(config) for a name that no site has.
Site SiteNamed(std::string_view name);

// Values a row has at a site; nullopt where the plan never passes it.
std::optional<std::size_t> SiteWidth(const Plan& plan, std::size_t layer, Site site);

// What is collected where. Rows arrive in blocks, in order.
class Taps {
 public:
  void AddMoments(std::size_t layer, Site site, ops::Moments& moments);

  // `destination` [all rows of the run, width of the site].
  void AddCapture(std::size_t layer, Site site, float* destination);

  // Whether anybody looks at the site.
  bool Has(std::size_t layer, Site site) const { return taps_.contains({layer, site}); }

  // x [rows, width]; the first of the rows is row `first_row` of the run.
  void Observe(std::size_t layer, Site site, const float* x, std::size_t first_row,
               std::size_t rows, std::size_t width) const;

 private:
  struct Tap {
    ops::Moments* moments = nullptr;
    float* destination = nullptr;
  };

  std::map<std::pair<std::size_t, Site>, Tap> taps_;
};

}  // namespace slimformer::model
