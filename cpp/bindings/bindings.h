// One function for each concept that Python sees.
#pragma once

#include <pybind11/pybind11.h>

namespace slimformer::bindings {

void BindErrors(pybind11::module_& module);
void BindInfo(pybind11::module_& module);
void BindMoments(pybind11::module_& module);
void BindModel(pybind11::module_& module);
void BindSampler(pybind11::module_& module);
void BindSession(pybind11::module_& module);

}  // namespace slimformer::bindings
