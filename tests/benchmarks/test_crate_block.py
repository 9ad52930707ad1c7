"""The benchmark of a CRATE layer measures, and refuses to where the two sides are not the same."""

import sys

import pytest
import torch

from benchmarks import crate_block
from benchmarks.crate_block import CRATE, CRATE_ALPHA, Ours, ParityError, PublishedBlock
from vitrail.backbones.layers import Block

COMMAND = "crate_block --device cpu --batch 1 --tokens 9 --widths 384 --blocks 1 --calls 1 --save"


def test_both_sides_agree_are_timed_and_the_table_goes_where_asked(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(crate_block, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(crate_block, "keep_freed_memory", lambda: None)  # it lasts
    monkeypatch.setattr(sys, "argv", COMMAND.split())
    crate_block.main()
    saved = (tmp_path / "results" / "crate_block_cpu.md").read_text()
    assert saved.count("as published") == 2
    assert "commit" in saved
    assert capsys.readouterr().out in saved


@pytest.mark.parametrize("kind", [CRATE, CRATE_ALPHA])
@pytest.mark.parametrize("module", ["attn.proj", "mlp"])
def test_a_perturbed_weight_is_refused(kind, module):
    block, published = Block(kind, 24, 3), PublishedBlock(kind, 24, 3)
    published.load_state_dict(block.state_dict())
    tokens, cotangent = torch.randn(2, 2, 15, 24)
    assert crate_block.require_parity(Ours(block), published, tokens, cotangent) < 1e-5
    with torch.no_grad():
        next(published.get_submodule(module).parameters()).mul_(1.01)
    with pytest.raises(ParityError, match="not timed"):
        crate_block.require_parity(Ours(block), published, tokens, cotangent)
