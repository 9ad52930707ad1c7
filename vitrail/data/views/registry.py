"""The table of view operations: what may be done to the pixels of a view, in this order.

Cutting, resizing and flipping come before them and are no rows: every view has them.
"""

from dataclasses import dataclass

from vitrail.registry import Registry, Row


@dataclass(frozen=True)
class OperationRow(Row):
    """An operation on the pixels of views.

    Attributes:
        operation: its class, an `Operation` of contract.py, as "package.module:Name" or itself.
        summary: what it does, in a few words.
        fields: the fields of `View` that it reads. It is applied to views that have them all, so
            another package adds an operation together with a subclass of `View`.
    """

    operation: str | type
    summary: str
    fields: tuple[str, ...]


# The order of the rows is the order of application: DINO's. Rows of other packages come last.
OPERATIONS = Registry(
    "operation",
    OperationRow,
    {
        "jitter": OperationRow(
            "vitrail.data.views.operations.jitter:Jitter",
            "brightness, contrast, saturation and hue, in a drawn order",
            fields=("jitter", "brightness", "contrast", "saturation", "hue"),
        ),
        "grey": OperationRow(
            "vitrail.data.views.operations.grey:Grey",
            "RGB to grey",
            fields=("grey",),
        ),
        "blur": OperationRow(
            "vitrail.data.views.operations.blur:Blur",
            "Gaussian blur",
            fields=("blur", "blur_sigma"),
        ),
        "solarize": OperationRow(
            "vitrail.data.views.operations.solarize:Solarize",
            "the upper half of the values inverted",
            fields=("solarize",),
        ),
    },
)
