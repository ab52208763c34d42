"""`scripts/fuzz`: one target under atheris, guided by what its parsers cover. A case that it finds is kept."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-untyped]  # only in the environment of scripts/fuzz

with atheris.instrument_imports(include=["twinshare", "yaml", "tarfile", "h11", "joserfc"]):
    from tests.fuzz.targets import SEEDS, TARGETS

MAX_LENGTH, MAX_MEMORY, MAX_SECONDS = 65_536, 2048, 10
"""Of one case: bytes, and for the whole process MiB; seconds."""


def main(format: str, seconds: str) -> None:
    """Fuzz until a case fails or the time is over."""
    kept = Path(__file__).parents[1] / "fuzz_corpus" / format
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for number, seed in enumerate(SEEDS[format]):
            (Path(scratch) / f"seed-{number}").write_bytes(seed)
        options = [
            f"-max_total_time={seconds}", f"-max_len={MAX_LENGTH}", f"-rss_limit_mb={MAX_MEMORY}",
            f"-timeout={MAX_SECONDS}", f"-artifact_prefix={kept}/", "-print_final_stats=1", scratch, str(kept),
        ]  # fmt: skip
        atheris.Setup([sys.argv[0], *options], TARGETS[format])
        atheris.Fuzz()


if __name__ == "__main__":
    if len(sys.argv) not in {2, 3} or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: scripts/fuzz FORMAT [SECONDS]; formats: {', '.join(TARGETS)}")
    main(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else "60")
