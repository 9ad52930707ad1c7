"""The steps of DINO and SimDINO as a user of lightly and timm writes them.

DINO follows lightly's documentation (its DINO example and its ImageNet benchmark): timm's ViT once
per resolution, `DINOProjectionHead`, `DINOLoss`, `update_momentum`. lightly has no SimDINO: its
step is the official formulation (RobinWu218/SimDINO at 8149fc4) on the same parts: materialised
attention, a loop over pairs of views, a p × p second moment and a Cholesky factor per view.
Departures from that code, neither of which slows it down: the 1 of ½|z_t - z_s|² = 1 - cos is kept,
and the rate leaves autocast, where half precision would make it NaN.
"""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lightly.loss import DINOLoss
from lightly.models.modules.heads import DINOProjectionHead, ProjectionHead
from lightly.models.utils import (
    deactivate_requires_grad,
    get_weight_decay_parameters,
    update_momentum,
)
from timm.layers import set_fused_attn
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from benchmarks.step_setting import CLIP, LR, MOMENTUM, WEIGHT_DECAY
from vitrail.backbones.families import Skeleton


class Peer(nn.Module):
    """Student, teacher, loss and optimizer, and the step that lightly's examples take with them."""

    def __init__(
        self,
        vit: VisionTransformer,
        make_head: Callable[[], nn.Module],
        criterion: nn.Module,
        device: str,
        precision: str,
    ):
        super().__init__()
        self.student_backbone = vit
        self.student_head = make_head()
        self.teacher_backbone = copy.deepcopy(vit).eval()  # no stochastic depth
        self.teacher_head = make_head()
        deactivate_requires_grad(self.teacher_backbone)
        deactivate_requires_grad(self.teacher_head)
        self.criterion = criterion
        self.to(device)
        self.device, self.bf16 = device, precision == "bf16"
        decayed, free = get_weight_decay_parameters([self.student_backbone, self.student_head])
        groups: list[dict[str, Any]] = [
            {"params": [p for p in decayed if p.requires_grad]},
            {"params": [p for p in free if p.requires_grad], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=LR, weight_decay=WEIGHT_DECAY)

    def load(self, student: dict[str, Tensor]) -> None:
        """Starts both networks from the weights of one of ours (keys backbone.*, head.*)."""
        heads = {key.replace("head.mlp.", "head.layers."): w for key, w in student.items()}
        for backbone, head in (
            (self.student_backbone, self.student_head),
            (self.teacher_backbone, self.teacher_head),
        ):
            backbone.load_state_dict(part(heads, "backbone."))
            head.load_state_dict(part(heads, "head."))

    def forward(self, views: list[Tensor]) -> tuple[Tensor, ...]:
        features = [self.student_backbone(torch.cat(v)) for v in (views[:2], views[2:]) if v]
        return self.student_head(torch.cat(features)).chunk(len(views))

    def forward_teacher(self, views: list[Tensor]) -> tuple[Tensor, ...]:
        return self.teacher_head(self.teacher_backbone(torch.cat(views))).chunk(len(views))

    def step(self, views: list[Tensor]) -> Tensor:
        """Views: one [B, C, S, S] each, the 2 global ones first. Returns the loss before it."""
        with torch.autocast(self.device, torch.bfloat16, self.bf16):
            teacher_out = self.forward_teacher(views[:2])
            student_out = self.forward(views)
            loss = self.criterion(list(teacher_out), list(student_out))
        loss.backward()
        nn.utils.clip_grad_norm_(
            [*self.student_backbone.parameters(), *self.student_head.parameters()], CLIP
        )
        self.optimizer.step()
        self.optimizer.zero_grad()
        update_momentum(self.student_backbone, self.teacher_backbone, m=MOMENTUM)
        update_momentum(self.student_head, self.teacher_head, m=MOMENTUM)
        return loss.detach()

    def compile_networks(self) -> None:
        """`torch.compile` of each network whole; one compilation a resolution."""
        for network in (self.student_backbone, self.teacher_backbone):
            network.compile(dynamic=False)
        for head in (self.student_head, self.teacher_head):
            head.compile(dynamic=False)


class SimDINOHead(ProjectionHead):
    """DINO's projection without its last layer."""

    def __init__(self, dim: int):
        gelu = nn.GELU()
        super().__init__(
            [(dim, 2048, None, gelu), (2048, 2048, None, gelu), (2048, 256, None, None)]
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.layers(x), dim=-1)


class SimDINOLoss(nn.Module):
    """1 - mean cosine over pairs of different views - γ · coding rate, mean over global views."""

    def __init__(self, eps: float = 0.05):
        super().__init__()
        self.eps = eps  # in the place of ε²

    def forward(self, teacher_out: list[Tensor], student_out: list[Tensor]) -> Tensor:
        with torch.autocast(student_out[0].device.type, enabled=False):
            teacher_out = [z.float() for z in teacher_out]
            student_out = [z.float() for z in student_out]
            pairs = [
                F.cosine_similarity(t, s, dim=-1).mean()
                for i, t in enumerate(teacher_out)
                for j, s in enumerate(student_out)
                if i != j
            ]
            globals_ = zip(student_out[:2], teacher_out, strict=True)
            rates = [self.weighted_rate((s + t) / 2) for s, t in globals_]
            return 1 - torch.stack(pairs).mean() - torch.stack(rates).mean()

    def weighted_rate(self, z: Tensor) -> Tensor:
        """γ ½ log det(I + p / (n ε²) zᵀz) for z [n, p]."""
        n, p = z.shape
        eye = torch.eye(p, device=z.device)
        factor, _ = torch.linalg.cholesky_ex(eye + p / (n * self.eps) * (z.T @ z))
        return (p + n) / (p * n) * factor.diagonal().log().sum()


def dino_peer(
    vit: VisionTransformer, prototypes: int, device: str = "cpu", precision: str = "fp32"
) -> Peer:
    def make_head() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's, of lightly's weight_norm
            return DINOProjectionHead(vit.embed_dim, output_dim=prototypes)

    return Peer(vit, make_head, DINOLoss(prototypes), device, precision)


def simdino_peer(vit: VisionTransformer, device: str = "cpu", precision: str = "fp32") -> Peer:
    return Peer(vit, lambda: SimDINOHead(vit.embed_dim), SimDINOLoss(), device, precision)


def timm_vit(
    model: Skeleton, img_size: int, drop_path: float, fused_attention: bool = True
) -> VisionTransformer:
    """timm's ViT of one of our named sizes, for views of any size."""
    set_fused_attn(fused_attention)  # read by the layers as they are built
    vit = VisionTransformer(
        img_size=img_size,
        patch_size=model.patch_size,
        embed_dim=model.width,
        depth=model.depth,
        num_heads=model.heads,
        num_classes=0,
        drop_path_rate=drop_path,
        dynamic_img_size=True,
    )
    set_fused_attn(True)
    return vit


def part(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under a prefix, without it."""
    return {key.removeprefix(prefix): w for key, w in weights.items() if key.startswith(prefix)}
