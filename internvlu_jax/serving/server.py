"""`internvlu-jax serve`: the pipeline, its worker, the endpoints and the page in one process."""

from __future__ import annotations

import ipaddress
import os
import tempfile
from functools import partial

from internvlu_jax.inference.pipeline import InternVLUPipeline
from internvlu_jax.serving.limits import Limits

KEY = "INTERNVLU_API_KEY"
"""The environment's variable with the token that clients need."""
_CLOSING = 10  # seconds that requests have when the server is stopped


def check_address(host: str, port: int) -> tuple[str | None, bool]:
    """The token of the environment, and whether a host is this machine alone.

    Raises:
        ValueError: there is no such port; others would reach the host, and there is no token; or a library is missing.
    """
    if not 0 < port < 1 << 16:  # of a larger one uvicorn takes the last 16 bits
        raise ValueError(f"--port is {port}; expected one from 1 to 65535")
    try:
        import fastapi
        import gradio
        import prometheus_client
        import uvicorn
    except ImportError as error:
        raise ValueError(
            f"serving needs {error.name}, which is not installed; pip install 'internvlu-jax[serve]'"
        ) from error
    del fastapi, gradio, prometheus_client, uvicorn
    key, local = os.environ.get(KEY) or None, _is_local(host)
    if key is None and not local:
        raise ValueError(f"--host {host} lets others in, and {KEY} is not set; set it to the token that they need")
    return key, local


def serve(pipe: InternVLUPipeline, host: str, port: int, limits: Limits, key: str | None, local: bool) -> None:
    """Serves until it is stopped, and says where. Arguments after `limits`: see `check_address`."""
    import uvicorn

    from internvlu_jax.serving.app import make_app
    from internvlu_jax.serving.metrics import Metrics
    from internvlu_jax.serving.page import with_page
    from internvlu_jax.serving.running import check
    from internvlu_jax.serving.worker import Worker

    uploads = tempfile.TemporaryDirectory(prefix="internvlu-")
    os.environ["GRADIO_TEMP_DIR"] = uploads.name
    metrics = Metrics()
    worker = Worker(pipe, limits.max_queue, limits.max_batch, metrics.called)
    try:
        app = make_app(
            worker, metrics, limits, partial(check, pipe), key=key, local=host if local else None, uploads=uploads.name
        )
        uvicorn.run(
            with_page(app, worker, limits, key), host=host, port=port, log_level="info", access_log=False,
            timeout_graceful_shutdown=_CLOSING, server_header=False,
        )  # fmt: skip
    finally:
        worker.close()
        uploads.cleanup()


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
