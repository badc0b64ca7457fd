"""What follows what in the vision towers of Hugging Face's transformers 5.20 to 5.24."""

_ATTENTION = "q_proj k_proj v_proj: h d, w; o_proj out_proj: w, h d; num_attention_heads num_heads = h; embed_dim = w"
_MLP = "fc1 up_proj gate_proj: m, w; fc2 down_proj: w, m; hidden_size = w; intermediate_size = m"
_LAYER = "layernorm_before layernorm_after norm1 norm2 layer_norm1 layer_norm2 layer_scale1 layer_scale2: w; embed_dim = w"
_EMBEDDINGS = (
    "cls_token distillation_token register_tokens position_embeddings: _, _, w; patch_embeddings.projection: w, _, _, _"
)
_SWIN = "norm: w0; patch_embeddings.projection: w0, _, _, _; mask_token position_embeddings: _, _, w0"
_CLIP = "class_embedding: w; patch_embedding: w, _, _, _; position_embedding: _, w; embed_dim = w"

_CLASSES = {
    "vit": {
        "ViTAttention": _ATTENTION,
        "ViTMLP": _MLP,
        "ViTLayer": _LAYER,
        "ViTEmbeddings": f"{_EMBEDDINGS}; mask_token: _, _, w",
        "ViTPooler": "dense: _, w",
        "ViTModel": "layernorm: w; rows layers",
        "ViTForImageClassification": "classifier: _, w; rows vit.layers",
        "ViTForMaskedImageModeling": "decoder.0: _, w, _, _; rows vit.layers",
    },
    "deit": {
        "DeiTAttention": _ATTENTION,
        "DeiTMLP": _MLP,
        "DeiTLayer": _LAYER,
        "DeiTEmbeddings": f"{_EMBEDDINGS}; mask_token: _, _, w",
        "DeiTPooler": "dense: _, w",
        "DeiTModel": "layernorm: w; rows layers",
        "DeiTForImageClassification": "classifier: _, w; rows deit.layers",
        "DeiTForImageClassificationWithTeacher": "cls_classifier distillation_classifier: _, w; rows deit.layers",
        "DeiTForMaskedImageModeling": "decoder.0: _, w, _, _; rows deit.layers",
    },
    "dinov2": {
        "Dinov2Attention": _ATTENTION,
        "Dinov2MLP": _MLP,
        "Dinov2SwiGLUFFN": _MLP,
        "Dinov2Layer": _LAYER,
        "Dinov2Embeddings": f"{_EMBEDDINGS}; mask_token: _, w",
        "Dinov2Model": "layernorm: w; rows encoder.layer",
        "Dinov2ForImageClassification": "classifier: _, 2 w; rows dinov2.encoder.layer",
    },
    "dinov2_with_registers": {
        "Dinov2WithRegistersAttention": _ATTENTION,
        "Dinov2WithRegistersMLP": _MLP,
        "Dinov2WithRegistersSwiGLUFFN": _MLP,
        "Dinov2WithRegistersLayer": _LAYER,
        "Dinov2WithRegistersEmbeddings": f"{_EMBEDDINGS}; mask_token: _, w",
        "Dinov2WithRegistersModel": "layernorm: w; rows encoder.layer",
        "Dinov2WithRegistersForImageClassification": "classifier: _, 2 w; rows dinov2_with_registers.encoder.layer",
    },
    "dinov3_vit": {
        "DINOv3ViTAttention": _ATTENTION,
        "DINOv3ViTMLP": _MLP,
        "DINOv3ViTGatedMLP": _MLP,
        "DINOv3ViTLayer": _LAYER,
        "DINOv3ViTEmbeddings": "cls_token mask_token register_tokens: _, _, w; patch_embeddings: w, _, _, _",
        "DINOv3ViTModel": "norm: w; rows model.layer",
    },
    "clip": {
        "CLIPAttention": _ATTENTION,
        "CLIPMLP": _MLP,
        "CLIPEncoderLayer": _LAYER,
        "CLIPVisionEmbeddings": _CLIP,
        "CLIPVisionModel": "pre_layrnorm post_layernorm: w; rows encoder.layers",
        "CLIPVisionModelWithProjection": "visual_projection: _, w; rows vision_model.encoder.layers",
        "CLIPForImageClassification": "classifier: _, w; rows vision_model.encoder.layers",
    },
    "siglip": {
        "SiglipAttention": _ATTENTION,
        "SiglipMLP": _MLP,
        "SiglipEncoderLayer": _LAYER,
        "SiglipVisionEmbeddings": _CLIP,
        "SiglipMultiheadAttentionPoolingHead": "probe: _, _, w; layernorm: w",
        "SiglipVisionModel": "post_layernorm: w; rows encoder.layers",
        "SiglipForImageClassification": "classifier: _, w; rows vision_model.encoder.layers",
    },
    "swin": {
        "SwinAttention": f"{_ATTENTION}; relative_position_bias.relative_position_bias_table: _, h",
        "SwinMLP": _MLP,
        "SwinLayer": _LAYER,
        "SwinPatchMerging": "norm: 4 w; reduction: v, 4 w",
        "SwinEmbeddings": _SWIN,
        "SwinModel": "layernorm: w; num_features = w; stages encoder.layers; rows encoder.layers.*.blocks",
        "SwinForImageClassification": "classifier: _, w; stages swin.encoder.layers; rows swin.encoder.layers.*.blocks",
    },
    "swinv2": {
        "Swinv2Attention": "self.query self.key self.value: h d, w; output.dense: w, h d; self.logit_scale: h, _, _;"
        " self.continuous_position_bias_mlp.0: _, _; self.continuous_position_bias_mlp.2: h, _;"
        " self.num_attention_heads = h; self.all_head_size = h d",
        "Swinv2Layer": f"{_LAYER}; intermediate.dense: m, w; output.dense: w, m",
        "Swinv2PatchMerging": "norm: v; reduction: v, 4 w; dim = w",
        "Swinv2Stage": "dim = w",
        "Swinv2Embeddings": _SWIN,
        "Swinv2Model": "layernorm: w; num_features = w; stages encoder.layers; rows encoder.layers.*.blocks",
        "Swinv2ForImageClassification": "classifier: _, w; stages swinv2.encoder.layers;"
        " rows swinv2.encoder.layers.*.blocks",
    },
}

TRANSFORMERS: dict[str, str] = {
    **{
        f"transformers.models.{family}.modeling_{family}.{name}": record
        for family, classes in _CLASSES.items()
        for name, record in classes.items()
    },
    "torch.nn.modules.activation.MultiheadAttention": "in_proj_weight: 3 w, w; in_proj_bias: 3 w; out_proj: w, w;"
    " embed_dim kdim vdim = w; num_heads = w / head_dim",
}
