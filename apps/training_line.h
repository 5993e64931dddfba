#pragma once
#include <string>

#include "mla/train/run.h"

namespace mla::app {

/// Steps until the end, with progress on a terminal, each line beginning with `name`. On Ctrl-C the state is
/// written, and an Error says so.
void train_to_the_end(TrainingRun& run, const std::string& name);

}  // namespace mla::app
