// Numpy arrays in and out: every argument's type and shape is checked here.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"

namespace slimformer::bindings {

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, py::array::c_style>;

// Whether the values lie one after another, each at an address that suits its type.
inline bool IsPlain(const py::array& array) {
  const auto address = reinterpret_cast<std::uintptr_t>(array.data());
  return (array.flags() & py::array::c_style) != 0 &&
         address % static_cast<std::uintptr_t>(array.itemsize()) == 0;
}

inline std::string Describe(const py::array& array) {
  std::string text = py::str(array.dtype()).cast<std::string>() + " [";
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(array.shape(i));
  }
  return text + "]" + (IsPlain(array) ? "" : ", not contiguous or not aligned");
}

// The array as T [...] of `dimensions` dimensions, contiguous; Error(data) where it is anything
// else. Nothing is converted in silence.
template <class T>
Array<T> Checked(const py::array& array, py::ssize_t dimensions, const std::string& name) {
  if (!py::isinstance<Array<T>>(array) || !IsPlain(array) || array.ndim() != dimensions) {
    throw Error(ErrorKind::data, name + ": expected a contiguous array of " +
                                     py::str(py::dtype::of<T>()).cast<std::string>() + " with " +
                                     std::to_string(dimensions) + " dimensions, found " +
                                     Describe(array));
  }
  return py::reinterpret_borrow<Array<T>>(array);
}

// The same for two dimensions, the second of which is given.
template <class T>
Array<T> CheckedRows(const py::array& array, std::size_t columns, const std::string& name) {
  Array<T> rows = Checked<T>(array, 2, name);
  if (static_cast<std::size_t>(rows.shape(1)) != columns) {
    throw Error(ErrorKind::data, name + ": expected rows of " + std::to_string(columns) +
                                     " values, found " + Describe(array));
  }
  return rows;
}

// A copy: while the interpreter is released another thread may write to the array, and a token
// that was checked must stay what it was.
inline std::vector<std::int32_t> CopyTokens(const py::array& array, const std::string& name) {
  const Array<std::int32_t> tokens = Checked<std::int32_t>(array, 1, name);
  return {tokens.data(), tokens.data() + tokens.size()};
}

template <class T>
Array<T> Empty(std::size_t rows, std::size_t columns) {
  return Array<T>({static_cast<py::ssize_t>(rows), static_cast<py::ssize_t>(columns)});
}

template <class T>
Array<T> Empty(std::size_t size) {
  return Array<T>(static_cast<py::ssize_t>(size));
}

}  // namespace slimformer::bindings
