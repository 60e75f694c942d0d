"""What the teachers make of one batch: outputs and features, and of every teacher no more than is asked for."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from mtkd_arch.taps import record_taps

if TYPE_CHECKING:
    from mtkd_arch.teacher_ensemble_arch import TeacherEnsemble


class TeacherOutputs(Mapping[str, Tensor]):
    """Outputs by the teacher's name for one ``lq``; a teacher runs when its output is first asked for.

    Args:
        ensemble: the teachers.
        lq: (B, 3, H, W), RGB in [0, 1].
        known: outputs by name, (B, 3, scale * H, scale * W), that need not be computed; of teachers without taps.
        asked: names of teachers whose outputs are asked for, added to; shared by the steps of a run, it tells
            :meth:`features` which teachers have to run to their ends.
    """

    def __init__(
        self,
        ensemble: 'TeacherEnsemble',
        lq: Tensor,
        known: Mapping[str, Tensor] | None = None,
        asked: set[str] | None = None,
    ) -> None:
        self._ensemble, self._lq = ensemble, lq
        self._known = {name: known[name] for name in ensemble.networks if name in (known or {})}
        self._asked = set() if asked is None else asked

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._ensemble.networks:
            raise KeyError(name)
        self._asked.add(name)
        if name not in self._known:
            self._known[name] = self._ensemble.run_teacher(name, self._lq)
        return self._known[name]

    def __contains__(self, name: object) -> bool:
        return name in self._ensemble.networks  # without running it

    def __iter__(self) -> Iterator[str]:
        return iter(self._ensemble.networks)

    def __len__(self) -> int:
        return len(self._ensemble.networks)

    def features(self, name: str, paths: Sequence[str]) -> dict[str, Tensor]:
        """The outputs of a teacher's modules at ``paths``, by path.

        It runs to its end if its output has been asked for, else no further than to the last of them.
        """
        return self._run(name, paths, name in self._asked)

    def probe(self, name: str, paths: Sequence[str]) -> dict[str, Tensor]:
        """``features`` from a whole pass, whose errors show.

        The output of a teacher of which a tapped module runs several times counts as asked for: its last one counts.
        """
        repeated: set[str] = set()
        features = self._run(name, paths, True, repeated)
        self._asked.update([name] if repeated else [])
        return features

    def _run(self, name: str, paths: Sequence[str], whole: bool, repeated: set[str] | None = None) -> dict[str, Tensor]:
        if not paths and (not whole or name in self._known):
            return {}
        with record_taps(self._ensemble.networks[name].network, paths, not whole, repeated) as features:
            self._known[name] = self._ensemble.run_teacher(name, self._lq)
        return features
