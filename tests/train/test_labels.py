"""Labels of a supervised run: what teaches nothing is refused or said at the start."""

import pytest

from vitrail.objectives.supervised import Supervised
from vitrail.recipes.named import get_recipe
from vitrail.train.build import _require_labels


class Labelled:
    """A source of these labels, as far as the check looks at it."""

    spec = "folder:some"

    def __init__(self, *labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def label(self, index):
        return self.labels[index]


class Main:
    is_main = True


def check(*labels):
    recipe = get_recipe("crate_digits_supervised")
    check_labels = getattr(_require_labels, "__wrapped__", _require_labels)
    check_labels(recipe, Main(), Labelled(*labels), Supervised)


@pytest.mark.parametrize("labels", [(0, 0, 0), (None, None), (None, 1, 1)])
def test_one_class_or_none_is_refused(labels):
    with pytest.raises(ValueError, match=r"folder:some: .* at least two classes"):
        check(*labels)


def test_images_without_a_label_are_counted(capsys):
    check(0, 1, None, None, None)
    assert "3 of 5 images have no label" in capsys.readouterr().err
    check(0, 1, 1)
    assert capsys.readouterr().err == ""
