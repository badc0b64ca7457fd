"""What follows what in the classes of timm 1.0.23 to 1.0.31."""

_QKV = "qkv: 3 h d, w; q_proj k_proj v_proj: h d, w; gate: h d, w; norm: h d; q_norm k_norm: d; proj: w, h d; num_heads = h"
_MODEL = "embed_dim num_features head_hidden_size = w; rows blocks"
_VIT = f"patch_embed.proj: w, _, _, _; patch_embed.norm norm_pre norm fc_norm: w; cls_token reg_token pos_embed: _, _, w; {_MODEL}"
_BLOCK = "norm1 norm2 ls1 ls2: w; gamma_1 gamma_2: w"

_MODELS = {
    "vision_transformer.VisionTransformer": f"{_VIT}; head: _, w",
    "deit.VisionTransformerDistilled": f"{_VIT}; dist_token: _, _, w; head head_dist: _, w",
    "twins.Twins": "stages patch_embeds blocks pos_block; rows blocks.*; norm: w; head: _, w; embed_dims = w*; depths = n*;"
    " num_features head_hidden_size = w",
}

_PARTS = {
    "vision_transformer.Block": _BLOCK,
    "vision_transformer.ResPostBlock": _BLOCK,
    "twins.Block": _BLOCK,
    "twins.LocallyGroupedAttn": "qkv: 3 h d, w; proj: w, h d; num_heads = h; dim = w",
    "twins.GlobalSubSampleAttn": "q: h d, w; kv: 2 h d, w; proj: w, h d; sr: w, w, _, _; norm: w; num_heads = h; dim = w",
    "twins.PosConv": "proj.0: w, _, _, _",
    "twins.PatchEmbed": "proj: w, u, _, _; norm: w",
}

_LAYERS = {
    "attention.Attention": f"{_QKV}; attn_dim = h d",
    "mlp.Mlp": "fc1: m, w; norm: m; fc2: w, m",
    "mlp.GluMlp": "fc1: 2 m, w; norm: m; fc2: w, m",
    "mlp.SwiGLU": "fc1_g fc1_x: m, w; norm: m; fc2: w, m",
    "attention_pool.AttentionPoolLatent": "latent: _, _, w; q proj: w, w; kv: 2 w, w; norm pre_norm post_norm: w;"
    " q_norm k_norm: d; num_heads = w / head_dim; latent_dim out_features = w",
    "attention_pool.AttentionPoolPrr": "pre_norm post_norm: w; q_norm k_norm: d; num_heads = w / head_dim; out_features = w",
}

_OURS = {
    "vitas.plain.WindowAttention": "qkv: 3 h d, w; proj: w, h d; num_heads = h",
    "vitas.plain.SubsampledAttention": "q: h d, w; kv: 2 h d, w; proj: w, h d; sr: w, w, _, _; norm: w; num_heads = h",
}

TIMM: dict[str, str] = {
    **{f"timm.models.{name}": record for name, record in (_MODELS | _PARTS).items()},
    **{f"timm.layers.{name}": record for name, record in _LAYERS.items()},
    **_OURS,
}
