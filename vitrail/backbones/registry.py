"""The table of named backbones. It imports neither torch nor timm.

Sizes follow the papers: ViT-T is 192 wide with 12 layers and 3 heads, CRATE-T is 384/12/6, ToST-T
192/12/4. Names that timm has too are timm's models. The last number of a row is its parameters in
millions, without a head; a test counts them.
"""

from vitrail.backbones.families import BackboneRow, Skeleton, TimmResNet, TimmSwin, ToSTModel
from vitrail.registry import Registry

AS_DINO = (("antialias", False),)  # how DINO and SimDINO resample positions for local crops
REG4 = (("registers", 4), ("antialias", True))

BACKBONES = Registry(
    "backbone",
    BackboneRow,  # type: ignore[type-abstract]
    {
        # image size, family, width, depth, heads, patch size, million parameters
        "vit_tiny_patch16_224": Skeleton(224, "vit", 192, 12, 3, 16, 5.52),
        "vit_small_patch16_224": Skeleton(224, "vit", 384, 12, 6, 16, 21.67),
        "vit_base_patch16_224": Skeleton(224, "vit", 768, 12, 12, 16, 85.80),
        "vit_large_patch16_224": Skeleton(224, "vit", 1024, 24, 16, 16, 303.30),
        "vit_huge_patch14_224": Skeleton(224, "vit", 1280, 32, 16, 14, 630.76),
        "vit_small_patch16_dino": Skeleton(224, "vit", 384, 12, 6, 16, 21.67, AS_DINO),
        "vit_base_patch16_dino": Skeleton(224, "vit", 768, 12, 12, 16, 85.80, AS_DINO),
        "vit_large_patch16_dino": Skeleton(224, "vit", 1024, 24, 16, 16, 303.30, AS_DINO),
        "vit_tiny_patch8_224": Skeleton(224, "vit", 192, 12, 3, 8, 5.53),
        "vit_small_patch8_224": Skeleton(224, "vit", 384, 12, 6, 8, 21.67),
        "vit_base_patch8_224": Skeleton(224, "vit", 768, 12, 12, 8, 85.81),
        "vit_base_patch32_224": Skeleton(224, "vit", 768, 12, 12, 32, 87.46),
        "vit_large_patch14_224": Skeleton(224, "vit", 1024, 24, 16, 14, 303.18),
        "vit_nano_patch4_28": Skeleton(28, "vit", 64, 4, 2, 4, 0.21),
        "vit_nano_patch4_32": Skeleton(32, "vit", 64, 4, 2, 4, 0.21),
        "vit_micro_patch4_28": Skeleton(28, "vit", 128, 6, 4, 4, 1.20),
        "vit_micro_patch4_32": Skeleton(32, "vit", 128, 6, 4, 4, 1.20),
        "vit_tiny_patch4_28": Skeleton(28, "vit", 192, 12, 3, 4, 5.36),
        "vit_tiny_patch4_32": Skeleton(32, "vit", 192, 12, 3, 4, 5.36),
        "vit_small_patch4_28": Skeleton(28, "vit", 384, 12, 6, 4, 21.33),
        "vit_small_patch4_32": Skeleton(32, "vit", 384, 12, 6, 4, 21.34),
        "vit_small_patch14_dinov2": Skeleton(518, "dinov2", 384, 12, 6, 14, 22.06),
        "vit_base_patch14_dinov2": Skeleton(518, "dinov2", 768, 12, 12, 14, 86.58),
        "vit_large_patch14_dinov2": Skeleton(518, "dinov2", 1024, 24, 16, 14, 304.37),
        "vit_giant_patch14_dinov2": Skeleton(518, "dinov2_swiglu", 1536, 40, 24, 14, 1136.48),
        "vit_small_patch14_reg4_dinov2": Skeleton(518, "dinov2", 384, 12, 6, 14, 22.06, REG4),
        "vit_base_patch14_reg4_dinov2": Skeleton(518, "dinov2", 768, 12, 12, 14, 86.58, REG4),
        "vit_large_patch14_reg4_dinov2": Skeleton(518, "dinov2", 1024, 24, 16, 14, 304.37, REG4),
        "vit_giant_patch14_reg4_dinov2": Skeleton(
            518, "dinov2_swiglu", 1536, 40, 24, 14, 1136.49, REG4
        ),
        "crate_tiny_patch16_224": Skeleton(224, "crate", 384, 12, 6, 16, 5.71),
        "crate_small_patch16_224": Skeleton(224, "crate", 576, 12, 12, 16, 12.54),
        "crate_base_patch16_224": Skeleton(224, "crate", 768, 12, 12, 16, 22.03),
        "crate_large_patch16_224": Skeleton(224, "crate", 1024, 24, 16, 16, 76.62),
        "crate_small_patch8_224": Skeleton(224, "crate", 576, 12, 12, 8, 12.55),
        "crate_base_patch8_224": Skeleton(224, "crate", 768, 12, 12, 8, 22.04),
        "crate_nano_patch4_28": Skeleton(28, "crate", 64, 4, 2, 4, 0.06),
        "crate_nano_patch4_32": Skeleton(32, "crate", 64, 4, 2, 4, 0.06),
        "crate_micro_patch4_28": Skeleton(28, "crate", 128, 6, 4, 4, 0.31),
        "crate_micro_patch4_32": Skeleton(32, "crate", 128, 6, 4, 4, 0.31),
        "crate_tiny_patch4_28": Skeleton(28, "crate", 384, 12, 6, 4, 5.37),
        "crate_tiny_patch4_32": Skeleton(32, "crate", 384, 12, 6, 4, 5.38),
        "crate_small_patch4_28": Skeleton(28, "crate", 576, 12, 12, 4, 12.04),
        "crate_small_patch4_32": Skeleton(32, "crate", 576, 12, 12, 4, 12.05),
        "crate_mae_small_patch16_224": Skeleton(224, "crate_mae", 576, 12, 12, 16, 12.54),
        "crate_mae_base_patch16_224": Skeleton(224, "crate_mae", 768, 12, 12, 16, 22.02),
        "crate_mae_nano_patch4_28": Skeleton(28, "crate_mae", 64, 4, 2, 4, 0.06),
        "crate_mae_nano_patch4_32": Skeleton(32, "crate_mae", 64, 4, 2, 4, 0.06),
        "crate_alpha_tiny_patch16_224": Skeleton(224, "crate_alpha", 192, 12, 3, 16, 4.62),
        "crate_alpha_small_patch16_224": Skeleton(224, "crate_alpha", 384, 12, 6, 16, 18.09),
        "crate_alpha_base_patch32_224": Skeleton(224, "crate_alpha", 768, 12, 12, 32, 73.22),
        "crate_alpha_base_patch16_224": Skeleton(224, "crate_alpha", 768, 12, 12, 16, 71.56),
        "crate_alpha_base_patch8_224": Skeleton(224, "crate_alpha", 768, 12, 12, 8, 71.57),
        "crate_alpha_large_patch14_224": Skeleton(224, "crate_alpha", 1024, 24, 16, 14, 252.63),
        "crate_alpha_large_patch8_224": Skeleton(224, "crate_alpha", 1024, 24, 16, 8, 252.76),
        "crate_alpha_huge_patch14_224": Skeleton(224, "crate_alpha", 1280, 32, 16, 14, 525.54),
        "crate_alpha_nano_patch4_28": Skeleton(28, "crate_alpha", 64, 4, 2, 4, 0.17),
        "crate_alpha_nano_patch4_32": Skeleton(32, "crate_alpha", 64, 4, 2, 4, 0.17),
        "crate_alpha_micro_patch4_28": Skeleton(28, "crate_alpha", 128, 6, 4, 4, 1.00),
        "crate_alpha_micro_patch4_32": Skeleton(32, "crate_alpha", 128, 6, 4, 4, 1.00),
        "crate_alpha_tiny_patch4_28": Skeleton(28, "crate_alpha", 192, 12, 3, 4, 4.45),
        "crate_alpha_tiny_patch4_32": Skeleton(32, "crate_alpha", 192, 12, 3, 4, 4.46),
        "tost_vit_tiny_patch16_224": Skeleton(224, "tost_vit", 192, 12, 4, 16, 4.64),
        "tost_vit_small_patch16_224": Skeleton(224, "tost_vit", 384, 12, 8, 16, 18.12),
        "tost_vit_base_patch16_224": Skeleton(224, "tost_vit", 768, 12, 12, 16, 71.62),
        "tost_vit_nano_patch4_28": Skeleton(28, "tost_vit", 64, 4, 2, 4, 0.17),
        "tost_vit_nano_patch4_32": Skeleton(32, "tost_vit", 64, 4, 2, 4, 0.17),
        "tost_vit_micro_patch4_28": Skeleton(28, "tost_vit", 128, 6, 4, 4, 1.00),
        "tost_vit_micro_patch4_32": Skeleton(32, "tost_vit", 128, 6, 4, 4, 1.01),
        "tost_vit_tiny_patch4_28": Skeleton(28, "tost_vit", 192, 12, 4, 4, 4.47),
        "tost_vit_tiny_patch4_32": Skeleton(32, "tost_vit", 192, 12, 4, 4, 4.47),
        "aot_mssa_tiny_patch16_224": Skeleton(224, "aot_mssa", 192, 12, 3, 16, 1.08),
        "aot_mssa_small_patch16_224": Skeleton(224, "aot_mssa", 384, 12, 6, 16, 3.92),
        "aot_mssa_base_patch16_224": Skeleton(224, "aot_mssa", 768, 12, 12, 16, 14.93),
        "aot_mssa_nano_patch4_28": Skeleton(28, "aot_mssa", 64, 4, 2, 4, 0.04),
        "aot_mssa_nano_patch4_32": Skeleton(32, "aot_mssa", 64, 4, 2, 4, 0.04),
        "aot_mssa_micro_patch4_28": Skeleton(28, "aot_mssa", 128, 6, 4, 4, 0.21),
        "aot_mssa_micro_patch4_32": Skeleton(32, "aot_mssa", 128, 6, 4, 4, 0.21),
        "aot_mssa_tiny_patch4_28": Skeleton(28, "aot_mssa", 192, 12, 3, 4, 0.91),
        "aot_mssa_tiny_patch4_32": Skeleton(32, "aot_mssa", 192, 12, 3, 4, 0.91),
        "aot_mhsa_tiny_patch16_224": Skeleton(224, "aot_mhsa", 192, 12, 3, 16, 1.97),
        "aot_mhsa_small_patch16_224": Skeleton(224, "aot_mhsa", 384, 12, 6, 16, 7.48),
        "aot_mhsa_base_patch16_224": Skeleton(224, "aot_mhsa", 768, 12, 12, 16, 29.11),
        "aot_mhsa_nano_patch4_28": Skeleton(28, "aot_mhsa", 64, 4, 2, 4, 0.07),
        "aot_mhsa_nano_patch4_32": Skeleton(32, "aot_mhsa", 64, 4, 2, 4, 0.07),
        "aot_mhsa_micro_patch4_28": Skeleton(28, "aot_mhsa", 128, 6, 4, 4, 0.41),
        "aot_mhsa_micro_patch4_32": Skeleton(32, "aot_mhsa", 128, 6, 4, 4, 0.41),
        "aot_mhsa_tiny_patch4_28": Skeleton(28, "aot_mhsa", 192, 12, 3, 4, 1.80),
        "aot_mhsa_tiny_patch4_32": Skeleton(32, "aot_mhsa", 192, 12, 3, 4, 1.81),
        # image size, width, depth, heads, patch size, initial LayerScale, million parameters
        "tost_tiny_patch16_224": ToSTModel(224, 192, 12, 4, 16, 1.0, 5.58),
        "tost_small_patch16_224": ToSTModel(224, 384, 12, 8, 16, 1.0, 22.20),
        "tost_medium_patch16_224": ToSTModel(224, 512, 24, 8, 16, 1e-5, 70.97),
        "tost_nano_patch4_28": ToSTModel(28, 64, 4, 2, 4, 1.0, 0.29),
        "tost_nano_patch4_32": ToSTModel(32, 64, 4, 2, 4, 1.0, 0.29),
        # image size, timm's name, stem for small images, million parameters
        "resnet18": TimmResNet(224, "resnet18", False, 11.18),
        "resnet50": TimmResNet(224, "resnet50", False, 23.51),
        "resnet18_small": TimmResNet(32, "resnet18", True, 11.17),
        "resnet50_small": TimmResNet(32, "resnet50", True, 23.50),
        # image size, width of the first stage, depths, heads, patch size, window size, millions
        "swin_tiny_patch4_window7_224": TimmSwin(
            224, 96, (2, 2, 6, 2), (3, 6, 12, 24), 4, 7, 27.52
        ),
        "swin_small_patch4_window7_224": TimmSwin(
            224, 96, (2, 2, 18, 2), (3, 6, 12, 24), 4, 7, 48.84
        ),
        "swin_base_patch4_window7_224": TimmSwin(
            224, 128, (2, 2, 18, 2), (4, 8, 16, 32), 4, 7, 86.74
        ),
        "swin_nano_patch2_28": TimmSwin(28, 32, (2, 2), (2, 4), 2, 7, 0.14),
        "swin_nano_patch2_32": TimmSwin(32, 32, (2, 2), (2, 4), 2, 4, 0.14),
    },
)
