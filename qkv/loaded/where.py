"""Where a model computes: the value that goes beside a wish, which says what is wanted."""

from dataclasses import dataclass

from qkv.config import make_plain, parse_bytes


@dataclass(frozen=True, kw_only=True)
class Where:
    """A device, a precision, a number of threads and the `memory` for keys and values of texts, as `--device`,
    `--dtype`, `--threads` and `--memory` name them. ConfigError for a memory that is no size.

    A model in memory belongs to one device, dtype and memory; threads are each call's own, so two counts share a copy.
    """

    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None  # None: as the process has it
    memory: int | str | None = None  # bytes, or such as "2G"; None: a share of what is free

    def __post_init__(self) -> None:
        make_plain(self)
        if self.memory is not None:
            object.__setattr__(self, "memory", parse_bytes("memory", self.memory))

    @classmethod
    def of(cls, device: object, dtype: object) -> "Where":
        """The place of a model that is there: PyTorch's device and dtype by their names."""
        return cls(device=str(device), dtype=str(dtype).removeprefix("torch."))

    @property
    def pool(self) -> int | None:
        """The memory in bytes."""
        assert not isinstance(self.memory, str)
        return self.memory


AUTO = Where()
