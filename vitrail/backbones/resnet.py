"""ResNets (He et al. 2016) from timm, with batch norm over all ranks, and a stem for small images.

Shape legend: B images · C channels · S, s height, width in pixels · H×W cells of a map ·
D features of it · L residual blocks.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import timm
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from vitrail.backbones.embedding import check_images
from vitrail.backbones.families import TimmResNet
from vitrail.backbones.maps import LayerMaps, MapBackbone, scaled
from vitrail.nn.batch_norm import convert_batch_norms


class ResNet(MapBackbone):
    """timm's ResNet without its classifier: the same keys, initial weights and function.

    A residual block's last batch norm starts with weight 0 (Goyal et al. 2017; timm's default): a
    block starts as its shortcut. torchvision's starts with 1.

    Images of any size are accepted: S pixels leave ⌈S/32⌉ cells, or ⌈S/8⌉ with the small stem.

    Args:
        net: timm's model, whose modules become this one's.
        sizes: `in_chans`, `img_size`, `drop_path` and `config` of `MapBackbone`.
    """

    batch_coupled: ClassVar[bool] = True

    def __init__(self, net: Any, **sizes: Any):
        stages = (net.layer1, net.layer2, net.layer3, net.layer4)
        super().__init__(embed_dim=net.num_features, depth=sum(map(len, stages)), **sizes)
        self.conv1 = net.conv1
        self.bn1 = net.bn1
        self.maxpool = net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        convert_batch_norms(self)

    def check(self, images: Float[Tensor, "B C S s"]) -> None:
        if 0 in images.shape[2:]:
            raise ValueError(
                f"images of {images.shape[2]} × {images.shape[3]} pixels are too small for a "
                f"ResNet; each side needs at least 1 pixel"
            )
        check_images(images, 1, self.in_chans)

    def walk(
        self,
        images: Float[Tensor, "B C S s"],
        scales: Float[Tensor, "B L branches"] | None = None,
    ) -> Iterator[LayerMaps]:
        x_BDHW = self.maxpool(F.relu(self.bn1(self.conv1(images))))
        for index, (name, block) in enumerate(self._blocks()):
            shortcut_BDHW = x_BDHW if block.downsample is None else block.downsample(x_BDHW)
            x_BDHW = F.relu(scaled(residual(block, x_BDHW), scales, (index, 0)) + shortcut_BDHW)
            yield LayerMaps(name, None, x_BDHW.permute(0, 2, 3, 1))

    def last(self, cells: Float[Tensor, "B H W D"]) -> Float[Tensor, "B H W D"]:
        return cells

    def _blocks(self) -> Iterator[tuple[str, Any]]:
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            for i, block in enumerate(self.get_submodule(stage).children()):
                yield f"{stage}.{i}", block


def residual(block: Any, x: Float[Tensor, "B D H W"]) -> Float[Tensor, "B E h w"]:
    """Returns the residual branch of a block of timm's, before stochastic depth."""
    x = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    return block.bn3(block.conv3(F.relu(x))) if isinstance(block, Bottleneck) else x


def build(
    row: TimmResNet,
    name: str,
    *,
    img_size: int | None,
    in_chans: int,
    drop_path: float,
    overrides: dict[str, Any],
) -> ResNet:
    """Builds the backbone of a row. See `BackboneRow.build`."""
    assert not overrides, overrides
    net: Any = timm.create_model(row.timm_name, pretrained=False, num_classes=0, in_chans=in_chans)
    if row.small:
        net.conv1 = nn.Conv2d(in_chans, 64, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        net.maxpool = nn.Identity()
    size = row.img_size if img_size is None else img_size
    config = {"name": name, "img_size": size, "in_chans": in_chans}
    return ResNet(net, in_chans=in_chans, img_size=size, drop_path=drop_path, config=config)
