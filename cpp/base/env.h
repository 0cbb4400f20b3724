// Environment variables.
#pragma once

#include <cstdlib>
#include <optional>
#include <string>

namespace slimformer {

// The variable's value; nullopt where it is unset or empty.
inline std::optional<std::string> Env(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr || *value == '\0') return std::nullopt;
  return value;
}

}  // namespace slimformer
