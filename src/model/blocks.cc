#include "model/blocks.h"

namespace tendon {

Heads heads_of(const VisionConfig& c) { return {c.heads, c.heads, c.width / c.heads}; }
Heads heads_of(const GemmaConfig& c) { return {c.heads, c.kv_heads, c.head_dim}; }

Tensor vision_attention(Ops& ops, const VisionBlock& w, const Tensor& x, const VisionInput& in,
                        const Tensor& residual) {
  const Tensor n = ops.layer_norm(x, w.norm1.scale, w.norm1.shift);
  const Qkv qkv = ops.qkv(n, w.qkv, in.heads);
  const Tensor a = ops.attention(qkv.q, qkv.k, qkv.v, in.heads, in.visible, in.images);
  return ops.linear(a, w.output, {.residual = residual});
}

Tensor vision_mlp(Ops& ops, const VisionBlock& w, const Tensor& h, const Tensor& residual) {
  const Tensor m = ops.layer_norm(h, w.norm2.scale, w.norm2.shift);
  const Tensor up = ops.linear(m, w.up, {.activation = Activation::gelu_tanh});
  return ops.linear(up, w.down, {.residual = residual});
}

Tensor vision_block(Ops& ops, const VisionBlock& w, const Tensor& x, const VisionInput& in) {
  const Tensor h = vision_attention(ops, w, x, in, x);
  return vision_mlp(ops, w, h, h);
}

Tensor gemma_attention(Ops& ops, const GemmaBlock& w, const Heads& heads, const Tensor& x,
                       LayerKv& kv, const BlockInput& in, const Epilogue& after) {
  const Tensor n = ops.rms_norm(x, in.attention.scale, in.attention.shift);
  const Qkv qkv = ops.qkv(n, w.qkv, heads, in.first);
  ops.write_rows(kv.keys, qkv.k, in.first);
  ops.write_rows(kv.values, qkv.v, in.first);
  const Tensor a = ops.attention(qkv.q, kv.keys, kv.values, heads, in.visible);
  return ops.linear(a, w.output, after);
}

Tensor gemma_mlp(Ops& ops, const GemmaBlock& w, const Tensor& h, const BlockInput& in,
                 const Epilogue& after) {
  const Tensor m = ops.rms_norm(h, in.mlp.scale, in.mlp.shift);
  return ops.linear(ops.gated_linear(m, w.gated), w.down, after);
}

Tensor gemma_block(Ops& ops, const GemmaBlock& w, const Heads& heads, const Tensor& x, LayerKv& kv,
                   const BlockInput& in) {
  const Tensor h =
      gemma_attention(ops, w, heads, x, kv, in, {.residual = x, .gate = in.attention.gate});
  return gemma_mlp(ops, w, h, in, {.residual = h, .gate = in.mlp.gate});
}

void probe_vision_block(Ops& ops, const VisionBlock& w, const Tensor& x, const VisionInput& in,
                        const Probe& probe) {
  const Tensor h = vision_attention(ops, w, x, in, x);
  probe("image.layer.0.norm1", ops.layer_norm(x, w.norm1.scale, w.norm1.shift));
  probe("image.layer.0.attn", vision_attention(ops, w, x, in, {}));
  probe("image.layer.0.norm2", ops.layer_norm(h, w.norm2.scale, w.norm2.shift));
  probe("image.layer.0.mlp", vision_mlp(ops, w, h, {}));
}

void probe_gemma_block(Ops& ops, const GemmaBlock& w, const Heads& heads, const Tensor& x,
                       LayerKv& kv, const BlockInput& in, const std::string& stage,
                       const Probe& probe) {
  const Tensor n = ops.rms_norm(x, in.attention.scale, in.attention.shift);
  const Qkv before_rotary = ops.qkv(n, w.qkv, heads);
  const Tensor h =
      gemma_attention(ops, w, heads, x, kv, in, {.residual = x, .gate = in.attention.gate});
  probe(stage + ".norm1", n);
  probe(stage + ".q", before_rotary.q);
  probe(stage + ".k", before_rotary.k);
  probe(stage + ".v", before_rotary.v);
  probe(stage + ".attn", gemma_attention(ops, w, heads, x, kv, in, {}));
  probe(stage + ".norm2", ops.rms_norm(h, in.mlp.scale, in.mlp.shift));
  probe(stage + ".mlp", gemma_mlp(ops, w, h, in, {}));
  if (in.attention.gate) probe(stage + ".gate1", in.attention.gate);
  if (in.mlp.gate) probe(stage + ".gate2", in.mlp.gate);
}

}  // namespace tendon
