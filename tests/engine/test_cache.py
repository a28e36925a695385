"""Pages are never lost, never given twice, and found by what they hold."""

from hypothesis import given, settings
from hypothesis import strategies as st

from qkv.engine.cache import PageCache, page_key


def keys(*pages: list[int]) -> list[bytes]:
    found = [b""]
    for ids in pages:
        found.append(page_key(found[-1], ids))
    return found[1:]


def test_a_key_knows_all_that_is_before_it():
    assert keys([1, 2], [3, 4]) == keys([1, 2], [3, 4])
    assert keys([1, 2], [3, 4])[1] != keys([2, 1], [3, 4])[1]
    assert keys([1, 2])[0] != keys([1, 2], [1, 2])[1]
    assert keys([1, 2, 3]) != keys([1, 2], [3])


def test_published_pages_are_found_until_the_pool_needs_them():
    cache, (a, b) = PageCache(3, 2), keys([1, 2], [3, 4])
    table = [cache.take(), cache.take()]
    assert cache.find(a) is None
    cache.publish(table[0], a)
    cache.publish(table[1], b)
    cache.release(table)
    assert cache.available == 3
    assert cache.find(a) == table[0]
    assert cache.available == 2
    blank, last = cache.take(), cache.take()
    assert blank not in table, "blank pages go first"
    assert last == table[1], "then the one that nobody reads"
    assert cache.find(b) is None
    assert cache.find(a) == table[0], "two read it now"
    cache.release([table[0]])
    assert cache.available == 0


def test_the_end_of_a_prefix_goes_before_its_beginning():
    cache, (a, b) = PageCache(2, 2), keys([1, 2], [3, 4])
    table = [cache.take(), cache.take()]
    for page, key in zip(table, (a, b)):
        cache.publish(page, key)
    cache.release(table)
    cache.take()
    assert cache.find(a) == table[0]


def test_the_same_content_twice_is_kept_once():
    cache, (a,) = PageCache(2, 2), keys([1, 2])
    first, second = cache.take(), cache.take()
    cache.publish(first, a)
    cache.publish(second, a)
    cache.release([second])
    cache.release([first])
    assert cache.take() == second
    assert cache.find(a) == first


def test_broken_pages_are_never_found():
    cache, (a,) = PageCache(2, 2), keys([1, 2])
    page = cache.take()
    cache.publish(page, a)
    assert cache.find(a) == page
    cache.release([page], broken=True)
    assert cache.find(a) is None
    cache.release([page])
    assert cache.available == 2


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_page_is_lost_or_given_twice(data):
    """Against a plain model: sequences over two tokens, so that they meet all the time."""
    cache, held = PageCache(7, 2), list[tuple[list[int], list[bytes]]]()
    for _ in range(data.draw(st.integers(1, 40))):
        if held and data.draw(st.booleans()):
            table, _ = held.pop(data.draw(st.integers(0, len(held) - 1)))
            cache.release(table, broken=data.draw(st.booleans()))
        else:
            table, chain = [], keys(*data.draw(st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=2))))
            for key in chain:
                if (page := cache.find(key)) is None and cache.available:
                    page = cache.take()
                    assert all(page not in other for other, _ in held), "somebody reads it"
                    assert page not in table
                    cache.publish(page, key)
                if page is None:
                    break
                table.append(page)
            held.append((table, chain))
        read = {page for table, _ in held for page in table}
        assert cache.available == 7 - len(read)
    for table, _ in held:
        cache.release(table)
    assert cache.available == 7
    assert sorted(cache.take() for _ in range(7)) == list(range(7))
