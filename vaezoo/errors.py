"""The one exception a user sees, and the sentence that names the closest match."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable


class VaezooError(ValueError):
    """A user's mistake, said in one sentence: what was wrong, where, and what is possible."""


class NotFittedError(VaezooError):
    """The model has no prior yet, so there is nothing to sample from."""


class CheckpointError(VaezooError):
    """A checkpoint that cannot be trusted: damaged, foreign, or of another schema."""


class DataError(VaezooError):
    """Data that is missing, damaged or of the wrong shape."""


class TrainingError(VaezooError):
    """A run that cannot go on: a loss that is not finite, a batch that does not fit."""


class Terminated(SystemExit):
    """SIGTERM in a run: what `Ctrl-C` is, but the process that does not catch it exits with 143."""

    def __init__(self, message: str) -> None:
        super().__init__(128 + signal.SIGTERM)
        self.message = message

    def __str__(self) -> str:
        return self.message


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """`unknown model 'beta_va'; did you mean 'beta_vae'? Available: ae, beta_vae, ...`"""
    known = sorted(known)
    plain = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(str(name).lower().replace("-", "_"), plain, n=1, cutoff=0.5)
    guess = f"; did you mean '{plain[close[0]]}'?" if close else "."
    return f"unknown {kind} '{name}'{guess} Available: {', '.join(known) or 'none'}"
