"""Prompts as token ids: by a Hugging Face tokenizer where one is named, else the bytes of UTF-8."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from quill.errors import InvalidType, InvalidUsage

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_FILE = "tokenizer.json"


class Encoder(Protocol):
    """What turns a prompt into ids."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text. It may take its time: it is called in a thread."""
        ...


class Utf8Encoder:
    """The bytes of UTF-8 as ids, 0 to 255: what a sidecar understands where nobody names a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """One id per byte.

        Raises:
            InvalidUsage: The text has a lone surrogate, which has no UTF-8.
        """
        return list(_utf8(text))


class HuggingFaceEncoder:
    """A tokenizer in the format of Hugging Face, with the special tokens that it puts around a prompt.

    Args:
        name: A folder with tokenizer.json in it, that file itself, or a name on the Hugging Face Hub, whose file is
            downloaded where it is not in the local cache.

    Raises:
        InvalidUsage: It cannot be loaded, or `quill-rpc[hf]` is not installed.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._tokenizer = _load(name)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, special tokens included.

        Raises:
            InvalidUsage: The text has a lone surrogate, which has no UTF-8.
        """
        _utf8(text)
        return list(self._tokenizer.encode(text).ids)


def encoder_for(tokenizer_name: str | None) -> Encoder:
    """The tokenizer of a name; UTF-8 bytes for None.

    Raises:
        InvalidUsage: The tokenizer cannot be loaded.
        InvalidType: The name is no string.
    """
    if tokenizer_name is None:
        return Utf8Encoder()
    if not isinstance(tokenizer_name, str):
        raise InvalidType(f"tokenizer_name must be a string or None, got {type(tokenizer_name).__name__}")
    return HuggingFaceEncoder(tokenizer_name)


def _load(name: str) -> Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise InvalidUsage(
            f"the tokenizer {name!r} needs the tokenizers package: pip install 'quill-rpc[hf]'"
        ) from None
    path = Path(name)
    if path.is_dir():
        path /= _FILE
        if not path.is_file():
            raise InvalidUsage(
                f"the folder {name!r} has no {_FILE}; AutoTokenizer.from_pretrained(...).save_pretrained(...) writes it"
            )
    try:
        tokenizer = Tokenizer.from_file(str(path)) if path.is_file() else Tokenizer.from_pretrained(name)
    except Exception as error:  # the package raises bare Exception, and whatever its downloader does
        raise InvalidUsage(f"the tokenizer {name!r} cannot be loaded ({type(error).__name__})") from error
    tokenizer.no_truncation()  # a file may ask for both, and a prompt wants neither
    tokenizer.no_padding()
    return tokenizer


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidUsage(
            f"the prompt has the lone surrogate {text[error.start]!r} at {error.start}, which has no UTF-8"
        ) from None
