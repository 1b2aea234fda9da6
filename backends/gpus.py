"""Which engine has which GPUs: whole ones, or a share of one with others."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backends.base import BackendError

_ROUNDING: Final = 1e-9


@dataclass(slots=True, eq=False)
class Held:
    """What one engine has: these devices and no other are shown to it."""

    devices: tuple[str, ...]
    share: float
    of: Gpus

    @property
    def environment(self) -> Mapping[str, str]:
        """Empty where it has none."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.devices)} if self.devices else {}

    def give_back(self) -> None:
        """Idempotent."""
        devices, self.devices = self.devices, ()
        self.of.free(devices, self.share)


class Gpus:
    """The devices of one machine. All pools take theirs here."""

    def __init__(self, devices: Sequence[str]) -> None:
        self._used = dict.fromkeys(devices, 0.0)

    def take(self, wanted: float, among: Collection[str] = ()) -> Held:
        """A whole number of devices, or a share of one (below 1), `among` these where some are named.

        Raises BackendError where there are not so many free.
        """
        share, count = (wanted, 1) if 0 < wanted < 1 else (1.0, int(wanted))
        known = {device: used for device, used in self._used.items() if not among or device in among}
        roomy = [device for device, used in known.items() if used + share <= 1.0 + _ROUNDING]
        # One that is shared already comes before an empty one: whole ones stay for those who need them.
        chosen = tuple(sorted(roomy, key=lambda device: -known[device])[:count])
        if len(chosen) < count:
            message = f"{wanted:g} of {len(known)} GPUs cannot be had now"
            raise BackendError(message, trouble="refused", retryable=True)
        for device in chosen:
            self._used[device] += share
        return Held(chosen, share, self)

    def free(self, devices: Sequence[str], share: float) -> None:
        """They are free again."""
        for device in devices:
            self._used[device] = max(0.0, self._used[device] - share)


def devices_of_this_machine(environment: Mapping[str, str], folder: Path = Path("/dev")) -> tuple[str, ...]:
    """The GPUs that this process may see, by the names that CUDA_VISIBLE_DEVICES has for them."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(part.strip() for part in visible.split(",") if part.strip())
    # CUDA counts from 0 whatever the files are called: a container that was given /dev/nvidia3 alone has GPU 0.
    return tuple(map(str, range(len(list(folder.glob("nvidia[0-9]*"))))))
