"""Prompts as ids: bytes, and a tokenizer that the test trains and saves itself."""

import json

import pytest

from quill.errors import InvalidType, InvalidUsage
from quill.shard.encoding import encoder_for

TEXTS = ["", "Alice was beginning", "ünïcode 🐇\n\n", "\0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    path = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0} | {character: place for place, character in enumerate(alphabet, 1)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.mark.parametrize("text", TEXTS)
def test_without_a_tokenizer_the_ids_are_the_bytes(text):
    assert encoder_for(None).encode(text) == list(text.encode())


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("file", ["", "tokenizer.json"])
def test_a_tokenizer_is_read_from_its_folder_or_file_and_neither_cuts_nor_pads(folder, file, text):
    ids = encoder_for(str(folder / file)).encode(text)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(ids) == 1 + len(text.encode())
    assert ids[0] == vocabulary["<s>"]
    # Printable ASCII stands for itself in the byte-level alphabet.
    for place, byte in enumerate(text.encode(), 1):
        if 0x21 <= byte <= 0x7E:
            assert ids[place] == vocabulary[chr(byte)]


def test_a_folder_without_a_tokenizer_says_what_it_lacks(tmp_path):
    with pytest.raises(InvalidUsage, match=r"has no tokenizer\.json; AutoTokenizer"):
        encoder_for(str(tmp_path))


def test_a_damaged_tokenizer_is_an_error_that_names_it(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidUsage, match=f"the tokenizer '{tmp_path}' cannot be loaded"):
        encoder_for(str(tmp_path))


def test_a_name_that_is_no_text_is_refused():
    with pytest.raises(InvalidType, match="tokenizer_name must be a string or None, got int"):
        encoder_for(5)


@pytest.mark.parametrize("tokenizer", ["bytes", "hugging face"])
def test_a_text_without_utf8_is_refused_with_its_place(tokenizer, folder):
    encoder = encoder_for(None if tokenizer == "bytes" else str(folder))
    with pytest.raises(InvalidUsage, match=r"lone surrogate '\\ud800' at 2"):
        encoder.encode("ab\ud800")
