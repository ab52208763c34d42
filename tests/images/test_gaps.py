"""What is missing of a disk is found by what it holds, each time it is there, as a plain dictionary would."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from twinshare.agent.images.chunker import BLOCK
from twinshare.agent.images.gaps import Gaps
from twinshare.agent.images.index import ChunkIndex

DIGESTS = [bytes([number]) * 32 for number in range(40)]


@given(
    st.lists(st.sampled_from(DIGESTS), max_size=300), st.sets(st.integers(0, 300)), st.lists(st.sampled_from(DIGESTS))
)
def test_as_a_dictionary_would(chunks: list[bytes], there: set[int], taken: list[bytes]) -> None:
    index = ChunkIndex.of(len(chunks) * BLOCK, ((n * BLOCK, BLOCK, digest) for n, digest in enumerate(chunks)))
    gaps = Gaps(index)
    expected: dict[bytes, list[int]] = {}
    for place, digest in enumerate(chunks):
        if place not in there:
            gaps.add(place, digest)
            expected.setdefault(digest, []).append(place)
    for digest in taken:
        assert (digest in gaps) == (digest in expected)
        assert sorted(gaps.pop(digest)) == [(place * BLOCK, BLOCK) for place in expected.pop(digest, [])]
    assert bool(gaps) == bool(expected)
    assert [place for place, _ in gaps.wanted()] == sorted(places[0] for places in expected.values())
