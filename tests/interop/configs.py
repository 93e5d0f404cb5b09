"""Varied configurations of diffusers' U-Net and autoencoder, small enough for a quick test."""

CROSS, PLAIN = "CrossAttn", ""


def unet(*levels: str, **options):
    """A UNet2DConditionModel's config; a level is CROSS or PLAIN, the finest first."""
    n = len(levels)
    return {
        "sample_size": 8,
        "block_out_channels": tuple(8 * (i + 1) for i in range(n)),
        "down_block_types": tuple(f"{level}DownBlock2D" for level in levels),
        "up_block_types": tuple(f"{level}UpBlock2D" for level in reversed(levels)),
        "layers_per_block": 1,
        "cross_attention_dim": 12,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    } | options


UNETS = {
    "two levels": unet(CROSS, PLAIN),
    "attention below": unet(PLAIN, CROSS),
    "attention in the middle alone": unet(PLAIN, PLAIN),
    "three levels": unet(CROSS, CROSS, PLAIN, layers_per_block=2),
    "sd 1": unet(CROSS, CROSS, CROSS, PLAIN, layers_per_block=2, attention_head_dim=8),
    "sd 2": unet(CROSS, CROSS, CROSS, PLAIN, attention_head_dim=(1, 2, 3, 4), use_linear_projection=True),
    "linear": unet(CROSS, PLAIN, use_linear_projection=True),
    "deep transformers": unet(PLAIN, CROSS, CROSS, transformer_layers_per_block=(1, 2, 3), use_linear_projection=True),
    "class table": unet(CROSS, PLAIN, num_class_embeds=5),
    "vector": unet(CROSS, CROSS, class_embed_type="simple_projection", projection_class_embeddings_input_dim=6),
    "one channel": unet(CROSS, PLAIN, in_channels=1, out_channels=1),
    "eight channels": unet(CROSS, PLAIN, in_channels=8, out_channels=8),
    "inpainting": unet(CROSS, PLAIN, in_channels=9, out_channels=4),
    "scale and shift": unet(CROSS, CROSS, resnet_time_scale_shift="scale_shift"),
    "heads that divide no plain level": unet(PLAIN, CROSS, attention_head_dim=(3, 4)),
    "one level": unet(CROSS),
}


def sdxl(*levels: str, text: int = 10, features: int = 4, **options):
    """One whose vector is a text's `text` numbers and `features` of each of six sizes."""
    vector = {"projection_class_embeddings_input_dim": text + 6 * features, "addition_time_embed_dim": features}
    return unet(*levels, addition_embed_type="text_time", use_linear_projection=True, **vector, **options)


SDXLS = {
    "sdxl": sdxl(*(PLAIN, CROSS, CROSS), transformer_layers_per_block=(1, 2, 3), attention_head_dim=(1, 2, 4)),
    "sdxl, two levels, attention below": sdxl(PLAIN, CROSS, transformer_layers_per_block=(1, 3)),
    "sdxl, attention above": sdxl(CROSS, PLAIN, transformer_layers_per_block=(2, 3)),
    "sdxl, attention in the middle alone": sdxl(PLAIN, PLAIN, transformer_layers_per_block=(1, 4)),
    "sdxl, four levels": sdxl(PLAIN, CROSS, PLAIN, CROSS, transformer_layers_per_block=(1, 2, 1, 2)),
    "sdxl, one level": sdxl(CROSS, transformer_layers_per_block=2, features=8),
    "sdxl, convolutions as projections": sdxl(PLAIN, CROSS) | {"use_linear_projection": False},
    "sdxl, inpainting": sdxl(PLAIN, CROSS, in_channels=9, out_channels=4, text=3),
    "sdxl, attention everywhere": sdxl(CROSS, CROSS, transformer_layers_per_block=(2, 1), text=1),
    "sdxl, odd features": sdxl(PLAIN, CROSS, features=5, attention_head_dim=(3, 4)),
    "sdxl, scale and shift, wide sizes": sdxl(PLAIN, CROSS, features=16, resnet_time_scale_shift="scale_shift"),
}


def vae(*widths: int, **options):
    return {
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "norm_num_groups": 4,
        "layers_per_block": 1,
    } | options


VAES = {
    "two levels": vae(8, 8),
    "three levels": vae(8, 12, 16),
    "sd": vae(8, 16, 24, 24, layers_per_block=2),
    "sdxl": vae(8, 16, 24, 24, layers_per_block=2, scaling_factor=0.13025, force_upcast=True),
    "one level": vae(8),
    "sd3": vae(
        8,
        16,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.5,
        shift_factor=0.06,
    ),
    "no attention": vae(8, 16, mid_block_add_attention=False),
    "one latent channel": vae(8, 8, latent_channels=1),
    "eight latent channels": vae(8, 16, latent_channels=8),
    "grey": vae(8, 8, in_channels=1, out_channels=1, latent_channels=2),
    "four channels": vae(8, 8, in_channels=4, out_channels=4, latent_channels=3),
    "deep": vae(8, 8, layers_per_block=3),
    "groups": vae(12, 24, norm_num_groups=6),
    "falling": vae(16, 8),
}
