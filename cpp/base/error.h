// The one exception type of the core. Kernels throw nothing; everything above them reports
// with a kind, which the bindings translate to the classes of slimformer.errors.
#pragma once

#include <stdexcept>
#include <string>

namespace slimformer {

enum class ErrorKind {
  config,          // a setting or a model description contradicts itself
  format,          // a tensor has the wrong shape or holds values that cannot be used
  token,           // a token id outside the vocabulary
  context_length,  // a sequence longer than the model's, or the session's, limit
  data,            // arguments that do not fit together
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}

  ErrorKind kind() const noexcept { return kind_; }

 private:
  ErrorKind kind_;
};

}  // namespace slimformer
