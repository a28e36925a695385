"""Where a model computes: the value that goes beside a wish, which says what is wanted."""

from dataclasses import dataclass

from qkv.config import make_plain


@dataclass(frozen=True, kw_only=True)
class Where:
    """A device, a precision and a number of threads, as `--device`, `--dtype` and `--threads` name them.

    A model in memory belongs to one device and one dtype; threads are each call's own, so two counts share one copy.
    """

    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None  # None: as the process has it

    def __post_init__(self) -> None:
        make_plain(self)

    @classmethod
    def of(cls, device: object, dtype: object) -> "Where":
        """The place of a model that is there: PyTorch's device and dtype by their names."""
        return cls(device=str(device), dtype=str(dtype).removeprefix("torch."))


AUTO = Where()
