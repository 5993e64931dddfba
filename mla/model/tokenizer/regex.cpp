#define PCRE2_CODE_UNIT_WIDTH 8
#include "mla/model/tokenizer/regex.h"

#include <pcre2.h>

#include <cstdint>

#include "mla/core/error.h"
#include "mla/core/utf8.h"
#include "mla/model/tokenizer/fields.h"
#include "mla/model/tokenizer/regex_unicode.h"

namespace mla {
namespace {

struct Free {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
  void operator()(pcre2_compile_context* context) const { pcre2_compile_context_free(context); }
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

PCRE2_SPTR units(std::string_view text) {
  static constexpr char nothing = 0;
  return reinterpret_cast<PCRE2_SPTR>(text.empty() ? &nothing : text.data());
}

std::string message_of(int code) {
  PCRE2_UCHAR text[256] = {};
  pcre2_get_error_message(code, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

}  // namespace

struct Regex::Code {
  std::string pattern;  // as the file has it
  std::string place;
  std::unique_ptr<pcre2_match_context, Free> limits;

  /// One pattern compiled.
  struct Program {
    std::unique_ptr<pcre2_code, Free> code;
    bool jit = false;
  };
  Program common;    // for texts without characters that PCRE2 may not know
  Program complete;  // for all texts

  Program compile(bool with_new) const;

  const Program& program_for(std::string_view subject) const {
    return has_new_character(subject) ? complete : common;
  }

  /// The leftmost match at or behind `from`; false if there is none.
  bool find(const Program& program, std::string_view subject, std::size_t from,
            pcre2_match_data* data) const {
    const pcre2_code* code = program.code.get();
    int found = PCRE2_ERROR_JIT_STACKLIMIT;
    if (program.jit)
      found = pcre2_jit_match(code, units(subject), subject.size(), from, 0, data, limits.get());
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) {  // the interpreter keeps its stack on the heap
      found = pcre2_match(code, units(subject), subject.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data,
                          limits.get());
    }
    if (found == PCRE2_ERROR_NOMATCH) return false;
    if (found < 0) {
      fail("{}: regular expression {} gives up on a text of {} bytes: {}", place, shown_text(pattern),
           subject.size(), message_of(found));
    }
    return true;
  }

  std::unique_ptr<pcre2_match_data, Free> match_data(const Program& program) const {
    std::unique_ptr<pcre2_match_data, Free> data(
        pcre2_match_data_create_from_pattern(program.code.get(), nullptr));
    require(data != nullptr, "{}: out of memory", place);
    return data;
  }
};

Regex::Code::Program Regex::Code::compile(bool with_new) const {
  const std::string translated = regex_to_pcre2(pattern, with_new, place);
  const std::unique_ptr<pcre2_compile_context, Free> context(pcre2_compile_context_create(nullptr));
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  constexpr std::uint32_t options =
      PCRE2_UTF | PCRE2_UCP | PCRE2_NO_UTF_CHECK | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
  int error = 0;
  PCRE2_SIZE at = 0;
  Program program;
  program.code.reset(
      pcre2_compile(units(translated), translated.size(), options, &error, &at, context.get()));
  if (program.code == nullptr) {
    fail("{}: regular expression {} is broken: {}", place, shown_text(pattern), message_of(error));
  }
  program.jit = pcre2_jit_compile(program.code.get(), PCRE2_JIT_COMPLETE) == 0;
  return program;
}

Regex::Regex(std::string_view pattern, const std::string& place) {
  auto made = std::make_shared<Code>();
  made->pattern = pattern;
  made->place = place;
  made->common = made->compile(false);
  made->complete = made->compile(true);
  made->limits.reset(pcre2_match_context_create(nullptr));
  pcre2_set_match_limit(made->limits.get(), 10'000'000);
  pcre2_set_heap_limit(made->limits.get(), 512 * 1024);  // KiB
  code_ = std::move(made);
}

Regex Regex::literal(std::string_view text, const std::string& place) {
  std::string pattern;
  for (const char c : text) {
    if (std::string_view("\\^$.[]|()?*+{}-&#").find(c) != std::string_view::npos) pattern += '\\';
    pattern += c;
  }
  return Regex(pattern, place);
}

void Regex::find_all(std::string_view subject, std::vector<Span>& matches) const {
  const Code::Program& program = code_->program_for(subject);
  const auto data = code_->match_data(program);
  const PCRE2_SIZE* found = pcre2_get_ovector_pointer(data.get());
  std::size_t from = 0;
  std::size_t last_end = std::string_view::npos;
  while (from <= subject.size() && code_->find(program, subject, from, data.get())) {
    const Span match{found[0], found[1]};
    if (match.begin == match.end && match.end == last_end) {
      from = match.end;
      if (from == subject.size()) return;
      utf8_next(subject, from);
      continue;
    }
    matches.push_back(match);
    from = last_end = match.end;
  }
}

bool Regex::matches(std::string_view subject) const {
  const Code::Program& program = code_->program_for(subject);
  const auto data = code_->match_data(program);
  return code_->find(program, subject, 0, data.get());
}

}  // namespace mla
