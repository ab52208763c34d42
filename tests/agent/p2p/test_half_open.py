"""Who gives way when half-open connections pile up."""

from __future__ import annotations

from twinshare.agent.p2p.libp2p.half_open import HalfOpen


def test_the_oldest_of_an_address_gives_way_to_its_newest() -> None:
    book: HalfOpen[int] = HalfOpen(most=100, most_each=2)
    assert [book.add("a", number) for number in (1, 2, 3, 4)] == [None, None, 1, 2]
    assert len(book) == 2


def test_when_all_are_full_the_greediest_address_gives_way() -> None:
    book: HalfOpen[int] = HalfOpen(most=3, most_each=3)
    for address, number in (("a", 1), ("a", 2), ("b", 3)):
        book.add(address, number)
    assert book.add("c", 4) == 1
    assert book.add("c", 5) in (2, 4)


def test_what_is_done_makes_room() -> None:
    book: HalfOpen[int] = HalfOpen(most=2, most_each=2)
    book.add("a", 1)
    book.remove("a", 1)
    book.remove("a", 1)
    assert len(book) == 0
    assert [book.add("a", number) for number in (2, 3)] == [None, None]
