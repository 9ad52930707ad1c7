"""Text as token numbers: a byte-pair encoding learned from a run's own captions.

Sennrich et al. 2016, Algorithm 1, over bytes (Radford et al. 2019, section 2.2), of lower-cased
text, with a token at either end (Radford et al. 2021, section 2.4). The work is `tokenizers`'.

Departures from CLIP: a word's end is not marked, its beginning is (by its space), and the merges
are learned from the captions at hand instead of a fixed 49,152.
"""

import os
from collections.abc import Iterable, Sequence

from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Model
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

# Its threads would not survive the fork of a worker that decodes images, and it says so each time.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

START, END = "<start>", "<end>"
SMALLEST = 258  # 256 bytes and the two ends: any text can be written


class Tokenizer:
    """Text -> token numbers. Equal captions train equal tokenizers, in every process."""

    def __init__(self, json: str):
        """Args: json: what `to_json` gave. ValueError where it is not."""
        self._json = json
        try:
            self._model = Model.from_str(json)
        except Exception as error:  # the library's own are of no narrower class
            raise ValueError(f"this is no tokenizer: {error}") from error
        # A caption that spells <end> is spelled out: nobody ends a caption from within.
        self._model.encode_special_tokens = True

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int) -> "Tokenizer":
        """Learns at most so many tokens; few texts have fewer pairs worth a token.

        Raises:
            ValueError: fewer than 258 tokens asked for.
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
        """V: token numbers are in [0, V)."""
        return self._model.get_vocab_size()

    def encode(self, texts: Sequence[str], context: int) -> list[list[int]]:
        """Token numbers of each text, between start and end, at most `context` of them.

        Longer texts lose their last words, and keep their end.
        """
        self._model.enable_truncation(context)
        return [found.ids for found in self._model.encode_batch_fast(list(texts))]

    def to_json(self) -> str:
        """All of it, to build an equal one."""
        return self._json
