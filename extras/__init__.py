"""The modules of each room are found as ``extras.NAME``, so that a command has a short name."""

__path__ += [f"{__path__[0]}/{room}" for room in ("reading", "inside", "trying", "more")]
