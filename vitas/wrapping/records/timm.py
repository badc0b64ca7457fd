"""What follows what in the classes of timm 1.0.23 to 1.0.31."""

_QKV = "qkv: 3 h d, w; q_proj k_proj v_proj: h d, w; gate: h d, w; norm: h d; q_norm k_norm: d; proj: w, h d; num_heads = h"
_BIASES = "q_bias k_bias v_bias: h d"
_MODEL = "embed_dim num_features head_hidden_size = w; rows blocks"
_VIT = "patch_embed.proj: w, _, _, _; patch_embed.norm norm_pre norm fc_norm: w; cls_token reg_token pos_embed: _, _, w; "
_VIT += _MODEL
_SWIN = "patch_embed.proj: w0, _, _, _; patch_embed.norm: w0; stages layers; rows layers.*.blocks; norm: w; head.fc: _, w;"
_SWIN += " num_features head_hidden_size head.in_features head.num_features = w; embed_dim = w0"
_SWIN_STAGE = "depth = n; dim = u if downsample; dim = w unless downsample; out_dim = w"
_BLOCK = "norm1 norm2 ls1 ls2: w; gamma_1 gamma_2: w"
_POSITIONS = "rel_pos.relative_position_bias_table: _, h; rel_pos.mlp.fc2: h, _; whole rel_pos.mlp; rel_pos.num_heads = h"
_POSITIONS += "; rel_pos.bias_shape = _, _, h"
_POSITIONS_TF = "rel_pos.relative_position_bias_table: h, _, _; rel_pos.bias_shape = h, _, _; rel_pos.num_heads = h"
_POSITIONS = "; ".join(
    [f"{entry} unless rel_pos.height_lookup" for entry in _POSITIONS.split("; ")]
    + [f"{entry} if rel_pos.height_lookup" for entry in _POSITIONS_TF.split("; ")]
)

