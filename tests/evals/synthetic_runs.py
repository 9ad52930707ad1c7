"""Small encoders and run folders for the tests of evals and report."""

import json
import math

import numpy as np
from PIL import Image

from vitrail.backbones.create import create_backbone
from vitrail.data.views.preprocess import Preprocess
from vitrail.encoder import Encoder


def tiny_encoder(data, size=28, channels=1, name="vit_nano_patch4_28"):
    backbone = create_backbone(name, img_size=size, in_chans=channels, width=16, depth=2)
    preprocess = Preprocess(size, size, (0.1,) * channels, (0.25,) * channels)
    return Encoder(backbone, preprocess, {"seed": 0, "data": data, "step": 5})


def image_folder(root, classes=("a", "b"), each=15, size=20):
    rng = np.random.default_rng(0)
    for c, name in enumerate(classes):
        folder = root / name if name else root
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(each):
            image = (rng.random((size, size + i % 3, 3)) * 60 + 150 * c).astype(np.uint8)
            Image.fromarray(image).save(folder / f"{i}.png")
    return root


def write_metrics(run, steps=30, **last):
    rows = []
    for step in range(steps):
        row = {"step": step, "loss": math.exp(-step / 10), "lr": 1e-3 * step, "grad_norm": 1.0}
        row |= {"images_per_s": 100.0, "data_wait": 0.1, "compression": 0.5}
        if step % 10 == 0:
            row["health"] = {"effective_rank": 3.0 + step, "spread_min": 0.1, "spread_mean": 0.5}
        rows.append(row)
    rows[-1] |= last
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
