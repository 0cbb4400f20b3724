// slimformer.config.ModelConfig, read into the core's own blueprint.
#pragma once

#include <pybind11/pybind11.h>

#include "model/spec.h"

namespace slimformer::bindings {

// Error(config) where the configuration could not be run.
model::ModelSpec SpecFromPython(const pybind11::handle& config);

}  // namespace slimformer::bindings
