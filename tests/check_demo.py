"""Checks the README's claims on the run of `make demo`: python tests/check_demo.py RUN"""

import json
import sys
from pathlib import Path


def main(run: Path) -> None:
    """Exits with 1 and the broken claim, or prints the numbers."""
    found = json.loads((run / "evaluation.json").read_text())
    knn, few = found["knn"], found["linear_10_per_class"]
    assert found["settings"]["linear"]["draws"] >= 10
    better = knn["trained"] - knn["untrained"]
    halved = 1 - knn["trained"] <= (1 - knn["untrained"]) / 2
    assert better >= 0.05 or halved, f"k-NN: trained {knn['trained']} of {knn['untrained']}"
    assert few["trained"]["mean"] > few["raw"]["mean"], f"10 labels a class: {few}"
    linear = found["linear"]
    assert linear["trained"] > linear["raw"], f"linear: {linear}"
    page = run / "report.html"
    assert 10_000 < page.stat().st_size < 10_000_000, page.stat().st_size
    print(json.dumps({"knn": knn, "linear_10_per_class": few}, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
