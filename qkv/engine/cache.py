"""Who owns which page of the key/value pool, and which pages hold a prefix that another sequence can read.

PagedAttention (2309.06180), sections 4.2 to 4.4, with the prefix reuse of its successors: a full page is known by a
digest of all tokens up to its end, so that equal prefixes meet without comparing tokens. A page that nobody reads any
more keeps its content and stays known until the pool needs it: the least recently released one goes first. Pages that
are not full are never shared, so nothing is ever copied: a fork computes at most `page` - 1 rows anew. Left out:
swapping to disk or to another device.
"""

from array import array
from collections import OrderedDict, deque
from collections.abc import Sequence
from hashlib import blake2b

Key = bytes


def page_key(before: Key, ids: Sequence[int]) -> Key:
    """The digest of a full page's tokens and of all before them (b"" at the start): equal prefixes, equal keys."""
    return blake2b(array("q", ids).tobytes(), key=before, digest_size=16).digest()


class PageCache:
    """`pages` pages of `page` rows each. The engine's thread alone uses it; misuse is a bug, so it asserts."""

    def __init__(self, pages: int, page: int) -> None:
        self.pages, self.page = pages, page
        self._readers = [0] * pages
        self._keys: list[Key | None] = [None] * pages  # of the pages that can be found
        self._known: dict[Key, int] = {}
        self._blank = deque(range(pages))  # nobody reads it, nobody can find it
        self._kept: OrderedDict[int, None] = OrderedDict()  # nobody reads it, its key is known; the oldest first

    @property
    def touched(self) -> int:
        """Pages that hold something."""
        return self.pages - len(self._blank)

    @property
    def available(self) -> int:
        """Pages that `take` can still give."""
        return len(self._blank) + len(self._kept)

    def take(self) -> int:
        """A page to write into: a blank one, or the one whose content was released longest ago."""
        if self._blank:
            page = self._blank.popleft()
        else:
            page, _ = self._kept.popitem(last=False)
            self._forget(page)
        self._readers[page] = 1
        return page

    def find(self, key: Key) -> int | None:
        """The page that holds this prefix's last rows, with one more reader; None if there is none."""
        page = self._known.get(key)
        if page is not None:
            self.share(page)
        return page

    def share(self, page: int) -> None:
        """One more reads `page`."""
        if self._readers[page] == 0:
            del self._kept[page]
        self._readers[page] += 1

    def publish(self, page: int, key: Key) -> None:
        """`page` is full and can be found from now on, unless another with the same content already can."""
        if self._keys[page] is None and key not in self._known:
            self._keys[page], self._known[key] = key, page

    def release(self, table: Sequence[int], *, broken: bool = False) -> None:
        """One reader less for every page of a sequence; `broken`: nobody may find their content again."""
        for page in reversed(table):  # so that a prefix outlives what continues it
            if broken:
                self._forget(page)
            assert self._readers[page] > 0
            self._readers[page] -= 1
            if self._readers[page] == 0 and self._keys[page] is None:
                self._blank.appendleft(page)  # memory that was touched already
            elif self._readers[page] == 0:
                self._kept[page] = None

    def _forget(self, page: int) -> None:
        if (key := self._keys[page]) is not None:
            del self._known[key]
            self._keys[page] = None
