// The Python module slimformer._core.
#include <pybind11/pybind11.h>

#include "bindings/bindings.h"

PYBIND11_MODULE(_core, module) {
  namespace bindings = slimformer::bindings;
  module.attr("__version__") = SLIMFORMER_VERSION;
  bindings::BindErrors(module);
  bindings::BindInfo(module);
  bindings::BindMoments(module);
  bindings::BindModel(module);
  bindings::BindSession(module);
  bindings::BindSampler(module);
}
