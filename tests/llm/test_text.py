"""The text of a sequence against the whole bytes decoded at once and a search character by character."""

import codecs
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quill.llm.text import TextAssembler

PIECES = [
    b"a",
    b"b",
    b"ab",
    "é".encode(),
    "€".encode(),
    "😀".encode(),
    b"\xff",
    b"\xe2\x82",
    b"\xf0\x9f",
    b"\x80",
    b"\xed",
]


@st.composite
def split_bytes(draw):
    """Bytes, valid or not, and a way to split them into tokens, some of them empty."""
    data = b"".join(draw(st.lists(st.sampled_from(PIECES), max_size=12)))
    borders = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    edges = [0, *borders, len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


stop_strings = st.lists(st.text(alphabet="abé€\ufffd", min_size=1, max_size=4), max_size=4)


def expected(text, stops, include_stop, first_end=1):
    """The first stop that a reader of one character after the other sees complete; the longest of several."""
    for end in range(first_end, len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            stop = max(matches, key=len)
            return text[: end if include_stop else end - len(stop)], stop
    return text, None


def assemble(tokens, stops=(), **options):
    """The texts of all tokens up to the match, as they were settled push by push, and the match."""
    assembler = TextAssembler(stops, **options)
    settled = []
    for token in tokens:
        settled.append(assembler.push(token))
        if assembler.matched is not None:
            return settled, assembler.matched
    settled.append(assembler.finish())
    return settled, assembler.matched


def flat(settled):
    return [text for texts in settled for text in texts]


@settings(max_examples=1500)
@given(split_bytes(), stop_strings, st.booleans())
@example([b"x", b"\xe2\x82"], ["\ufffd"], False)
@example([b"ab", b"", b"c"], ["bcd", "c"], False)
@example([b"\xf0\x9f", b"\x98", b"\x80"], [], False)
def test_any_split_gives_the_text_of_the_whole(tokens, stops, include_stop):
    settled, matched = assemble(tokens, stops, include_stop=include_stop)
    whole = b"".join(tokens).decode("utf-8", errors="replace")
    assert ("".join(flat(settled)), matched) == expected(whole, stops, include_stop)


@settings(max_examples=500)
@given(split_bytes(), stop_strings, st.booleans())
def test_every_token_that_was_pushed_gets_one_text(tokens, stops, include_stop):
    assembler = TextAssembler(stops, include_stop=include_stop)
    pushed = settled = 0
    for token in tokens:
        settled += len(assembler.push(token))
        pushed += 1
        assert settled <= pushed
        if assembler.matched is not None:
            assert settled == pushed
            return
    assert settled + len(assembler.finish()) == pushed


@settings(max_examples=500)
@given(split_bytes(), stop_strings, st.integers(0, 6))
def test_a_stop_counts_only_when_a_token_after_min_tokens_completes_it(tokens, stops, min_tokens):
    settled, matched = assemble(tokens, stops, min_tokens=min_tokens)
    whole = b"".join(tokens).decode("utf-8", errors="replace")
    early = codecs.getincrementaldecoder("utf-8")("replace").decode(b"".join(tokens[:min_tokens]))
    if len(tokens) <= min_tokens:
        assert ("".join(flat(settled)), matched) == (whole, None)
    else:
        assert ("".join(flat(settled)), matched) == expected(whole, stops, False, first_end=len(early) + 1)


@settings(max_examples=300)
@given(split_bytes(), stop_strings)
def test_settled_text_is_never_taken_back(tokens, stops):
    """What was given out before the match is a prefix of the text as cut."""
    settled, _ = assemble(tokens, stops)
    whole = b"".join(tokens).decode("utf-8", errors="replace")
    text, _ = expected(whole, stops, False)
    given_out = ""
    for texts in settled:
        given_out += "".join(texts)
        assert text.startswith(given_out)
    assert given_out == text


def test_without_stops_every_whole_token_is_settled_at_once():
    assert assemble([b"Hel", b"lo", b""])[0] == [["Hel"], ["lo"], [""], []]


def test_a_character_over_three_tokens_comes_with_the_last():
    first, second, third = "€".encode()[:1], "€".encode()[1:2], "€".encode()[2:]
    assert assemble([first, second, third])[0] == [[], [""], ["", "€"], []]


def test_an_incomplete_character_at_the_end_is_a_replacement_on_the_token_that_began_it():
    settled, _ = assemble([b"x\xe2", b"\x82", b""])
    assert settled == [[], ["x"], [], ["\ufffd", ""]]


def test_text_waits_only_while_it_may_become_a_stop():
    settled, matched = assemble([b"a", b"\n", b"b", b"\n", b"\n", b"c"], ["\n\n"])
    assert settled == [["a"], [], ["\n", "b"], [], ["", ""]]
    assert matched == "\n\n"


def test_the_token_with_the_cut_carries_the_part_before_it():
    settled, matched = assemble([b"one t", b"wo", b" three"], ["two"])
    assert (settled, matched) == ([[], ["one ", ""]], "two")


def test_an_included_stop_ends_within_its_token():
    settled, matched = assemble([b"one t", b"wo, three"], ["two"], include_stop=True)
    assert (settled, matched) == ([[], ["one t", "wo"]], "two")


def test_the_stop_that_is_complete_first_wins_over_one_that_began_earlier():
    assert assemble([b"abcd"], ["bcd", "c"]) == ([["ab"]], "c")


def test_of_stops_complete_at_the_same_character_the_longest_wins():
    assert assemble([b"xab"], ["b", "ab"]) == ([["x"]], "ab")


def test_a_half_stop_at_the_end_is_text():
    settled, matched = assemble([b"a", b"EN"], ["END"])
    assert (flat(settled), matched) == (["a", "EN"], None)


def test_a_stop_within_min_tokens_is_not_found_afterwards():
    settled, matched = assemble([b"ab", b"c"], ["abcd", "b"], min_tokens=1)
    assert (flat(settled), matched) == (["ab", "c"], None)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_a_long_text_with_a_long_stop_is_cut_at_the_right_place(size):
    text = "aaaaaaab" * 500 + "a" * 200 + "b" + "rest"
    stop = "a" * 200 + "b"
    data = text.encode()
    tokens = [data[start : start + size] for start in range(0, len(data), size)]
    settled, matched = assemble(tokens, [stop])
    assert ("".join(flat(settled)), matched) == expected(text, [stop], False)
