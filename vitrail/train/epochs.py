"""What the loop feeds on: the loader's batches, and the objective's turn before each epoch.

Shape legend: N samples of the source · D features · R rows of a rank.
"""

from collections.abc import Iterator
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.data.contract import Batch
from vitrail.data.loading.loader import Loader
from vitrail.data.loading.order import GroupOrder, epoch_at
from vitrail.distributed.collectives import all_gather, world_size
from vitrail.encoder import evaluating
from vitrail.recipes.recipe import Recipe, preprocess_of
from vitrail.train.build import Parts

# Images that go through the encoder together, on whichever rank: so features do not depend on how
# many ranks there are.
BLOCK = 256
GATHERED = 64 * BLOCK  # rows of a rank that are exchanged at a time


def batches(loader: Loader, recipe: Recipe, parts: Parts, start: int) -> Iterator[list[Batch]]:
    """The batches of every step from `start` on.

    Without groups they are one stream, read ahead over the ends of epochs. With groups, reading
    ahead ends with the epoch: what comes next is known only when the objective has seen all images.
    """
    if parts.objective.groups is None:
        return loader.steps(start, parts.horizon.steps)
    return _by_epochs(loader, recipe, parts, start)


def _by_epochs(loader: Loader, recipe: Recipe, parts: Parts, start: int) -> Iterator[list[Batch]]:
    objective, step = parts.objective, start
    length = max(1, round(objective.epoch_length * len(parts.source)))
    while step < parts.horizon.steps:
        epoch, steps = epoch_at(step, length, recipe.batch_size)
        if step == steps.start:  # else the groups came with the state
            fresh = objective.before_epoch(
                epoch, recipe.seed, lambda: embed_all(loader, recipe, parts)
            )
            for parameter in fresh:
                parts.optimizer.state.pop(parameter, None)
        groups = objective.groups
        assert groups is not None
        order = GroupOrder(groups, recipe.batch_size, recipe.seed, epoch, steps)
        stop = min(steps.stop, parts.horizon.steps)
        yield from loader.steps(step, stop, order)
        step = stop


def embed_all(loader: Loader, recipe: Recipe, parts: Parts) -> Float[Tensor, "N D"]:
    """See `objectives.contract.EmbedAll`. Each rank embeds its share, and gets those of the others.

    The encoder is in evaluation mode and in float32.
    """
    encoder, n, world = parts.objective.encoder, len(parts.source), world_size()
    preprocess = preprocess_of(recipe, parts.plan)
    rounds = -(-n // (BLOCK * world))
    mine_RD = torch.full((rounds * BLOCK, encoder.embed_dim), torch.nan)
    for block, chunks in groupby(loader.every_image(BLOCK), lambda chunk: chunk[0][0] // BLOCK):
        read = [(index, preprocess(images)) for index, images in chunks]
        rows = [block // world * BLOCK + i % BLOCK for index, _ in read for i in index]
        with evaluating(encoder):
            pooled = encoder(torch.cat([pixels for _, pixels in read])).pooled
            mine_RD[rows] = pooled.float().cpu()
    return _dealt_back(mine_RD, n)


def _dealt_back(mine_RD: Float[Tensor, "R D"], n: int) -> Float[Tensor, "N D"]:
    """All rows in the order of the source. Blocks had been dealt to the ranks in turn."""
    if world_size() == 1:
        return mine_RD[:n]
    parts = []
    for some in mine_RD.split(GATHERED):
        blocks = all_gather(some).view(world_size(), -1, BLOCK, some.shape[1])
        parts.append(blocks.transpose(0, 1).flatten(0, 2))
    return torch.cat(parts)[:n]
