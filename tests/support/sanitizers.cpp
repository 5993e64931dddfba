// What the sanitizers don't know, asked of this program by name when it starts under them.

extern "C" const char* __lsan_default_suppressions();

/// libomp never frees the teams of nested regions.
extern "C" const char* __lsan_default_suppressions() {
  return "leak:libomp.so";
}
