#pragma once
#include <string_view>

namespace mla::app {

/// apps/explain/latent_attention.h as it was when the program was built: what a page shows is what was
/// compiled.
std::string_view latent_attention_file();

}  // namespace mla::app
