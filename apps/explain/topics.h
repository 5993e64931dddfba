#pragma once
#include <optional>
#include <span>
#include <string_view>

#include "apps/explain/page.h"
#include "mla/model/tokenizer.h"
#include "mla/model/transformer.h"

namespace mla::app {

/// What topics compute with: the embedded model, loaded when one first asks for it. `broken` makes each topic
/// get one input wrong, so that a test sees its check fail.
class Explained {
 public:
  explicit Explained(bool broken) : broken_(broken) {}
  bool is_broken() const { return broken_; }
  const Transformer& model();
  const Tokenizer& tokenizer();

 private:
  bool broken_;
  std::optional<Transformer> model_;
  std::optional<Tokenizer> tokenizer_;
};

struct Topic {
  std::string_view name;     ///< "absorption"
  std::string_view section;  ///< of the chapter: "3.3.2"
  std::string_view title;
  Page (*tell)(Explained& with);
};

/// All of them in the chapter's order.
std::span<const Topic> topics();

}  // namespace mla::app
