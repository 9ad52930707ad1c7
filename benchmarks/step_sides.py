"""Both sides of `benchmarks.step`: built from the same weights, checked, then timed."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.step_peers import Peer, dino_peer, part, simdino_peer, timm_vit
from benchmarks.step_setting import CLIP, LR, MOMENTUM, WEIGHT_DECAY, Setting, make_batch, view_list
from benchmarks.timing import Work, alternate, speed_up
from vitrail.backbones.contract import Backbone, TokenBackbone
from vitrail.backbones.create import create_backbone
from vitrail.backbones.registry import BACKBONES
from vitrail.data.contract import Batch
from vitrail.data.views.plan import MultiCrop
from vitrail.nn.schedules import Horizon
from vitrail.objectives import dino, simdino
from vitrail.objectives.build import build_objective
from vitrail.objectives.contract import Objective
from vitrail.optim import Config as Optim
from vitrail.optim import build_optimizer, clip_gradients
from vitrail.train.loop import forward_backward
from vitrail.train.parallel import compile_blocks

METHODS = {"dino": "lightly + timm", "simdino": "official formulation, lightly + timm"}
TOLERANCE = 1e-4  # of the losses, relative


@dataclass(frozen=True)
class Row:
    """Images are samples, not views. Memory: a step's peak, with all that the side keeps, MiB."""

    method: str
    peer: str
    ours_images_per_s: float
    peer_images_per_s: float
    ratio: float  # median over blocks; above 1: ours is faster
    ratio_least: float
    ratio_most: float
    ours_peak_mib: float | None
    peer_peak_mib: float | None
    loss_gap: float


class ParityError(Exception):
    """The two sides do not compute the same thing, so that timing them would compare nothing."""


class Ours:
    """The step of the loop (`vitrail.train.loop`) without its loader and its journal."""

    def __init__(self, objective: Objective, setting: Setting):
        self.objective = objective.to(setting.device)
        self.precision = setting.precision
        self.config = Optim(clip=CLIP, clip_by="global")  # as torch's clip_grad_norm_
        self.optimizer = build_optimizer(self.config, objective.param_groups())
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for group in self.optimizer.param_groups:
            group["lr"] = LR
            group["weight_decay"] = WEIGHT_DECAY * group.get("wd_scale", 1.0)

    def step(self, batch: Batch) -> Tensor:
        """Returns the loss before it."""
        out = forward_backward(self.objective, [batch], 0, self.precision)
        clip_gradients(self.parameters, self.config)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.after_step(out, 0)
        return out["loss"]


def build_ours(method: str, setting: Setting) -> Ours:
    views = MultiCrop(
        global_size=setting.global_size, local_size=setting.local_size, n_local=setting.n_local
    )
    config = {
        "dino": dino.Config(
            views=views,
            out_dim=setting.prototypes,
            freeze_last_layer_epochs=0,
            momentum_teacher=MOMENTUM,
            drop_path=setting.drop_path,
        ),
        "simdino": simdino.Config(
            views=views, momentum_teacher=MOMENTUM, drop_path=setting.drop_path
        ),
    }[method]

    def make_backbone(drop_path: float) -> Backbone:
        return create_backbone(setting.backbone, img_size=setting.global_size, drop_path=drop_path)

    torch.manual_seed(0)  # the head's weights
    horizon = Horizon(steps=1000, steps_per_epoch=100)  # all steps are taken as step 0
    return Ours(build_objective(config, make_backbone, horizon, None), setting)


def build_peer(method: str, setting: Setting, ours: Ours) -> Peer:
    """The peer with the weights of our student, which are the teacher's before any step."""
    model, drop_path = BACKBONES[setting.backbone], setting.drop_path
    vit = timm_vit(model, setting.global_size, drop_path, fused_attention=method == "dino")
    build = partial(dino_peer, prototypes=setting.prototypes) if method == "dino" else simdino_peer
    peer = build(vit, device=setting.device, precision=setting.precision)
    peer.load(part(ours.objective.state_dict(), "student."))
    return peer


def require_parity(ours: Work, peer: Work) -> float:
    """Takes two steps on each side; returns the larger relative gap of their losses.

    The second loss has seen the gradient, clipping, the optimizer, EMA and the centre.

    Raises:
        ParityError: the gap is above TOLERANCE, or a loss is not finite.
    """
    first, second = ([work().item() for _ in range(2)] for work in (ours, peer))
    gaps = [abs(a - b) / max(abs(b), 1e-12) for a, b in zip(first, second, strict=True)]
    if not all(gap <= TOLERANCE for gap in gaps):
        raise ParityError(
            f"not timed: from the same weights and crops, two steps have the losses {first}, the "
            f"peer's {second}; they differ by {max(gaps):.1e}, and {TOLERANCE:.0e} is allowed"
        )
    return max(gaps)


def check(method: str, setting: Setting) -> float:
    """Parity of the two sides in float32 and without stochastic depth, as `require_parity`."""
    exact = replace(setting, precision="fp32", drop_path=0.0)
    ours = build_ours(method, exact)
    peer = build_peer(method, exact, ours)
    batch = make_batch(exact)
    return require_parity(partial(ours.step, batch), partial(peer.step, view_list(batch)))


def compare(method: str, setting: Setting, blocks: int, steps: int, compiled: bool) -> list[Row]:
    """Our step against the peer's; with `compiled`, against it as published and compiled too.

    Raises:
        ParityError: they differ; nothing was timed.
    """
    gap = check(method, setting)
    batch = make_batch(setting)

    def our_step() -> Work:
        ours = build_ours(method, setting)
        if compiled:
            for backbone in (m for m in ours.objective.modules() if isinstance(m, TokenBackbone)):
                compile_blocks(backbone)
        return partial(ours.step, batch)

    def peer_step(compiled: bool) -> Work:
        peer = build_peer(method, setting, build_ours(method, setting))
        if compiled:
            peer.compile_networks()
        return partial(peer.step, view_list(batch))

    makers: dict[str, Callable[[], Work]] = {
        "ours": our_step,
        METHODS[method]: partial(peer_step, False),
    }
    if compiled:
        makers[f"{METHODS[method]} + torch.compile"] = partial(peer_step, True)
    works: dict[str, Work] = {}
    peaks: dict[str, float | None] = {}
    for way, make in makers.items():
        works[way], peaks[way] = warm_up(make, setting.device)
    times = alternate(works, blocks, steps)
    speed = {way: setting.batch / statistics.median(times[way]) for way in works}
    rows = []
    for way in list(works)[1:]:
        ratio, least, most = speed_up(times[way], times["ours"])
        rows.append(
            Row(
                method=method,
                peer=way,
                ours_images_per_s=speed["ours"],
                peer_images_per_s=speed[way],
                ratio=ratio,
                ratio_least=least,
                ratio_most=most,
                ours_peak_mib=peaks["ours"],
                peer_peak_mib=peaks[way],
                loss_gap=gap,
            )
        )
    return rows


def warm_up(make: Callable[[], Work], device: str) -> tuple[Work, float | None]:
    """A side that has taken two steps, and its peak memory; None on a CPU, where torch counts none.

    Sides are warmed up one after another, so that what the others keep is there before.
    """
    counted = device == "cuda"
    before = torch.cuda.memory_allocated() if counted else 0
    work = make()
    work().item()
    if counted:
        torch.cuda.reset_peak_memory_stats()
    work().item()
    if not counted:
        return work, None
    return work, (torch.cuda.max_memory_allocated() - before) / 2**20
