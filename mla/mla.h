#pragma once
/// All of the library.

#include "mla/attention/attention.h"
#include "mla/attention/mla.h"
#include "mla/cache/kv_cache.h"
#include "mla/core/cpu.h"
#include "mla/core/error.h"
#include "mla/core/npy.h"
#include "mla/core/parallel.h"
#include "mla/kernels/matmul.h"
#include "mla/model/census.h"
#include "mla/model/config.h"
#include "mla/model/sampler.h"
#include "mla/model/tokenizer.h"
#include "mla/model/transformer.h"
#include "mla/position/additive.h"
#include "mla/position/rotary.h"
#include "mla/runtime/session.h"