_MODELS = {
    "vision_transformer.VisionTransformer": f"{_VIT}; head: _, w; fixed w unless patch_embed.proj",
    "deit.VisionTransformerDistilled": f"{_VIT}; dist_token: _, _, w; head head_dist: _, w",
    "twins.Twins": "stages patch_embeds blocks pos_block; rows blocks.*; norm: w; head: _, w; embed_dims = w*; depths = n*;"
    " num_features head_hidden_size = w",
    "eva.Eva": f"{_VIT}; head: _, w; whole rope if rope_mixed; fixed h n if rope_mixed",
    "swin_transformer.SwinTransformer": _SWIN,
    "swin_transformer_v2.SwinTransformerV2": _SWIN,
    "beit.Beit": f"{_VIT}; head: _, w",
    "qwen3_vit.Qwen3VitEncoder": "patch_embed.proj: w, _, _, _; pos_embed: _, _, w; merger.norm: w; merger.fc1: _, 4 w;"
    " merger.fc2: _, _; embed_dim num_features = w; head_hidden_size = w unless merger; rows blocks",
    "qwen3_vit.Qwen3VitClassifier": "norm: w unless encoder.merger; head: _, w unless encoder.merger; head: _, _ if"
    " encoder.merger; embed_dim = w; num_features head_hidden_size = w unless encoder.merger; rows encoder.blocks",
    "deepseek_vit.DeepseekVitEncoder": "patch_embed.proj: w, _, _, _; norm: w; aligner.fc1: _, w e; aligner.fc2: _, _;"
    " embed_dim num_features = w; head_hidden_size = w unless aligner; rows blocks",
    "deepseek_vit.DeepseekVitClassifier": "norm: w unless encoder.aligner; head: _, w unless encoder.aligner; head: _, _ if"
    " encoder.aligner; embed_dim = w; num_features head_hidden_size = w unless encoder.aligner; rows encoder.blocks",
    "cait.Cait": f"{_VIT}; head: _, w",
    "vision_transformer_relpos.VisionTransformerRelPos": f"{_VIT}; head: _, w; whole shared_rel_pos if shared_rel_pos;"
    " fixed h if shared_rel_pos",
    "xcit.Xcit": "patch_embed.proj.-1.0: w, _, _, _; patch_embed.proj.-1.1: w; whole patch_embed.proj; cls_token: _, _, w;"
    f" norm: w; head: _, w; {_MODEL}",
    "pvt_v2.PyramidVisionTransformerV2": "patch_embed.proj: w0, _, _, _; patch_embed.norm: w0; stages stages;"
    " rows stages.*.blocks; head: _, w; num_features head_hidden_size = w; depths = n*",
    "metaformer.MetaFormer": "stem.conv: w0, _, _, _; stem.norm: w0; stages stages; rows stages.*.blocks; head.norm: w;"
    " head.fc: _, w unless head.fc.fc1; head.fc.fc1: _, w; whole head.fc; num_features head_hidden_size = w",
    "maxxvit.MaxxVit": "fixed w; whole stem norm head; stages stages; rows stages.*.blocks",
    "pit.PoolingVisionTransformer": "fixed w; whole patch_embed norm head head_dist; pos_embed: _, _, _, _;"
    " cls_token: _, _, _; stages transformers; rows transformers.*.blocks",
    "levit.Levit": "fixed w; whole stem head; stages stages; rows stages.*.blocks",
    "levit.LevitDistilled": "fixed w; whole stem head head_dist; stages stages; rows stages.*.blocks",
    "tiny_vit.TinyVit": "fixed w; whole patch_embed head; stages stages; rows stages.*.blocks; depths = n*",
    "mvitv2.MultiScaleVit": "fixed w; whole patch_embed norm head; cls_token pos_embed: _, _, _; stages stages;"
    " rows stages.*.blocks; depths = n*",
    "crossvit.CrossVit": "fixed w; whole patch_embed norm head; rows blocks; cls_token_0 cls_token_1: _, _, _;"
    " pos_embed_0 pos_embed_1: _, _, _",
    "volo.VOLO": "fixed w h n; whole patch_embed post_network aux_head norm head; rows network; cls_token: _, _, _;"
    " pos_embed: _, _, _, _",
    "hiera.Hiera": "fixed w n; whole patch_embed head; rows blocks; pos_embed pos_embed_win: _, _, _, _;"
    " pos_embed_spatial pos_embed_temporal: _, _, _",
    "hieradet_sam2.HieraDet": "fixed w n; whole patch_embed head; pos_embed pos_embed_window: _, _, _, _; rows blocks",
    "naflexvit.NaFlexVit": f"norm_pre norm fc_norm: w; head: _, w; {_MODEL}",
    "vision_transformer_sam.VisionTransformerSAM": "patch_embed.proj: w, _, _, _; pos_embed: _, _, _, w; norm: w;"
    " neck.0: _, w, _, _; neck.1 neck.3: _; neck.2: _, _, _, _; head.fc: _, _; embed_dim = w; rows blocks",
}

