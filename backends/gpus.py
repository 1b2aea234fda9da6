"""Which engine has which GPUs: whole ones, or a share of one with others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from backends.base import BackendError


@dataclass(slots=True, eq=False)
class Held:
    """What one engine has. `environment` shows it these and no other; empty where it has none."""

    devices: tuple[str, ...]
    share: float
    _from: Gpus

    @property
    def environment(self) -> Mapping[str, str]:
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.devices)} if self.devices else {}

    def give_back(self) -> None:
        """Idempotent."""
        devices, self.devices = self.devices, ()
        self._from.free(devices, self.share)


@dataclass(slots=True)
class Gpus:
    """The devices of one machine, `each` of them for an engine: a whole number, or a share of one below 1.

    Pools that name the same devices share this.
    """

    devices: Iterable[str]
    each: float = 0.0
    _used: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._used = dict.fromkeys(self.devices, 0.0)

    def take(self, each: float | None = None) -> Held:
        """The least used devices that have room. Raises BackendError where there are not enough."""
        wanted = self.each if each is None else each
        share, count = (wanted, 1) if 0 < wanted < 1 else (1.0, int(wanted))
        # One that is shared already comes before an empty one: whole ones stay for those who need them.
        roomy = sorted(
            (device for device, used in self._used.items() if used + share <= 1.0 + 1e-9),
            key=lambda device: -self._used[device],
        )
        if len(roomy) < count:
            raise BackendError(
                f"there are not {wanted:g} GPUs free of {len(self._used)}", trouble="refused", retryable=True
            )
        chosen = tuple(roomy[:count])
        for device in chosen:
            self._used[device] += share
        return Held(chosen, share, self)

    def free(self, devices: Iterable[str], share: float) -> None:
        """They are free again."""
        for device in devices:
            self._used[device] = max(0.0, self._used[device] - share)
