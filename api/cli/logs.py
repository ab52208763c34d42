"""How the agent logs: our lines by structlog and the libraries' lines in the same form, on stderr."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.dev import plain_traceback

from ...agent.config import LogConfig

# Libraries that say too much at their own level, and from where on they are heard.
_QUIET = {
    "libp2p.kad_dht": logging.ERROR,
    "hypercorn.error": logging.WARNING,
    "httpx": logging.WARNING,
    "zeroconf": logging.ERROR,  # warns, with a traceback, of each address that has no multicast: ::1 has none on Linux
}


def configure_logs(config: LogConfig) -> None:
    level = logging.getLevelNamesMapping()[config.level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    ending: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if config.format == "json"
        # The default formatter prints local variables with a traceback, and secrets are among them.
        else [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain_traceback)]
    )
    structlog.configure(
        processors=[*shared, *ending],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending],
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name, threshold in _QUIET.items():
        logging.getLogger(name).setLevel(max(level, threshold))
