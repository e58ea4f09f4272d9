// The function table of one instruction set.
#pragma once

#include <utility>

#include "backends/cpu/products.h"
#include "backends/cpu/row_ops.h"

namespace tendon::cpu {
namespace {

template <class S>
constexpr SimdKernels kKernels = {
    .name = S::kName,
    .tile_rows = {S::tile_rows(Form::f32), S::tile_rows(Form::bf16), S::tile_rows(Form::int8)},
    .tile_words = {S::tile_words(Form::f32), S::tile_words(Form::bf16), S::tile_words(Form::int8)},
    .biased_int8 = S::tile_words(Form::int8) == 1,
    .int8_method = S::kInt8Method,
    .tiles = {kTiles<S, Form::f32>.by_rows, kTiles<S, Form::bf16>.by_rows,
              kTiles<S, Form::int8>.by_rows},
    .pack = &pack<S>,
    .largest = &largest<S>,
    .widen = &widen<S>,
    .interleave = &interleave<S>,
    .finish = &finish<S>,
    .softmax = &softmax<S>,
    .scale_row = &scale_row<S>,
    .rms_norm = &rms_norm<S>,
    .layer_norm = &layer_norm<S>,
    .rotate = &rotate<S>,
    .peak = &peak<S>};

}  // namespace
}  // namespace tendon::cpu