_PARTS = {
    "vision_transformer.Block": _BLOCK,
    "vision_transformer.ResPostBlock": _BLOCK,
    "vision_transformer.ParallelThingsBlock": "attns.0.norm attns.1.norm ffns.0.norm ffns.1.norm: w;"
    " attns.0.ls attns.1.ls ffns.0.ls ffns.1.ls: w",
    "twins.Block": _BLOCK,
    "twins.LocallyGroupedAttn": "qkv: 3 h d, w; proj: w, h d; num_heads = h; dim = w",
    "twins.GlobalSubSampleAttn": "q: h d, w; kv: 2 h d, w; proj: w, h d; sr: w, w, _, _; norm: w; num_heads = h; dim = w",
    "twins.PosConv": "proj.0: w, _, _, _",
    "twins.PatchEmbed": "proj: w, u, _, _; norm: w",
    "eva.EvaAttention": f"{_QKV}; {_BIASES}",
    "eva.EvaBlock": _BLOCK,
    "eva.EvaBlockPostNorm": _BLOCK,
    "swin_transformer.WindowAttention": f"{_QKV}; relative_position_bias_table: _, h; dim = w",
    "swin_transformer.SwinTransformerBlock": f"{_BLOCK}; dim = w",
    "swin_transformer.PatchMerging": "norm: 4 u; reduction: w, 4 u; dim = u; out_dim = w",
    "swin_transformer.SwinTransformerStage": _SWIN_STAGE,
    "swin_transformer_v2.WindowAttention": f"{_QKV}; {_BIASES}; logit_scale: h, _, _; cpb_mlp.0: _, _;"
    " cpb_mlp.2: h, _; dim = w",
    "swin_transformer_v2.SwinTransformerV2Block": f"{_BLOCK}; attn.proj: w, h d; num_heads = h; dim = w",
    "swin_transformer_v2.PatchMerging": "norm: w; reduction: w, 4 u; dim = u; out_dim = w",
    "swin_transformer_v2.SwinTransformerV2Stage": _SWIN_STAGE,
    "beit.Attention": f"{_QKV}; {_BIASES}; relative_position_bias_table: _, h",
    "beit.Block": _BLOCK,
    "cait.TalkingHeadAttn": f"{_QKV}; proj_l proj_w: h, h",
    "cait.ClassAttn": "q k v: h d, w; proj: w, h d; num_heads = h",
    "cait.LayerScaleBlock": _BLOCK,
    "cait.LayerScaleBlockClassAttn": _BLOCK,
    "vision_transformer_relpos.RelPosAttention": f"{_QKV}; {_POSITIONS}",
    "vision_transformer_relpos.RelPosBlock": _BLOCK,
    "vision_transformer_relpos.ResPostRelPosBlock": _BLOCK,
    "xcit.XCA": f"{_QKV}; temperature: h, _, _",
    "xcit.XCABlock": "norm1 norm2 norm3: w; gamma1 gamma2 gamma3: w",
    "xcit.LPI": "conv1 conv2: w, _, _, _; bn: w",
    "xcit.ClassAttentionBlock": "norm1 norm2: w; gamma1 gamma2: w",
    "xcit.PositionalEncodingFourier": "token_projection: w, _, _, _; dim = w",
    "pvt_v2.Attention": "q: h d, w; kv: 2 h d, w; proj: w, h d; sr: w, w, _, _ unless pool; norm: w; num_heads = h; dim = w",
    "pvt_v2.Block": _BLOCK,
    "pvt_v2.MlpWithDepthwiseConv": "fc1: m, w; dwconv: m, _, _, _; fc2: w, m",
    "pvt_v2.PyramidVisionTransformerStage": "downsample.proj: w, u, _, _; downsample.norm: w; norm: w",
    "metaformer.Attention": f"{_QKV}; attention_dim = h d",
    "metaformer.SepConv": "pwconv1: m, w, _, _; act1.scale act1.bias act2.scale act2.bias: _; dwconv: m, _, _, _;"
    " pwconv2: w, m, _, _",
    "metaformer.StarReLU": "scale bias: _",
    "metaformer.Scale": "scale: w",
    "metaformer.Downsampling": "norm: u; conv: w, u, _, _",
    "metaformer.MetaFormerBlock": "norm1 norm2: w",
    "maxxvit.Attention2d": f"qkv: 3 h d, _, _, _ unless head_first; qkv: h e, _, _, _ if head_first; proj: _, h d, _, _;"
    f" num_heads = h; {_POSITIONS}",
    "maxxvit.AttentionCl": f"qkv: 3 h d, _ unless head_first; qkv: h e, _ if head_first; proj: _, h d; num_heads = h;"
    f" {_POSITIONS}",
    "maxxvit.TransformerBlock2d": "whole shortcut norm1 norm2 ls1 ls2",
    "maxxvit.PartitionAttention2d": "whole norm1 norm2 ls1 ls2",
    "maxxvit.PartitionAttentionCl": "whole norm1 norm2 ls1 ls2",
    "maxxvit.MaxxVitBlock": "whole conv",
    "maxxvit.MbConvBlock": "whole .",
    "maxxvit.ConvNeXtBlock": "whole .",
    "pit.Transformer": "whole pool norm",
    "levit.Attention": "qkv.linear: h e, _, _, _; qkv.bn: h e; proj.ln.linear: _, h d, _, _; whole proj;"
    " attention_biases: h, _; num_heads = h; val_attn_dim = h d; key_attn_dim = h k",
    "levit.LevitMlp": "ln1.linear: m, w, _, _; ln1.bn: m; ln2.linear: w, m, _, _; whole ln2",
    "levit.AttentionDownsample": "whole .",
    "tiny_vit.Attention": "norm: _; qkv: h e, _; proj: _, h d; attention_biases: h, _; num_heads = h; out_dim = h d",
    "tiny_vit.NormMlp": "norm: w; fc1: m, w; fc2: w, m",
    "tiny_vit.TinyVitBlock": "attn.proj: _, h d; num_heads = h; whole local_conv",
    "tiny_vit.TinyVitStage": "depth = n; whole downsample",
    "tiny_vit.MBConv": "whole .",
    "mvitv2.MultiScaleAttention": "qkv: 3 h d, _; proj: _, h d; rel_pos_h rel_pos_w: _, _; num_heads = h;"
    " dim_out = h d; norm_q norm_k norm_v: _ unless unshared; pool_q pool_k pool_v: _, _, _, _ unless unshared",
    "mvitv2.MultiScaleBlock": "mlp.fc1: m, _; mlp.fc2: _, m; whole mlp norm1 norm2 shortcut_proj_attn shortcut_proj_mlp",
    "crossvit.MultiScaleBlock": "whole projs fusion revert_projs",
    "volo.Outlooker": "whole norm1 attn norm2",
    "volo.Transformer": "whole norm1 attn norm2",
    "volo.Downsample": "whole .",
    "hiera.MaskUnitAttention": "qkv: 3 h d, _; proj: _, h d; heads = h; dim_out = h d",
    "hiera.HieraBlock": "whole norm1 norm2 proj ls1 ls2",
    "hieradet_sam2.MultiScaleAttention": "qkv: 3 h d, _; proj: _, h d; num_heads = h; dim_out = h d",
    "hieradet_sam2.MultiScaleBlock": "whole norm1 norm2 proj ls1 ls2",
    "deepseek_vit.DeepseekVitBlock": _BLOCK,
    "naflexvit.NaFlexEmbeds": "proj: w, _, _, _; norm: w; cls_token reg_token: _, _, w; pos_embed: _, _, _, w;"
    " pos_embed_y pos_embed_x: _, _, w; embed_dim = w",
    "vision_transformer_sam.Attention": f"{_QKV}; rel_pos_h rel_pos_w: _, d",
    "vision_transformer_sam.Block": _BLOCK,
    "vitamin.GeGluMlp": "norm: w; w0 w1: m, w; w2: w, m",
}

