#pragma once
#include <nanobind/nanobind.h>

namespace mla::python {

void bind_decode(nanobind::module_& m);
void bind_sparse(nanobind::module_& m);
void bind_varlen(nanobind::module_& m);
void bind_model(nanobind::module_& m);
void bind_session(nanobind::module_& m);
void bind_training(nanobind::module_& m);

}  // namespace mla::python
