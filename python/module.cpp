// The extension module mla._core: what the package's Python files are written on. It only converts.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "mla/core/cpu.h"
#include "mla/core/error.h"
#include "mla/core/parallel.h"
#include "python/arrays.h"
#include "python/bindings.h"

NB_MODULE(_core, m) {
  m.doc() = "The library behind the package mla; use the package.";
  nanobind::register_exception_translator([](const std::exception_ptr& p, void*) {
    try {
      std::rethrow_exception(p);
    } catch (const mla::Error& error) {
      PyErr_SetString(PyExc_ValueError, error.what());
    }
  });
  m.def("set_threads", &mla::set_threads, nanobind::arg("threads"),
        "Threads that the library uses from now on in calls from the calling thread, 1 to 1024.");
  m.def(
      "threads", &mla::threads,
      "Threads that the library uses in calls from the calling thread: what set_threads said there, else one "
      "per\nprocessor unless OMP_NUM_THREADS says otherwise.");
  m.def(
      "isa", [] { return std::string(mla::name_of(mla::selected_isa())); },
      "The instruction set in use; MLA_ISA forces one.");
  m.def("lent", &mla::python::lent, nanobind::arg("array"),
        "(address, shape, strides, type code, bits, what keeps the memory) of a tensor with DLPack.");
  m.def("blank", &mla::python::blank, nanobind::arg("shape"), nanobind::arg("code"), nanobind::arg("bits"),
        "A new tensor that speaks DLPack, of its type code and bits.");
  mla::python::bind_decode(m);
  mla::python::bind_sparse(m);
  mla::python::bind_varlen(m);
  mla::python::bind_model(m);
  mla::python::bind_session(m);
  mla::python::bind_training(m);
}
