"""The number of channels that images of a source can have."""


def choose_channels(spec: str, asked: int | None, own: int | None = None, others: str = "") -> int:
    """Returns the number of channels of every image read.

    Args:
        spec: of the source, for the message.
        asked: number that the user asks for, None for the source's own.
        own: channels of images that are arrays; grey ones may become RGB. None: image files, which
            give 1 or 3, by default 3.
        others: addition to the message: which files can have other counts.

    Raises:
        ValueError: the images cannot have that many.
    """
    if own is None:
        if asked in (None, 1, 3):
            return asked or 3
        raise ValueError(
            f"{spec}: channels is {asked}; image files give 1 (grey) or 3 (RGB){others}"
        )
    if asked in (None, own) or (own, asked) == (1, 3):
        return asked or own
    raise ValueError(
        f"{spec}: channels is {asked}, but its images have {own}; use {own} or leave it out"
    )