_LAYERS = {
    "attention.Attention": f"{_QKV}; attn_dim = h d",
    "attention.AttentionRope": f"{_QKV}; num_kv_heads = h; attn_dim kv_dim = h d",
    "mlp.Mlp": "fc1: m, w, _, _; norm: m; fc2: w, m, _, _",
    "mlp.ConvMlp": "fc1: m, w, _, _; norm: m; fc2: w, m, _, _",
    "mlp.GluMlp": "fc1: 2 m, w; norm: m; fc2: w, m",
    "mlp.SwiGLU": "fc1_g fc1_x: m, w; norm: m; fc2: w, m",
    "hybrid_embed.HybridEmbed": "proj: w, _, _, _; whole backbone",
    "attention_pool.AttentionPoolLatent": "latent: _, _, w; q proj: w, w; kv: 2 w, w; norm pre_norm post_norm: w;"
    " q_norm k_norm: d; num_heads = w / head_dim; latent_dim out_features = w",
    "attention_pool.AttentionPoolPrr": "pre_norm post_norm: w; q_norm k_norm: d; num_heads = w / head_dim; out_features = w",
}

_OURS = {
    "vitas.plain.WindowAttention": "qkv: 3 h d, w; proj: w, h d; num_heads = h",
    "vitas.plain.SubsampledAttention": "q: h d, w; kv: 2 h d, w; proj: w, h d; sr: w, w, _, _; norm: w; num_heads = h",
    "vitas.plain.Attention": _QKV,
    "vitas.plain.BiasedAttention": f"{_QKV}; {_BIASES}; relative_position_bias_table: _, h",
    "vitas.plain.CosineAttention": f"{_QKV}; {_BIASES}; logit_scale: h, _, _; cpb_mlp.0: _, _; cpb_mlp.2: h, _",
    "vitas.plain.RelativeAttention": f"{_QKV}; {_POSITIONS}",
    "vitas.plain.CrossCovarianceAttention": f"{_QKV}; temperature: h, _, _",
    "vitas.plain.TalkingHeadsAttention": f"{_QKV}; proj_l proj_w: h, h",
    "vitas.plain.ClassAttention": "q k v: h d, w; proj: w, h d; num_heads = h",
}

TIMM: dict[str, str] = {
    **{f"timm.models.{name}": record for name, record in (_MODELS | _PARTS).items()},
    **{f"timm.layers.{name}": record for name, record in _LAYERS.items()},
    **_OURS,
}
