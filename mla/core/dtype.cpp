#include "mla/core/dtype.h"

#include "mla/core/error.h"

namespace mla {

DType dtype_named(std::string_view name, std::string_view field) {
  for (const DType type : {DType::f32, DType::bf16, DType::f8_e4m3, DType::i8}) {
    if (name == name_of(type)) return type;
  }
  fail("{}: found '{}', expected f32, bf16, fp8 or int8", field, name);
}

}  // namespace mla
