"""docs/parameter-counts.md: every number in it is the code's."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from vitrail.backbones.create import count_parameters
from vitrail.backbones.decoder import CRATEDecoder, ViTDecoder
from vitrail.backbones.embedding import ConvPatchEmbed
from vitrail.backbones.families import FAMILIES, ToSTModel
from vitrail.backbones.registry import BACKBONES
from vitrail.backbones.skeleton import SkeletonBackbone
from vitrail.backbones.text import AOT_MHSA, CRATE_ALPHA, LANGUAGE, TextModel, count_text_parameters

DOC = Path(__file__).resolve().parents[2] / "docs" / "parameter-counts.md"
# Facts §4: width, depth, heads, eta.
TOST = {
    "tost_tiny_patch16_224": ToSTModel(224, 192, 12, 4, 16, 1.0),
    "tost_small_patch16_224": ToSTModel(224, 384, 12, 8, 16, 1.0),
    "tost_medium_patch16_224": ToSTModel(224, 512, 24, 8, 16, 1e-5),
}
# Facts §4, exact numbers: of the whole pair in the official code.
OFFICIAL_PAIRS = {
    "ViT-MAE-S": 47_578_240,
    "ViT-MAE-B": 143_836_416,
    "CRATE-MAE-S": 25_405_824,
    "CRATE-MAE-B": 44_638_464,
}
NOT_REPRODUCED = {"tost_medium_patch16_224", "crate_alpha_gpt_base", "aot_mhsa_base"}


def rows(*sections: str) -> list[tuple[str, list[str]]]:
    """(first cell, other cells) of the tables under these headings."""
    found = []
    for section in DOC.read_text().split("\n## ")[1:]:
        title, *lines = section.splitlines()
        tables = [line.strip("|").split("|") for line in lines if line.startswith("| ")]
        if title in sections:
            found += [
                (cells[0].strip(" `"), [c.strip(" *") for c in cells[1:]]) for cells in tables
            ]
    names = {"model", "pair"}
    return [row for row in found if row[0] not in names]


def number(cell: str) -> int:
    return int(cell.replace(",", ""))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def count_classifier(name: str) -> int:
    if name in TOST:
        with torch.device("meta"):
            backbone = TOST[name].build(
                name, img_size=None, in_chans=3, drop_path=0.0, overrides={}
            )
        return count(backbone) + 1000 * (TOST[name].width + 1)
    return count_parameters(name) + 1000 * (BACKBONES[name].width + 1)


def count_pair(name: str) -> tuple[int, int, int]:
    """Parameters of our pair with a mask token; fixed positions; the unused `decoder_embed`."""
    size = {"S": 384, "B": 768} if name.startswith("ViT") else {"S": 576, "B": 768}
    width = size[name[-1]]
    with torch.device("meta"):
        if name.startswith("ViT"):
            inner = {"S": 512, "B": 768}[name[-1]]
            encoder = count_parameters(f"vit_{'small' if width == 384 else 'base'}_patch16_224")
            return encoder + count(ViTDecoder(width, patch_size=16, width=inner)), 197 * inner, 0
        encoder = SkeletonBackbone(
            replace(FAMILIES["crate"], patch_embed=ConvPatchEmbed),
            width=width,
            depth=12,
            heads=12,
            patch_size=16,
            img_size=224,
            in_chans=3,
            drop_path=0.0,
            config={},
        )
        decoder = CRATEDecoder(width, 12, patch_size=16)
    return count(encoder) + count(decoder) + width, 197 * width, width * width + width


def test_the_tables_have_all_models() -> None:
    vision = {name for name, _ in rows("Image classifiers")}
    assert len(vision) == 14
    assert {name for name, _ in rows("Language models")} == set(LANGUAGE) - NOT_REPRODUCED
    assert {name for name, _ in rows("Not reproduced")} == NOT_REPRODUCED
    assert [name.split(":")[0] for name, _ in rows("Autoencoder pairs")] == list(OFFICIAL_PAIRS)


@pytest.mark.parametrize(("name", "cells"), rows("Image classifiers"))
def test_classifiers(name: str, cells: list[str]) -> None:
    ours, book = cells
    assert count_classifier(name) == number(ours)
    decimals = len(book.split(".")[1])
    assert f"{number(ours) / 1e6:.{decimals}f}" == book


@pytest.mark.parametrize(("name", "cells"), rows("Autoencoder pairs"))
def test_autoencoder_pairs(name: str, cells: list[str]) -> None:
    name = name.split(":")[0]
    ours, positions, unused, official = (number(cell) for cell in cells[:4])
    assert count_pair(name) == (ours, positions, unused)
    assert ours + positions + unused == official == OFFICIAL_PAIRS[name]
    assert f"{official / 1e6:.1f}" == cells[4]


def test_the_norms_of_our_crate_rows_weigh_what_the_doc_says() -> None:
    for size, width in (("small", 576), ("base", 768)):
        conv = count_pair(f"CRATE-MAE-{size[0].upper()}")[0]
        with torch.device("meta"):
            decoder = CRATEDecoder(width, 12, patch_size=16)
        ours = count_parameters(f"crate_{size}_patch16_224") + count(decoder) + width
        assert ours - conv == 2 * 768 + 2 * width


@pytest.mark.parametrize(("name", "cells"), rows("Language models"))
def test_language_models(name: str, cells: list[str]) -> None:
    *ours, book = (number(cell) for cell in cells)
    assert ours == [count_text_parameters(name), count_text_parameters(name, positions=False)]
    line = next(line for line in DOC.read_text().splitlines() if line.startswith(f"| `{name}`"))
    agrees = number(line.split("**")[1])
    assert round(agrees / 1e6) == book


@pytest.mark.parametrize(("name", "cells"), rows("Not reproduced"))
def test_what_is_not_reproduced(name: str, cells: list[str]) -> None:
    if name in TOST:
        assert count_classifier(name) == number(cells[0])
    else:
        ours = [count_text_parameters(name), count_text_parameters(name, positions=False)]
        assert ours == [number(cell) for cell in cells[:2]]
    assert not any(
        abs(number(cell) / 1e6 - float(cells[2])) < 0.6 for cell in cells[:2] if cell != "–"
    )


def test_the_reasons_numbers() -> None:
    text = DOC.read_text()
    tost = count_classifier("tost_medium_patch16_224")
    scales = (24 + 2) * 2 * 512
    assert f"it is {tost / 2**20:.2f}, and {(tost - scales) / 2**20:.2f} without" in text
    assert (f"{26.138e6 / 2**20:.1f}", f"{84.089e6 / 2**20:.1f}") == ("24.9", "80.2")

    def untied_with_one_dictionary(width: int) -> int:
        kind = replace(CRATE_ALPHA, arguments=CRATE_ALPHA.arguments | {"decoupled": False})
        with torch.device("meta"):
            return count(TextModel(kind, width, 12, 1).build()) + 50_304 * width

    assert f"would give {untied_with_one_dictionary(768):,}" in text
    assert f"would have {untied_with_one_dictionary(512):,}. No scheme" in text
    with torch.device("meta"):
        assert f"would have {count(TextModel(AOT_MHSA, 768, 35, 12).build()):,}. The" in text
