"""What :func:`~pyro_naf.infer.refine` returns: a result that goes on, and is kept in a file."""

from __future__ import annotations

import os
from dataclasses import fields

from ..support.calls import Model
from .continuing import go_on
from .refined import Refined
from .saving import load_refinement, save_refinement


class Refinement(Refined):
    """What :func:`refine` returns: the guide, how good it was and is, and what to do with it.

    ``draws`` are the guide's, ``resampled`` the posterior's by importance weights; ``summary``,
    ``to_dataframe``, ``to_arviz``, ``log_likelihood``, ``loo``, ``predictive`` and ``plot`` use the
    weights where k-hat allows it. ``save`` and ``load`` keep it in a file, :meth:`refine` goes on.

    :ivar guide: the refined guide.
    :ivar before: :class:`~pyro_naf.infer.ImportanceDiagnostics` of the fitted guide.
    :ivar after: diagnostics of the refined guide; ``elbo``, ``elbo_se``, ``khat``, ``ess`` and
        ``log_evidence`` are its numbers.
    :ivar losses: negative ELBO of every step; where several modes are learnt from draws, the mean
        of log q - log p over those.
    :ivar skipped: number of steps skipped because loss or gradient was not finite.
    :ivar seconds: time until the end of training, from the call on.
    :ivar missed: the part of the posterior's mass, from 0 to 1, that the guide does not cover but
        the modes found at the start, the Gaussian there and one three times as wide do.
    :ivar density: how the model's log-density was evaluated in the end: "captured and compiled",
        "captured", "vmapped", "vmapped with help", "vmapped with copies" or "one draw after
        another", the fastest first.
    :ivar joint: the model's log-density; None for one loaded without the model.
    :ivar origin: the start and the options of the call, which going on and loading need.
    :ivar ended: why it ended: "good" where the Gaussian fits so well that no flow was trained, "no
        further gain" where no flow was better than the Gaussian, which is returned, "interrupted"
        by Ctrl-C, or "budget".
    """

    @classmethod
    def of(cls, found: Refined) -> Refinement:
        """Make the result with these data."""
        return cls(**{field.name: getattr(found, field.name) for field in fields(found)})

    def refine(
        self,
        seconds: float | None = None,
        steps: int | None = None,
        *,
        seed: int | None = None,
        progress: bool = True,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_seconds: float = 30.0,
    ) -> Refinement:
        """Go on from here, with the options of the first call; this result stays as it is.

        The guide is never worse than this one, by the noise of two ELBOs.

        :param seconds: time for the whole call. With neither, 60 seconds or 4000 steps.
        :param steps: largest number of further steps.
        :param seed: seeds torch's generators for the duration of the call.
        :param progress: show a progress bar.
        :param checkpoint: file for the state of training and, at the end, the new result. When the
            process was killed, the same call on the same result, loaded again, goes on from there.
        :param checkpoint_seconds: time between two checkpoints, at least.
        :return: a result whose losses, steps and seconds are those of both.
        :raises ValueError: for a result that was loaded without its model, or a checkpoint of
            another call.
        """
        self._known_joint()
        further = go_on(
            self,
            seconds=seconds,
            steps=steps,
            seed=seed,
            progress=progress,
            checkpoint=checkpoint,
            checkpoint_seconds=checkpoint_seconds,
        )
        return Refinement.of(further)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result to a file of tensors, numbers and strings, without its model.

        An older file stands until the new one is whole.

        :raises OSError: when it cannot be written.
        """
        save_refinement(self, path)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], model: Model, *args: object, **kwargs: object
    ) -> Refinement:
        """Load the result that :meth:`save` wrote, for its model; no code in the file is run.

        :param model: the model that was refined.
        :param args: its arguments, as are ``kwargs``: the data is not in the file.
        :raises ModelFileError: when the file is truncated, foreign or of another version.
        :raises ValueError: for a model with other latents.
        :raises OSError: when it cannot be read.
        """
        return cls.of(load_refinement(path, model, args, kwargs))
