"""Which columns of a table of images hold the image, the label and the caption."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

# Names of columns, in whatever case, where nothing else tells (as columns.COLUMNS).
NAMES = {
    "image": ("image", "img", "picture", "photo", "bytes", "image_bytes"),
    "label": ("label", "labels", "class", "category", "cls"),
    "text": ("caption", "text", "title", "description", "txt"),
}


class Columns(NamedTuple):
    """Names of columns, None where there is none. classes: the label's names, where known."""

    image: str
    label: str | None
    text: str | None
    classes: tuple[str, ...] | None


def find_columns(schema: Any, asked: dict[str, str]) -> Columns:
    """The columns of a pyarrow schema.

    Hugging Face's metadata tell, where they are there: features of type Image, and ClassLabel with
    its names. Else by name and type: an image is binary, or a struct with the field `bytes`; a
    label is a whole number or text; a caption is text.

    Args:
        asked: names of columns for "image", "label" and "text".

    Raises:
        ValueError: one that is asked for is not there or of another type, or there is no image, or
            several could be.
    """
    features = _features(schema)
    fits = {
        "image": [n for n in schema.names if _is_image(schema.field(n).type)],
        "label": [n for n in schema.names if _is_label(schema.field(n).type)],
        "text": [n for n in schema.names if _is_text(schema.field(n).type)],
    }
    chosen: dict[str, str | None] = {}
    for kind, fitting in fits.items():
        name = asked.get(kind)
        if name is not None and name not in fitting:
            has = ", ".join(map(repr, fitting)) or "none"
            raise ValueError(f"{kind}={name}: columns that can be the {kind}: {has}")
        chosen[kind] = name or _guess(kind, fitting, features)
    if chosen["image"] is None:
        raise ValueError(
            "it has no column of images (binary, or a struct with the field bytes); its columns "
            f"are {', '.join(map(repr, schema.names))}"
        )
    said = features.get(chosen["label"] or "", {})
    names = said.get("names") if isinstance(said, dict) else None
    known = isinstance(names, list) and all(isinstance(name, str) for name in names)
    classes = tuple(names) if known and names else None
    return Columns(chosen["image"], chosen["label"], chosen["text"], classes)


def _features(schema: Any) -> dict[str, Any]:
    """Hugging Face's description of the columns, empty where there is none."""
    try:
        said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = said.get("info", {}).get("features", {})
    except (ValueError, AttributeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _guess(kind: str, fitting: Sequence[str], features: dict[str, Any]) -> str | None:
    wanted = {"image": "Image", "label": "ClassLabel"}.get(kind)
    said = [
        name
        for name in fitting
        if isinstance(features.get(name), dict) and features[name].get("_type") == wanted
    ]
    likely = said or list(fitting)
    for name in NAMES[kind]:
        named = [other for other in likely if other.lower() == name]
        if named:
            return named[0]
    if len(likely) == 1 and (said or kind == "image"):
        return likely[0]
    if kind == "image" and likely:
        several = ", ".join(map(repr, likely))
        raise ValueError(f"the columns {several} could each be the image; name one by image=NAME")
    return None


def _is_image(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(f.name == "bytes" and _is_image(f.type) for f in kind)
    return types.is_binary(kind) or types.is_large_binary(kind)


def _is_label(kind: Any) -> bool:
    from pyarrow import types

    return types.is_integer(kind) or _is_text(kind)


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind)
