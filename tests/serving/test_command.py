"""The command that serves: what it says, and the ports that it refuses."""

import logging
import os
import socket
import sys
import types

import pytest
import uvicorn

from internvlu_jax.cli import main
from internvlu_jax.serving.limits import Limits
from internvlu_jax.serving.server import serve
from tests.helpers.serving import StandIn


def test_where_it_listens_is_said_and_not_each_request(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said, begin = [], uvicorn.Server.startup
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())

    async def startup(server, sockets=None):
        logging.getLogger("uvicorn.error").addHandler(handler)
        await begin(server, sockets)

    async def no_loop(server):
        assert server.started and not logging.getLogger("uvicorn.access").hasHandlers()

    monkeypatch.setattr(uvicorn.Server, "startup", startup)
    monkeypatch.setattr(uvicorn.Server, "main_loop", no_loop)
    monkeypatch.setenv("GRADIO_TEMP_DIR", os.devnull)
    page = types.SimpleNamespace(with_page=lambda app, *_: app)  # Gradio need not be here
    monkeypatch.setitem(sys.modules, "internvlu_jax.serving.page", page)
    try:
        serve(StandIn(), "127.0.0.1", port, Limits(), None, True)
    finally:
        logging.getLogger("uvicorn.error").removeHandler(handler)
    assert [line for line in said if f"http://127.0.0.1:{port}" in line]


@pytest.mark.parametrize("port", [-1, 0, 65536, 80000])
def test_ports_that_are_none(port, capsys):
    """80000 would be listened to at 14464."""
    assert main(["serve", "--port", str(port)]) == 2
    assert f"--port is {port}; expected one from 1 to 65535" in capsys.readouterr().err
