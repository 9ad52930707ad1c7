"""The feed of images: the loader's batches, and the features of all images.

Shape legend: N samples of the source · D features · R rows of a rank.
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.backbones.contract import Backbone
from vitrail.data.contract import Batch, Source
from vitrail.data.loading.feed import Feed
from vitrail.data.loading.loader import Loader
from vitrail.data.loading.order import Order
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.loading.wait_time import Adviser, Meter, Spent
from vitrail.data.tools.written import check_written, record_written
from vitrail.data.views.plan import ViewPlan
from vitrail.data.views.preprocess import Preprocess
from vitrail.distributed.collectives import all_gather, world_size
from vitrail.distributed.ranks import Ranks, on_main
from vitrail.encoder import evaluating
from vitrail.recipes.recipe import Recipe, worker_count
from vitrail.train.log import print_line

# Images that go through the encoder together, on whichever rank, so features do not depend on the
# number of ranks.
BLOCK = 256
GATHERED = 64 * BLOCK  # rows of a rank that are exchanged at a time


class ImageFeed(Feed[Batch]):
    """The batches of images of one rank.

    Args:
        recipe: batch size, seed, workers, and the limit of bad files.
        source: the images.
        plan: their views.
        ranks: this process.
        encoder: embeds all images before an epoch, for objectives that want it.
        preprocess: how images are prepared for the encoder.

    Attributes:
        source: the images.
        plan: their views.
        loader: reads them; there is one from `begin` on.
    """

    sample_noun = unit = "images"
    loader: Loader

    def __init__(
        self,
        recipe: Recipe,
        source: Source,
        plan: ViewPlan,
        ranks: Ranks,
        encoder: Backbone,
        preprocess: Preprocess,
    ):
        self.spec = recipe.data
        self.fingerprint = source.fingerprint()
        self.n_samples = len(source)
        self.batch_size = self.units_per_step = recipe.batch_size
        self.source = source
        self.plan = plan
        self._recipe = recipe
        self._ranks = ranks
        self._encoder = encoder
        self._preprocess = preprocess

    def begin(self, run: Path, start: int) -> None:
        """Makes the loader. The quarantine of a run that was never saved starts empty."""
        recipe, ranks = self._recipe, self._ranks
        quarantine_file = run / "quarantine.jsonl"  # of all ranks
        if start == 0:  # files may have been repaired since
            on_main(ranks, lambda: quarantine_file.unlink(missing_ok=True))
            on_main(ranks, lambda: record_written(run, self.source))
        else:
            on_main(ranks, lambda: self._check_written(run))
        self.loader = Loader(
            self.source,
            self.plan,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            device=ranks.device,
            rank=ranks.rank,
            world=ranks.world,
            accumulate=recipe.accumulate,
            workers=worker_count(recipe, ranks),
            quarantine=Quarantine(quarantine_file, self.n_samples, recipe.max_bad_fraction),
        )
        self.meter: Meter = self.loader.meter
        self._adviser = Adviser(ranks.device, self.meter.workers)

    def _check_written(self, run: Path) -> None:
        if note := check_written(run, self.source):
            print_line(note)

    def batches(self, start: int, stop: int, order: Order | None = None) -> Iterator[list[Batch]]:
        return self.loader.steps(start, stop, order)

    def embed_all(self) -> Float[Tensor, "N D"]:
        """Returns the features of all images. Each rank embeds a share, and gathers the others.

        The encoder is in evaluation mode and in float32.
        """
        encoder, n, world = self._encoder, self.n_samples, world_size()
        rounds = -(-n // (BLOCK * world))
        mine_RD = torch.full((rounds * BLOCK, encoder.embed_dim), torch.nan)
        blocks = groupby(self.loader.every_image(BLOCK), lambda chunk: chunk[0][0] // BLOCK)
        for block, chunks in blocks:
            read = [(index, self._preprocess(images)) for index, images in chunks]
            rows = [block // world * BLOCK + i % BLOCK for index, _ in read for i in index]
            with evaluating(encoder):
                pooled = encoder(torch.cat([pixels for _, pixels in read])).pooled
                mine_RD[rows] = pooled.float().cpu()
        return _gather_blocks(mine_RD, n)

    def advise(self, steps: int, busy: float, spent: Spent) -> str | None:
        return self._adviser.after(steps, busy, spent)


def _gather_blocks(mine_RD: Float[Tensor, "R D"], n: int) -> Float[Tensor, "N D"]:
    """Returns all rows in the order of the source, whose blocks were dealt to ranks in rotation."""
    if world_size() == 1:
        return mine_RD[:n]
    parts = []
    for rows in mine_RD.split(GATHERED):
        blocks = all_gather(rows).view(world_size(), -1, BLOCK, rows.shape[1])
        parts.append(blocks.transpose(0, 1).flatten(0, 2))
    return torch.cat(parts)[:n]
