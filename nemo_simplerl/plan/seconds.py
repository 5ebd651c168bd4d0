"""Ranges of seconds, and what the estimates of a step assume: shares of a device's best speeds, from good to poor.

No figure here was measured on a GPU of this project's; docs/performance.md says where each comes from.
"""

from dataclasses import dataclass

# (good, poor) pairs: the first makes the short end of a range, the second the long end.
LAYERS = (0.65, 0.50)  # share of the peak in a layer's products and attention, with the norms and rotations between
HEAD = (0.40, 0.20)  # in the output layer: its tiles are read several times
DECODING = (0.65, 0.40)  # in products of as many rows as sequences are decoded
MEMORY = (0.90, 0.70)  # share of the memory's bandwidth, where much is read at once
CACHE = (0.70, 0.45)  # where keys and values of many sequences are read
PEERS = (0.85, 0.60)  # share of the bandwidth within a node
HIDDEN = (0.5, 0.0)  # share of the traffic of backward passes that computing hides
NETWORK = (40e9, 25e9)  # bytes a second between nodes, of each GPU: a 400 Gb/s adapter for each
HOSTS = (1e9, 0.25e9)  # bytes a second between the host memories of two ranks, over TCP
HOST_BUS = (50e9, 20e9)  # bytes a second to and from page-locked host memory, of each GPU
LAUNCH = (6e-6, 9e-6)  # seconds that Python takes to launch a kernel
KERNEL = (1.5e-6, 2.5e-6)  # least seconds of a kernel on the GPU
TURN = (0.3e-3, 1.5e-3)  # seconds of a decoding step in which tokens come back and the next step is begun
LENGTH = 1 / 4  # mean length of prompts and responses, as a share of the longest

_FULL_WIDTH = 128  # a product this narrow reaches half of what a wide one does


@dataclass(frozen=True)
class Seconds:
    """A range of seconds."""

    low: float
    high: float

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.low + other.low, self.high + other.high)

    def times(self, factor: float) -> "Seconds":
        return Seconds(self.low * factor, self.high * factor)

    def at_least(self, other: "Seconds") -> "Seconds":
        """The longer of two that go on at the same time."""
        return Seconds(max(self.low, other.low), max(self.high, other.high))

    @property
    def middle(self) -> float:
        """The geometric mean, by which layouts are ranked."""
        return (self.low * self.high) ** 0.5


NONE = Seconds(0.0, 0.0)


def at(amount: float, best: float, shares: tuple[float, float] = (1.0, 1.0)) -> Seconds:
    """Seconds for `amount` at `best` a second, of which the `shares` are reached."""
    return Seconds(amount / (best * shares[0]), amount / (best * shares[1]))


def each(count: float, seconds: tuple[float, float]) -> Seconds:
    """Seconds for `count` times something."""
    return Seconds(count * seconds[0], count * seconds[1])


def narrowed(width: float) -> float:
    """Share of its speed that a matrix product keeps whose narrowest side is `width`: short tiles stay half empty."""
    return width / (width + _FULL_WIDTH)
