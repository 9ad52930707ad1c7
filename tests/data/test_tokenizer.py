"""Tests of the tokenizer: any text, start and end tokens, and equal results of equal captions."""

import subprocess
import sys

import pytest

from vitrail.data.tokenizer import SMALLEST, Tokenizer

TEXTS = ["a red fox", "a blue fox", "a red hen", "the hen and the fox"] * 5
START, END = 0, 1


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 290)


def test_frequent_words_are_one_token(tokenizer):
    assert 270 < tokenizer.vocabulary <= 290
    (ids,) = tokenizer.encode(["red fox"], 16)
    assert len(ids) == 4
    assert (ids[0], ids[-1]) == (START, END)


def test_letters_case_and_spaces_do_not_count(tokenizer):
    one, other = tokenizer.encode(["a red fox", "  A  RED\tfox\n"], 16)
    assert one == other


@pytest.mark.parametrize("text", ["", "ünïcode 🦊 漢字", "\x00\x7f", "<start><end>", "x" * 999])
def test_any_text_has_numbers_within_the_vocabulary(tokenizer, text):
    (ids,) = tokenizer.encode([text], 12)
    assert 2 <= len(ids) <= 12
    assert (ids[0], ids[-1]) == (START, END)
    # the names of the end tokens in a caption are letters
    assert all(END < i < tokenizer.vocabulary for i in ids[1:-1])


def test_long_texts_lose_their_last_words(tokenizer):
    long, short = (tokenizer.encode(["the hen and the fox"], n)[0] for n in (20, 4))
    assert short == [*long[:3], END]


def test_it_survives_as_json_whatever_it_encoded_before(tokenizer):
    before = tokenizer.to_json()
    tokenizer.encode(["a fox"], 5)
    assert tokenizer.to_json() == before
    assert Tokenizer(before).encode(TEXTS[:4], 9) == tokenizer.encode(TEXTS[:4], 9)


def test_equal_captions_train_equal_tokenizers_in_every_process():
    code = (
        "from vitrail.data.tokenizer import Tokenizer\n"
        f"print(Tokenizer.train({TEXTS!r}, 290).to_json())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.strip() == Tokenizer.train(TEXTS, 290).to_json()


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"vocabulary is 200.*at least 258"):
        Tokenizer.train(TEXTS, 200)
    assert Tokenizer.train([], SMALLEST).vocabulary == SMALLEST
