"""Text as token numbers: a byte-pair encoding learned from a run's own captions.

Sennrich et al. 2016, Algorithm 1, over bytes (Radford et al. 2019, section 2.2), of lower-cased
text, with a token at either end (Radford et al. 2021, section 2.4). The package `tokenizers` does
the work.

Departures from CLIP: the beginning of a word is marked (by its space) and not its end, and the
merges are learned from the captions at hand instead of a fixed 49,152.
"""

import os
from collections.abc import Iterable, Sequence

from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Model
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

# its threads would not survive the fork of a worker process, and it would warn each time
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

START, END = "<start>", "<end>"
BLOCK = 4096  # texts that are encoded together
SMALLEST = 258  # 256 bytes and the two ends, enough for any text


class Tokenizer:
    """Turns text into token numbers. Equal captions train equal tokenizers, in every process.

    Args:
        json: of `to_json`.

    Raises:
        ValueError: it is not such a text.
    """

    def __init__(self, json: str):
        self._json = json
        try:
            self._model = Model.from_str(json)
        except Exception as error:  # the library raises no narrower class
            raise ValueError(f"this is no tokenizer: {error}") from error
        # "<end>" in a caption is encoded as its letters and does not end it
        self._model.encode_special_tokens = True

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int) -> "Tokenizer":
        """Learns a vocabulary from texts.

        Args:
            texts: to learn from.
            vocabulary: largest number of tokens, at least 258; few texts give fewer.

        Raises:
            ValueError: the vocabulary is smaller than 258.
        """
        if vocabulary < SMALLEST:
            raise ValueError(
                f"tokenizer: vocabulary is {vocabulary}; it must be at least {SMALLEST}: the 256 "
                "bytes, a start and an end"
            )
        model = Model(BPE())
        model.normalizer = normalizers.Sequence(
            [
                normalizers.NFC(),
                normalizers.Lowercase(),
                normalizers.Replace(Regex(r"\s+"), " "),
                normalizers.Strip(),
            ]
        )
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        trainer = BpeTrainer(
            vocab_size=vocabulary,
            min_frequency=2,
            special_tokens=[START, END],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        model.train_from_iterator(texts, trainer)
        model.post_processor = TemplateProcessing(
            single=f"{START} $A {END}", special_tokens=[(START, 0), (END, 1)]
        )
        return cls(model.to_str())

    @property
    def vocabulary(self) -> int:
        """Number of tokens V; token numbers are in [0, V)."""
        return self._model.get_vocab_size()

    def encode(self, texts: Sequence[str], context: int) -> list[list[int]]:
        """Returns the token numbers of each text, with start and end.

        Args:
            texts: to encode.
            context: largest number of tokens of a text. Longer texts lose their last words, not
                the end token.
        """
        self._model.enable_truncation(context)
        return [found.ids for found in self._model.encode_batch_fast(list(texts))]

    def count_longer(self, texts: Iterable[str], context: int) -> int:
        """Returns the number of texts that `encode` would cut to a context."""
        # a token is a byte or more, so short ASCII, which NFC and lower case keep as long, fits
        long = [text for text in texts if not text.isascii() or len(text) + 3 > context]
        self._model.no_truncation()
        return sum(
            len(found.ids) > context
            for start in range(0, len(long), BLOCK)
            for found in self._model.encode_batch_fast(long[start : start + BLOCK])
        )

    def to_json(self) -> str:
        """Returns the tokenizer as JSON, from which an equal one can be built."""
        return self._json
