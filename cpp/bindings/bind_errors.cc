#include <exception>
#include <utility>

#include "base/error.h"
#include "bindings/bindings.h"

namespace slimformer::bindings {
namespace {

namespace py = pybind11;

const char* ClassName(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::config:
      return "ConfigError";
    case ErrorKind::format:
      return "FormatError";
    case ErrorKind::token:
      return "TokenError";
    case ErrorKind::context_length:
      return "ContextLengthError";
    case ErrorKind::data:
      return "DataError";
  }
  return "SlimformerError";
}

}  // namespace

void BindErrors(py::module_&) {
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      std::rethrow_exception(std::move(thrown));
    } catch (const Error& error) {
      py::set_error(py::module_::import("slimformer.errors").attr(ClassName(error.kind())),
                    error.what());
    }
  });
}

}  // namespace slimformer::bindings
