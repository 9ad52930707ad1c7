"""The tables of `formats`: patterns of other people's keys, and our names for them.

In each pair, the first is a regular expression for a whole key. A name of ours that ends in "#i/n"
stands for the i-th of n parts of a tensor.
"""

CRATE_RENAMES = (
    (r"pos_embedding", r"pos_embed"),
    (r"to_patch_embedding\.1\.(\w+)", r"patch_embed.norm_in.\1"),
    (r"to_patch_embedding\.2\.(\w+)", r"patch_embed.proj.\1"),
    (r"to_patch_embedding\.3\.(\w+)", r"patch_embed.norm_out.\1"),
    (r"conv1\.(\w+)", r"patch_embed.proj.\1"),
    (r"transformer\.layers\.(\d+)\.0\.norm\.(\w+)", r"blocks.\1.norm1.\2"),
    (r"transformer\.layers\.(\d+)\.0\.fn\.qkv\.(\w+)", r"blocks.\1.attn.qkv.\2"),
    (r"transformer\.layers\.(\d+)\.0\.fn\.to_out\.0\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (r"transformer\.layers\.(\d+)\.1\.norm\.(\w+)", r"blocks.\1.norm2.\2"),
    (r"transformer\.layers\.(\d+)\.1\.fn\.(weight|D|D1)", r"blocks.\1.mlp.\2"),
    (r"mlp_head\.0\.(\w+)", r"norm.\1"),
)

# The encoder's positions are called `decoder_pos_embed` there; `pos_embed` is not used.
CRATE_MAE_RENAMES = (
    (r"decoder_pos_embed", r"pos_embed"),
    (r"blocks\.(\d+)\.layers\.0\.0\.norm\.(\w+)", r"blocks.\1.norm1.\2"),
    (r"blocks\.(\d+)\.layers\.0\.0\.fn\.qkv\.(\w+)", r"blocks.\1.attn.qkv.\2"),
    (r"blocks\.(\d+)\.layers\.0\.0\.fn\.to_out\.0\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (r"blocks\.(\d+)\.layers\.0\.1\.norm\.(\w+)", r"blocks.\1.norm2.\2"),
    (r"blocks\.(\d+)\.layers\.0\.1\.fn\.weight", r"blocks.\1.mlp.weight"),
)

BLOCK_OF_JAX = r"(?:params/)?Transformer/encoderblock_(\d+)/"
ATTENTION_OF_JAX = BLOCK_OF_JAX + "MultiHeadDotProductSubspaceAttention_0/"
CRATE_JAX_RENAMES = (
    (r"(?:params/)?cls", r"cls_token"),
    (r"(?:params/)?pos_embedding", r"pos_embed"),
    (r"(?:params/)?embedding/kernel", r"patch_embed.proj.weight"),
    (r"(?:params/)?embedding/bias", r"patch_embed.proj.bias"),
    (r"(?:params/)?encoder_norm/scale", r"norm.weight"),
    (r"(?:params/)?encoder_norm/bias", r"norm.bias"),
    (BLOCK_OF_JAX + r"LayerNorm_0/scale", r"blocks.\1.norm1.weight"),
    (BLOCK_OF_JAX + r"LayerNorm_0/bias", r"blocks.\1.norm1.bias"),
    (BLOCK_OF_JAX + r"LayerNorm_1/scale", r"blocks.\1.norm2.weight"),
    (BLOCK_OF_JAX + r"LayerNorm_1/bias", r"blocks.\1.norm2.bias"),
    (ATTENTION_OF_JAX + r"proj/kernel", r"blocks.\1.attn.qkv.weight"),
    (ATTENTION_OF_JAX + r"out/kernel", r"blocks.\1.attn.proj.weight"),
    (BLOCK_OF_JAX + r"OvercompleteISTABlock_0/(D|D1)", r"blocks.\1.mlp.\2"),
    (BLOCK_OF_JAX + r"ls([12])/ls[12]", r"blocks.\1.ls\2.gamma"),
)

TOST_RENAMES = (
    (r"((?:cls_attn_)?blocks\.\d+)\.gamma([12])", r"\1.ls\2.gamma"),
    (r"(blocks\.\d+\.attn)\.to_out\.0\.(\w+)", r"\1.proj.\2"),
)

# DINOv2's training code cuts the layers into chunks; the second index counts through all of them.
CHUNKED_RENAMES = ((r"blocks\.\d+\.(\d+)\.(.+)", r"blocks.\1.\2"),)

TIMM_RENAMES = ((r"reg_token", r"register_tokens"),)

# Names of the hub's files, and those of transformers 5 in memory. The first part is the model's.
HF = r"(?:(?:vit|dinov2|dinov2_with_registers|swin)\.)?"
HF_EMBEDDINGS = HF + r"embeddings\."
HF_LAYER = HF + r"(?:encoder\.layer|encoder\.layers|layers)\.(\d+)\."
HF_VIT_RENAMES = (
    (HF_EMBEDDINGS + r"cls_token", r"cls_token"),
    (HF_EMBEDDINGS + r"position_embeddings", r"pos_embed"),
    (HF_EMBEDDINGS + r"register_tokens", r"register_tokens"),
    (HF_EMBEDDINGS + r"patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (HF + r"layernorm\.(\w+)", r"norm.\1"),
    (HF_LAYER + r"(?:layernorm_before|norm1)\.(\w+)", r"blocks.\1.norm1.\2"),
    (HF_LAYER + r"(?:layernorm_after|norm2)\.(\w+)", r"blocks.\1.norm2.\2"),
    (HF_LAYER + r"attention\.(?:attention\.query|q_proj)\.(\w+)", r"blocks.\1.attn.qkv.\2#0/3"),
    (HF_LAYER + r"attention\.(?:attention\.key|k_proj)\.(\w+)", r"blocks.\1.attn.qkv.\2#1/3"),
    (HF_LAYER + r"attention\.(?:attention\.value|v_proj)\.(\w+)", r"blocks.\1.attn.qkv.\2#2/3"),
    (HF_LAYER + r"attention\.(?:output\.dense|o_proj)\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (HF_LAYER + r"(?:intermediate\.dense|mlp\.fc1)\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (HF_LAYER + r"(?:output\.dense|mlp\.fc2)\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (HF_LAYER + r"mlp\.weights_in\.(\w+)", r"blocks.\1.mlp.w12.\2"),
    (HF_LAYER + r"mlp\.gate_proj\.(\w+)", r"blocks.\1.mlp.w12.\2#0/2"),
    (HF_LAYER + r"mlp\.up_proj\.(\w+)", r"blocks.\1.mlp.w12.\2#1/2"),
    (HF_LAYER + r"mlp\.(?:weights_out|down_proj)\.(\w+)", r"blocks.\1.mlp.w3.\2"),
    (HF_LAYER + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
)

HF_STAGE = HF + r"encoder\.layers\.(\d+)\."
HF_WINDOW = HF_STAGE + r"blocks\.(\d+)\."
HF_SWIN_RENAMES = (
    (HF_EMBEDDINGS + r"patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (HF_EMBEDDINGS + r"norm\.(\w+)", r"patch_embed.norm.\1"),
    (HF + r"layernorm\.(\w+)", r"norm.\1"),
    (HF_STAGE + r"downsample\.(.+)", r"layers.\1.downsample.\2"),
    *(
        (HF_WINDOW + theirs, r"layers.\1.blocks.\2." + ours)
        for theirs, ours in (
            (r"layernorm_before\.(\w+)", r"norm1.\3"),
            (r"layernorm_after\.(\w+)", r"norm2.\3"),
            (r"attention\.(?:self\.query|q_proj)\.(\w+)", r"attn.qkv.\3#0/3"),
            (r"attention\.(?:self\.key|k_proj)\.(\w+)", r"attn.qkv.\3#1/3"),
            (r"attention\.(?:self\.value|v_proj)\.(\w+)", r"attn.qkv.\3#2/3"),
            (r"attention\.(?:output\.dense|o_proj)\.(\w+)", r"attn.proj.\3"),
            (
                r"attention\.(?:self|relative_position_bias)\.relative_position_bias_table",
                r"attn.relative_position_bias_table",
            ),
            (r"(?:intermediate\.dense|mlp\.fc1)\.(\w+)", r"mlp.fc1.\3"),
            (r"(?:output\.dense|mlp\.fc2)\.(\w+)", r"mlp.fc2.\3"),
        )
    ),
)
