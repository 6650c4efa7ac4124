"""What of a record is too large to stand in it, how an object is cut, and what a reference may say."""

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import headers as names
from contracts import wire
from contracts.errors import ContractError
from contracts.objects import Kept
from contracts.subjects import Identity, Line
from mesh.bus.objects import cut, kept_payload, payload_digest, payload_place, readable_payload, reference
from mesh.bus.outsized import REFERENCE_BYTES, outsized
from mesh.digest import digest


def test_a_record_of_small_parts_stays_whole() -> None:
    assert outsized([10, 20, 30], each_max=30, total_max=60) == []


def test_a_part_over_the_limit_is_taken_out() -> None:
    assert outsized([10, 31, 30], each_max=30, total_max=60) == [1]


def test_the_largest_parts_are_taken_out_until_the_rest_fits() -> None:
    assert outsized([1000, 3000, 2000, 3000], each_max=3000, total_max=4500) == [1, 3]


def test_a_part_that_is_smaller_than_a_reference_stays_though_it_does_not_fit() -> None:
    assert outsized([0, 300, REFERENCE_BYTES], each_max=3000, total_max=-5) == [1]


@given(st.lists(st.integers(0, 3000)), st.integers(REFERENCE_BYTES, 2000), st.integers(0, 10_000))
def test_what_is_left_fits_and_nothing_is_taken_out_in_vain(sizes: list[int], each_max: int, total_max: int) -> None:
    taken = outsized(sizes, each_max=each_max, total_max=total_max)
    left = [size for index, size in enumerate(sizes) if index not in taken]
    extra = [sizes[index] for index in taken if sizes[index] <= each_max]

    assert taken == sorted(set(taken))
    assert sum(left) <= total_max or max(left) <= REFERENCE_BYTES
    assert all(size <= each_max for size in left)
    assert {index for index, size in enumerate(sizes) if size > each_max} <= set(taken)
    if extra:
        assert min(extra) >= max(left, default=0)
        assert sum(left) + min(extra) > total_max


@given(st.binary(min_size=1, max_size=500), st.integers(1, 100))
def test_chunks_put_together_are_what_was_cut(content: bytes, chunk_bytes: int) -> None:
    slices = cut(len(content), chunk_bytes)

    assert b"".join(content[each] for each in slices) == content
    assert all(each.stop - each.start == chunk_bytes for each in slices[:-1])
    assert 0 < slices[-1].stop - slices[-1].start <= chunk_bytes


LINE = Line("copy", "o")
KEPT = {"name": "payload-0a", "bytes": 300_000, "chunks": 2, "digest": "0" * 64}


def body(**changes: Any) -> bytes:
    return wire.encode({"v": 1, "kept": {**KEPT, **changes}})


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "a.b"},
        {"name": ">"},
        {"name": ""},
        {"name": "~child"},
        {"name": "x" * 129},
        {"chunks": 0},
        {"chunks": 294},
        {"bytes": -1},
        {"digest": "0" * 32},
        {"line": "other"},
    ],
    ids=str,
)
def test_a_reference_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ContractError):
        kept_payload({names.OBJECT: "1"}, body(**changes), LINE.at(1))

    assert readable_payload({names.OBJECT: "1"}, body(**changes), LINE.at(1)) is None


def test_a_reference_leads_to_its_own_task_or_its_line_alone() -> None:
    own, line = (
        kept_payload({names.OBJECT: "1"}, body(), LINE.at(1)),
        kept_payload({names.OBJECT: "1"}, body(line="o"), LINE.at(2)),
    )
    assert own is not None
    assert line is not None

    assert payload_place(LINE.at(1), own) == LINE.at(1)
    assert payload_place(LINE.at(2), line) == Identity("copy", "o")
    with pytest.raises(ContractError):
        kept_payload({names.OBJECT: "1"}, body(line="o"), Identity("copy", "o"))


def test_a_body_without_the_header_is_the_payload_whatever_it_looks_like() -> None:
    assert kept_payload({}, body(), Identity("copy", "k")) is None
    assert payload_digest({}, b"abc", Identity("copy", "k")) == digest(b"abc")


@given(st.binary(min_size=1))
def test_a_reference_tells_the_digest_that_its_payload_would_have(payload: bytes) -> None:
    kept = Kept(name="a", bytes=len(payload), chunks=1, digest=hashlib.sha256(payload).hexdigest())
    reference_body, headers = reference(kept)

    assert payload_digest(headers, reference_body, Identity("copy", "k")) == digest(payload)
    assert kept_payload(headers, reference_body, Identity("copy", "k")) == kept
