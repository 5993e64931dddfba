#pragma once
#include <CLI/CLI.hpp>
#include <functional>

#include "apps/commands.h"

namespace mla::app {

/// Options of the commands that train.
struct TrainingCommands {
  TrainOptions train;
  CompareOptions compare;
};

/// Adds the commands to the program; the one that is given becomes `run`.
void add_training_commands(CLI::App& app, TrainingCommands& options, std::function<void()>& run);

}  // namespace mla::app
